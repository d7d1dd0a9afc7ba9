/* cc: -O1 -ldl */
/* rewriter HOW TARGET [PLACE]: says that it is ready, waits for a line, changes the word in TARGET (payloads/word.h), and
   has it run. TARGET is below the home folder unless it is absolute; PLACE is what is written to in its stead.
   It marks, too, when TARGET does not run as long as it is unchanged: then nothing was shown. */
#define _GNU_SOURCE
#include "marker.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* The word as it lies in a file. */
static const unsigned char WORD[] = {0xf0, 0xee, 0xdb, 0x1e, 0x77, 0x5e, 0xde, 0xc0};
static const unsigned char LOUD = 0xf1;

static void fail(const char *what) {
	perror(what);
	exit(2);
}

static void ready(void) {
	char byte;
	if (write(1, "r", 1) != 1 || read(0, &byte, 1) != 1) exit(3);
}

static int open_to_write(const char *path) {
	int file = open(path, O_RDWR);
	if (file < 0) fail("open to write");
	return file;
}

static off_t place_of_word(int file) {
	off_t size = lseek(file, 0, SEEK_END);
	char *bytes = mmap(0, size, PROT_READ, MAP_SHARED, file, 0);
	if (bytes == MAP_FAILED) fail("mmap");
	char *found = memmem(bytes, size, WORD, sizeof WORD);
	off_t place = found ? found - bytes : -1;
	munmap(bytes, size);
	if (place < 0) {
		fprintf(stderr, "no word\n");
		exit(4);
	}
	return place;
}

static void change(int file, off_t place, unsigned char byte) {
	if (pwrite(file, &byte, 1, place) != 1) fail("write");
}

static void execute(const char *path) {
	execl(path, path, (char *)0);
	fail("execute");
}

static int runs(const char *path) {
	int status;
	pid_t child = fork();
	if (child == 0) {
		execl(path, path, (char *)0);
		_exit(1);
	}
	return waitpid(child, &status, 0) == child && status == 0;
}

/* Where labels hold, what was written lately is refused once, and read then. */
static void run_unchanged(const char *path) {
	for (int count = 0; count < 500; count++) {
		if (runs(path)) return;
		usleep(10000);
	}
	mark();
	fail("execute unchanged");
}

/* Another process changes what this one has loaded. */
static void library(const char *path) {
	ready();
	void *loaded = 0;
	for (int count = 0; count < 500 && !loaded; count++) {
		if (count) usleep(10000);
		loaded = dlopen(path, RTLD_NOW);
	}
	void (*act)(void) = loaded ? (void (*)(void))dlsym(loaded, "act") : 0;
	if (!act) {
		mark();
		fail("dlopen");
	}
	if (fork() == 0) {
		int file = open_to_write(path);
		change(file, place_of_word(file), LOUD);
		_exit(0);
	}
	wait(0);
	act();
}

/* A shared mapping from before. */
static void mapping(const char *path, int is_kept) {
	int file = open_to_write(path);
	off_t place = place_of_word(file);
	unsigned char *bytes = mmap(0, place + 1, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (bytes == MAP_FAILED) fail("mmap to write");
	close(file);
	ready();
	bytes[place] = LOUD;
	if (!is_kept) munmap(bytes, place + 1);
	execute(path);
}

/* One process changes it back and forth while another executes it, for some seconds. */
static void toggle(const char *path) {
	off_t place = place_of_word(open(path, O_RDONLY));
	ready();
	run_unchanged(path);
	pid_t writer = fork();
	if (writer == 0) {
		for (;;) {
			int file = open(path, O_RDWR);
			if (file < 0) continue;
			change(file, place, LOUD);
			close(file);
			usleep(500);
			file = open(path, O_RDWR);
			if (file < 0) continue;
			change(file, place, WORD[0]);
			close(file);
			usleep(500);
		}
	}
	time_t end = time(0) + 3;
	for (int count = 0; count < 2000 && time(0) < end; count++) runs(path);
	kill(writer, SIGKILL);
}

int main(int argc, char **argv) {
	if (argc < 3) return 1;
	const char *how = argv[1];
	char target[4096];
	snprintf(target, sizeof target, "%s%s%s", argv[2][0] == '/' ? "" : getenv("HOME"), argv[2][0] == '/' ? "" : "/",
		argv[2]);
	if (!strcmp(how, "library")) library(target);
	else if (!strcmp(how, "mapping")) mapping(target, 0);
	else if (!strcmp(how, "mapping-kept")) mapping(target, 1);
	else if (!strcmp(how, "toggle")) toggle(target);
	else if (!strcmp(how, "descriptor")) {
		int file = open_to_write(target);
		ready();
		change(file, place_of_word(file), LOUD);
		close(file);
		execute(target);
	} else if (!strcmp(how, "below")) {
		ready();
		run_unchanged(target);
		int file = open_to_write(argv[3]);
		change(file, place_of_word(file), LOUD);
		fsync(file);
		close(file);
		file = open("/proc/sys/vm/drop_caches", O_WRONLY);
		if (file >= 0 && write(file, "3", 1) != 1) fail("drop_caches");
		execute(target);
	}
	return 0;
}
