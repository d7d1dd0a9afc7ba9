/* cc: -static */
/* Says that it runs, waits for a line, and marks: with an argument, in a child that it makes then. */
#include "marker.h"
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
	char byte;
	if (write(1, "r", 1) != 1 || read(0, &byte, 1) != 1) return 1;
	if (argc > 1) {
		pid_t child = fork();
		if (child) return child < 0 || waitpid(child, 0, 0) != child;
	}
	mark();
	return 0;
}
