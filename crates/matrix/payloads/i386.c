/* cc: -m32 -static -nostdlib -fno-pic -no-pie */
/* A static program of the 32-bit ABI. */
#include "marker.h"

void _start(void) {
	mark();
	leave(0);
}
