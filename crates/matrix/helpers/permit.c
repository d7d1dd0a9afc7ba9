/* cc: -static */
/* permit: another listener to the kernel's questions, which permits everything, and takes its marks away and back. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/fanotify.h>
#include <unistd.h>

static const char *places[] = {"/", "/dev/shm", "/home"};

static int mark_all(int group, unsigned kind) {
	for (unsigned i = 0; i < sizeof places / sizeof *places; i++)
		if (fanotify_mark(group, FAN_MARK_ADD | kind, FAN_OPEN_EXEC_PERM, AT_FDCWD, places[i])) return -1;
	return 0;
}

int main(void) {
	int group = fanotify_init(FAN_CLASS_PRE_CONTENT | FAN_UNLIMITED_QUEUE | FAN_CLOEXEC, O_RDONLY | O_LARGEFILE);
	if (group < 0 || mark_all(group, FAN_MARK_FILESYSTEM)) return perror("permit"), 2;
	if (write(1, "r", 1) != 1) return 3;
	char room[8192] __attribute__((aligned(8)));
	for (int round = 0;; round++) {
		struct pollfd ready = {group, POLLIN, 0};
		if (poll(&ready, 1, 50) > 0) {
			ssize_t left = read(group, room, sizeof room);
			struct fanotify_event_metadata *event = (void *)room;
			for (; FAN_EVENT_OK(event, left); event = FAN_EVENT_NEXT(event, left)) {
				struct fanotify_response answer = {event->fd, FAN_ALLOW};
				if (write(group, &answer, sizeof answer) != sizeof answer) perror("answer");
				close(event->fd);
			}
		}
		fanotify_mark(group, FAN_MARK_FLUSH | FAN_MARK_MOUNT, 0, AT_FDCWD, "/");
		if (round % 2 == 0) {
			fanotify_mark(group, FAN_MARK_FLUSH | FAN_MARK_FILESYSTEM, 0, AT_FDCWD, "/");
			if (mark_all(group, FAN_MARK_FILESYSTEM)) return perror("mark"), 4;
		}
	}
}
