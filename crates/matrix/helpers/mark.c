/* cc: -O1 */
/* A dynamic program that is listed, and marks. */
#include "marker.h"

int main(void) {
	mark();
	return 0;
}
