/* cc: -static -nostdlib */
/* A static program that marks when the word in it was changed. */
#include "marker.h"
#include "word.h"

void _start(void) {
	if (is_loud()) mark();
	leave(0);
}
