/* cc: -static */
/* may_execute FILE: marks when the kernel says that FILE may be executed (AT_EXECVE_CHECK, Linux 6.14). */
#define _GNU_SOURCE
#include "marker.h"
#include <fcntl.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

extern char **environ;

int main(int argc, char **argv) {
	int file = argc == 2 ? open(argv[1], O_RDONLY) : -1;
	if (syscall(SYS_execveat, file, "", argv, environ, AT_EMPTY_PATH | 0x10000)) return perror("may_execute"), 1;
	mark();
	return 0;
}
