/* cc: -static */
/* memfd FLAGS FILE: executes the content of FILE from memory. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <unistd.h>

extern char **environ;

int main(int argc, char **argv) {
	if (argc != 3) return 1;
	int memory = syscall(SYS_memfd_create, "payload", strtoul(argv[1], 0, 0));
	int file = open(argv[2], O_RDONLY);
	if (memory < 0 || file < 0) return perror("memfd: create"), 2;
	while (sendfile(memory, file, 0, 1 << 20) > 0) {}
	syscall(SYS_execveat, memory, "", argv, environ, AT_EMPTY_PATH);
	return perror("memfd: execute"), 3;
}
