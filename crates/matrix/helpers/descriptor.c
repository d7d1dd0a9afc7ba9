/* cc: -static */
/* descriptor HOW FILE: gets a descriptor of FILE, says so, waits for a line, and executes the descriptor. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

extern char **environ;

static void fail(const char *what) {
	perror(what);
	exit(2);
}

/* Opens by io_uring: one entry, with the plain system calls. */
static int by_ring(const char *path, int two) {
	struct io_uring_params parameters = {0};
	int ring = syscall(SYS_io_uring_setup, 4, &parameters);
	if (ring < 0) fail("io_uring_setup");
	size_t size = parameters.sq_off.array + parameters.sq_entries * sizeof(unsigned);
	size_t cq_size = parameters.cq_off.cqes + parameters.cq_entries * sizeof(struct io_uring_cqe);
	if (cq_size > size) size = cq_size;
	char *rings = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	struct io_uring_sqe *entry = mmap(0, parameters.sq_entries * sizeof *entry, PROT_READ | PROT_WRITE, MAP_SHARED,
		ring, IORING_OFF_SQES);
	if (rings == MAP_FAILED || (void *)entry == MAP_FAILED) fail("mmap of io_uring");
	static struct open_how how = {.flags = O_RDONLY};
	memset(entry, 0, sizeof *entry);
	entry->opcode = two ? IORING_OP_OPENAT2 : IORING_OP_OPENAT;
	entry->fd = AT_FDCWD;
	entry->addr = (unsigned long)path;
	if (two) {
		entry->len = sizeof how;
		entry->off = (unsigned long)&how;
	}
	*(unsigned *)(rings + parameters.sq_off.array) = 0;
	__atomic_store_n((unsigned *)(rings + parameters.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) < 0) fail("io_uring_enter");
	struct io_uring_cqe *answer = (void *)(rings + parameters.cq_off.cqes);
	if (answer->res < 0) fprintf(stderr, "io_uring: %d\n", answer->res);
	return answer->res;
}

/* A file handle, as file servers use it. */
static int by_handle(const char *path) {
	struct {
		struct file_handle head;
		char bytes[MAX_HANDLE_SZ];
	} handle = {.head.handle_bytes = MAX_HANDLE_SZ};
	int mount;
	if (name_to_handle_at(AT_FDCWD, path, &handle.head, &mount, 0)) fail("name_to_handle_at");
	int home = open("/home", O_RDONLY | O_DIRECTORY);
	return open_by_handle_at(home, &handle.head, O_RDONLY);
}

/* Another process opens it, and sends the descriptor. */
static int by_message(const char *path) {
	int pair[2];
	char byte = 0, room[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec part = {&byte, 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) fail("socketpair");
	if (fork() == 0) {
		int file = open(path, O_RDONLY);
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(header), &file, sizeof file);
		_exit(sendmsg(pair[1], &message, 0) != 1);
	}
	int file = -1;
	if (recvmsg(pair[0], &message, 0) != 1 || !CMSG_FIRSTHDR(&message)) fail("recvmsg");
	memcpy(&file, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof file);
	return file;
}

int main(int argc, char **argv) {
	if (argc != 3) return 1;
	const char *how = argv[1], *path = argv[2];
	int file = -1;
	if (!strcmp(how, "path")) file = open(path, O_PATH);
	else if (!strcmp(how, "openat-ring")) file = by_ring(path, 0);
	else if (!strcmp(how, "openat2-ring")) file = by_ring(path, 1);
	else if (!strcmp(how, "handle")) file = by_handle(path);
	else if (!strcmp(how, "message")) file = by_message(path);
	else file = open(path, O_RDONLY);
	if (file < 0) fail("open");
	if (!strcmp(how, "deleted") && unlink(path)) fail("unlink");
	char byte;
	if (write(1, "r", 1) != 1 || read(0, &byte, 1) != 1) return 3;
	if (!strcmp(how, "proc")) {
		char name[64];
		snprintf(name, sizeof name, "/proc/self/fd/%d", file);
		execve(name, argv, environ);
	} else {
		syscall(SYS_execveat, file, "", argv, environ, AT_EMPTY_PATH);
	}
	fail("execute");
}
