/* cc: -O1 */
/* swapper A B PROGRAM: swaps the names A and B as fast as it can while it executes PROGRAM, for some seconds. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
	if (argc != 4) return 1;
	pid_t other = fork();
	if (other == 0) {
		for (;;)
			if (renameat2(AT_FDCWD, argv[1], AT_FDCWD, argv[2], RENAME_EXCHANGE)) perror("renameat2");
	}
	time_t end = time(0) + 3;
	for (int count = 0; count < 2000 && time(0) < end; count++) {
		pid_t child = fork();
		if (child == 0) {
			execl(argv[3], argv[3], (char *)0);
			_exit(1);
		}
		waitpid(child, 0, 0);
	}
	kill(other, SIGKILL);
	return 0;
}
