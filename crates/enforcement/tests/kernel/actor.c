// What an attacker does on a restricted machine, in the system calls that need no library.
// Exit status: the payload's own when it ran, the error number of what failed otherwise.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

extern char **environ;

static int failed(void) { return errno; }

// Tells the test that we are ready, and waits until it says go.
static void meet(void) {
    char go;
    if (write(1, "ready\n", 6) != 6 || read(0, &go, 1) != 1) exit(99);
}

static int execute_fd(int fd) {
    char *arguments[] = {"payload", NULL};
    execveat(fd, "", arguments, environ, AT_EMPTY_PATH);
    return failed();
}

static int execute(const char *path) {
    char *arguments[] = {(char *)path, NULL};
    execve(path, arguments, environ);
    return failed();
}

static int in_memory(const char *path) {
    char buffer[65536];
    int from = open(path, O_RDONLY), to = memfd_create("payload", 0);
    ssize_t length;
    if (from < 0 || to < 0) return failed();
    while ((length = read(from, buffer, sizeof buffer)) > 0)
        if (write(to, buffer, length) != length) return failed();
    return execute_fd(to);
}

// Fails to execute each of the files PATH.0 to PATH.(count - 1), again and again, without a fork.
static int flood(const char *path, int count, int times) {
    char name[4096];
    for (int i = 0; i < times; i++) {
        snprintf(name, sizeof name, "%s.%d", path, i % count);
        if (execute(name) != EPERM) return failed();
    }
    return 0;
}

static int give_capability(const char *path) {
    struct vfs_cap_data data = {0};
    data.magic_etc = VFS_CAP_REVISION_2 | VFS_CAP_FLAGS_EFFECTIVE;
    data.data[0].permitted = 1u << CAP_NET_BIND_SERVICE;
    return setxattr(path, "security.capability", &data, sizeof data, 0) ? failed() : 0;
}

// Writes one byte of a file through a shared mapping: no write(2) is seen.
static int write_mapped(const char *path, int at, int byte) {
    int fd = open(path, O_RDWR);
    if (fd < 0) return failed();
    char *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) return failed();
    map[at] = byte;
    return munmap(map, 4096) ? failed() : 0;
}

static int write_text(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    return fd < 0 || write(fd, text, strlen(text)) < 0 || close(fd);
}

// Becomes root of the user namespace that it has just made.
static int become_root(unsigned user, unsigned group) {
    char users[32], groups[32];
    // Who changed its user does not own its files in /proc otherwise.
    if (prctl(PR_SET_DUMPABLE, 1)) return 1;
    snprintf(users, sizeof users, "0 %u 1", user);
    snprintf(groups, sizeof groups, "0 %u 1", group);
    return write_text("/proc/self/uid_map", users) || write_text("/proc/self/setgroups", "deny") ||
           write_text("/proc/self/gid_map", groups);
}

// Copies a program onto a new tmpfs at `at`, in a mount namespace of its own, and executes it there when told to.
static int in_namespace(const char *path, const char *at, int flags) {
    static char program[1 << 20];
    unsigned user = getuid(), group = getgid();
    int from = open(path, O_RDONLY);
    ssize_t length = read(from, program, sizeof program);
    if (from < 0 || length < 0 || unshare(flags)) return failed();
    if (flags & CLONE_NEWUSER && become_root(user, group)) return failed();
    // A namespace of root's starts with the propagation of the other one, which the test made private.
    if (mount("tmpfs", at, "tmpfs", 0, NULL) || chdir(at)) return failed();
    int to = open("payload", O_CREAT | O_WRONLY, 0755);
    if (to < 0 || write(to, program, length) != length || close(to)) return failed();
    meet();
    return execute("payload");
}

int main(int count, char **words) {
    if (count > 3 && !strcmp(words[1], "as")) {
        unsigned id = atoi(words[2]);
        if (setgroups(0, NULL) || setgid(id) || setuid(id)) return failed();
        words += 2;
        count -= 2;
    }
    if (count < 3) return 98;
    const char *what = words[1], *path = words[2];
    int fd;
    if (!strcmp(what, "run")) return execute(path);
    if (!strcmp(what, "fd")) {
        if ((fd = open(path, O_RDONLY)) < 0) return failed();
        meet();
        return execute_fd(fd);
    }
    if (!strcmp(what, "fd-path")) {
        if ((fd = open(path, O_PATH)) < 0) return failed();
        meet();
        return execute_fd(fd);
    }
    if (!strcmp(what, "proc-fd")) {
        char name[64];
        if ((fd = open(path, O_RDONLY)) < 0) return failed();
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        return execute(name);
    }
    if (!strcmp(what, "deleted")) {
        if ((fd = open(path, O_RDONLY)) < 0 || unlink(path)) return failed();
        return execute_fd(fd);
    }
    if (!strcmp(what, "memory")) return in_memory(path);
    if (!strcmp(what, "in-namespace") && count == 4) return in_namespace(path, words[3], CLONE_NEWNS);
    if (!strcmp(what, "in-user-namespace") && count == 4)
        return in_namespace(path, words[3], CLONE_NEWNS | CLONE_NEWUSER);
    if (!strcmp(what, "flood") && count == 5) return flood(path, atoi(words[3]), atoi(words[4]));
    if (!strcmp(what, "setcap")) return give_capability(path);
    if (!strcmp(what, "write-mapped") && count == 5) return write_mapped(path, atoi(words[3]), atoi(words[4]));
    if (!strcmp(what, "hold-write-lease")) {
        if ((fd = open(path, O_RDWR)) < 0) return failed();
        signal(SIGIO, SIG_IGN);
        if (fcntl(fd, F_SETLEASE, F_WRLCK)) return failed();
        meet();
        return 0;
    }
    if (!strcmp(what, "hold-mapping")) {
        if ((fd = open(path, O_RDWR)) < 0) return failed();
        if (mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED) return failed();
        close(fd);
        meet();
        return 0;
    }
    return 98;
}
