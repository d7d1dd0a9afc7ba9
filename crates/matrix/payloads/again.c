/* cc: -static */
/* With an argument: says that it runs, waits for a line, and executes the file that it runs from. Without: marks. */
#include "marker.h"
#include <unistd.h>

int main(int argc, char **argv) {
	char byte;
	if (argc == 1) {
		mark();
		return 0;
	}
	if (write(1, "r", 1) != 1 || read(0, &byte, 1) != 1) return 1;
	execl("/proc/self/exe", argv[0], (char *)0);
	return 2;
}
