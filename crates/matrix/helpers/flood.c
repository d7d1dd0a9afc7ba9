/* cc: -static */
/* flood FILE PROCESSES TIMES: so many processes execute FILE so many times each, at once. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
	if (argc != 4) return 1;
	int processes = atoi(argv[2]), times = atoi(argv[3]);
	for (int i = 0; i < processes; i++) {
		pid_t child = fork();
		if (child < 0) return 2;
		if (child) continue;
		for (int j = 0; j < times; j++) {
			pid_t one = vfork();
			if (!one) {
				execl(argv[1], argv[1], (char *)0);
				_exit(0);
			}
			if (one < 0 || waitpid(one, 0, 0) != one) _exit(3);
		}
		_exit(0);
	}
	int worst = 0, status;
	while (wait(&status) > 0)
		if (status) worst = 4;
	return worst;
}
