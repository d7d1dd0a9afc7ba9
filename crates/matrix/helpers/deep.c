/* cc: -static */
/* deep FILE: executes FILE, by its name alone, in a folder whose path is longer than the kernel can say. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

extern char **environ;

int main(int argc, char **argv) {
	char name[201];
	if (argc != 2) return 1;
	char *end = strrchr(argv[1], '/');
	if (!end) return 1;
	*end = 0;
	if (chdir(argv[1])) return perror(argv[1]), 2;
	memset(name, 'd', 200);
	name[200] = 0;
	if (access(name, F_OK)) {
		/* The first time: the file goes all the way down. */
		for (int i = 0; i < 24; i++) {
			if (mkdir(name, 0777)) return perror("mkdir"), 3;
			chmod(name, 0777);
			char below[256];
			snprintf(below, sizeof below, "%s/%s", name, end + 1);
			if (rename(end + 1, below) || chdir(name)) return perror("rename"), 3;
		}
	} else {
		for (int i = 0; i < 24; i++)
			if (chdir(name)) return perror("chdir"), 3;
	}
	char *words[] = {end + 1, 0};
	execve(end + 1, words, environ);
	return perror("execve"), 4;
}
