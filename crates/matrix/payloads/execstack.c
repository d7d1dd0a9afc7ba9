/* cc: -static -nostdlib -z execstack */
/* A static program that asks for an executable stack. */
#include "marker.h"

void _start(void) {
	mark();
	leave(0);
}
