/* cc: -static */
/* inject HOW: puts code, or a word, into a process that runs already. The process marks when it got through. */
#define _GNU_SOURCE
#include "code.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

/* What the target calls again and again, with room for the code. */
void idle(void);
__asm__(".pushsection .text\n.globl idle\nidle:\n	ret\n	.skip 255, 0x90\n.popsection\n");

/* What it looks at. */
static volatile int word;

static void fail(const char *what) {
	perror(what);
	exit(2);
}

/* The target: a child that is idle until something was put into it. It does not outlive the test. */
static pid_t target(void) {
	pid_t child = fork();
	if (child < 0) fail("fork");
	if (child) return child;
	alarm(20);
	for (;;) {
		idle();
		if (word) {
			mark();
			_exit(0);
		}
		usleep(1000);
	}
}

/* Another program, listed, which has begun when this returns. */
static pid_t other(int be_traced) {
	int pair[2];
	char byte;
	if (pipe2(pair, O_CLOEXEC)) fail("pipe");
	pid_t child = fork();
	if (child < 0) fail("fork");
	if (!child) {
		if (be_traced && ptrace(PTRACE_TRACEME, 0, 0, 0)) fail("PTRACE_TRACEME");
		execl("/bin/sleep", "sleep", "20", (char *)0);
		fail("sleep");
	}
	close(pair[1]);
	if (read(pair[0], &byte, 1) != 0) fail("pipe");
	return child;
}

static void end(pid_t child) {
	kill(child, SIGKILL);
	waitpid(child, 0, 0);
}

/* It is stopped: writes the code where it goes on. */
static void put(pid_t child) {
	struct user_regs_struct registers;
	int status;
	if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) {
		fprintf(stderr, "the target did not stop\n");
		end(child);
		exit(2);
	}
	if (ptrace(PTRACE_GETREGS, child, 0, &registers)) fail("PTRACE_GETREGS");
	for (size_t at = 0; at < (size_t)(code_end - code); at += sizeof(long)) {
		long part = 0;
		memcpy(&part, code + at, sizeof part);
		if (ptrace(PTRACE_POKETEXT, child, registers.rip + at, part)) fail("PTRACE_POKETEXT");
	}
	/* The system call that it was in is not begun again. */
	registers.orig_rax = -1;
	if (ptrace(PTRACE_SETREGS, child, 0, &registers)) fail("PTRACE_SETREGS");
	if (ptrace(PTRACE_DETACH, child, 0, 0)) fail("PTRACE_DETACH");
	waitpid(child, 0, 0);
}

static void must(long result, pid_t child, const char *what) {
	if (result >= 0) return;
	int error = errno;
	end(child);
	errno = error;
	fail(what);
}

static void write_memory(const char *path, pid_t child) {
	int memory = open(path, O_WRONLY);
	must(memory, child, path);
	must(pwrite(memory, code, code_end - code, (off_t)&idle), child, "pwrite");
	close(memory);
}

int main(int argc, char **argv) {
	const char *how = argc > 1 ? argv[1] : "";
	char path[64];
	if (!strcmp(how, "code")) {
		return write(1, code, code_end - code) != code_end - code;
	} else if (!strcmp(how, "attach")) {
		pid_t child = other(0);
		must(ptrace(PTRACE_ATTACH, child, 0, 0), child, "PTRACE_ATTACH");
		put(child);
	} else if (!strcmp(how, "seize")) {
		pid_t child = other(0);
		must(ptrace(PTRACE_SEIZE, child, 0, 0), child, "PTRACE_SEIZE");
		must(ptrace(PTRACE_INTERRUPT, child, 0, 0), child, "PTRACE_INTERRUPT");
		put(child);
	} else if (!strcmp(how, "traceme")) {
		put(other(1));
	} else if (!strcmp(how, "writev")) {
		pid_t child = target();
		int one = 1;
		struct iovec from = {&one, sizeof one}, to = {(void *)&word, sizeof word};
		must(process_vm_writev(child, &from, 1, &to, 1, 0), child, "process_vm_writev");
		waitpid(child, 0, 0);
	} else if (!strcmp(how, "memory")) {
		pid_t child = target();
		snprintf(path, sizeof path, "/proc/%d/mem", child);
		write_memory(path, child);
		waitpid(child, 0, 0);
	} else if (!strcmp(how, "thread-memory")) {
		pid_t child = target();
		snprintf(path, sizeof path, "/proc/%d/task/%d/mem", child, child);
		write_memory(path, child);
		waitpid(child, 0, 0);
	} else if (!strcmp(how, "own-memory")) {
		int memory = open("/proc/self/mem", O_WRONLY);
		if (memory < 0) fail("/proc/self/mem");
		if (pwrite(memory, code, code_end - code, (off_t)&idle) < 0) fail("pwrite");
		idle();
	} else if (!strcmp(how, "module")) {
		/* A protocol that the kernel does not have: it asks for a module. */
		return socket(AF_RDS, SOCK_SEQPACKET, 0) < 0;
	}
	return 1;
}
