/* cc: -static -nostdlib */
/* A static program. */
#include "marker.h"

void _start(void) {
	mark();
	leave(0);
}
