/* cc: -shared -fPIC */
/* A library that acts as soon as it is loaded; also one for LD_AUDIT. */
#include "marker.h"

__attribute__((constructor)) static void loaded(void) { mark(); }

unsigned la_version(unsigned version) {
	mark();
	return version;
}
