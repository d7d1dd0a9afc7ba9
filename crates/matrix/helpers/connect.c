/* cc: -static */
/* connect SOCKET FILE: sends what is in FILE, and writes what is answered, until the other side is done or silent. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

int main(int argc, char **argv) {
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct timeval patience = {2, 0};
	char room[4096];
	int one = socket(AF_UNIX, SOCK_STREAM, 0), file = argc == 3 ? open(argv[2], O_RDONLY) : -1;
	if (one < 0 || file < 0) return 1;
	snprintf(address.sun_path, sizeof address.sun_path, "%s", argv[1]);
	if (connect(one, (void *)&address, sizeof address)) return perror("connect"), 2;
	if (sendfile(one, file, 0, 1 << 20) <= 0) return perror("send"), 3;
	setsockopt(one, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	for (;;) {
		ssize_t count = read(one, room, sizeof room);
		if (count <= 0) return 0;
		if (write(1, room, count) != count) return 4;
	}
}
