/* cc: -shared -fPIC */
/* A library whose function marks when the word in it was changed. */
#include "marker.h"
#include "word.h"

void act(void) {
	if (is_loud()) mark();
}
