/* cc: -O1 */
/* A dynamic program. */
#include "marker.h"

int main(void) {
	mark();
	return 0;
}
