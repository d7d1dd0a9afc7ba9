/* cc: -static */
/* kernel HOW [FILE]: has the kernel load code, takes it away again, and marks when it was loaded. */
#define _GNU_SOURCE
#include "marker.h"
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/kexec.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef KEXEC_FILE_UNLOAD
#define KEXEC_FILE_UNLOAD 1
#define KEXEC_FILE_NO_INITRAMFS 4
#endif

static void need(long result, const char *what) {
	if (result >= 0) return;
	perror(what);
	exit(2);
}

/* The name by which a module is taken away: that of its file, without its end. */
static void remove_module(const char *path) {
	char name[64] = {0};
	const char *slash = strrchr(path, '/');
	strncpy(name, slash ? slash + 1 : path, sizeof name - 1);
	name[strcspn(name, ".")] = 0;
	need(syscall(SYS_delete_module, name, 0), "delete_module");
}

static void module(const char *path, int from_memory) {
	int file = open(path, O_RDONLY);
	need(file, "module");
	if (from_memory) {
		struct stat status;
		need(fstat(file, &status), "fstat");
		char *bytes = malloc(status.st_size);
		need(read(file, bytes, status.st_size) == status.st_size ? 0 : -1, "read");
		need(syscall(SYS_init_module, bytes, status.st_size, ""), "init_module");
	} else {
		need(syscall(SYS_finit_module, file, "", 0), "finit_module");
	}
	remove_module(path);
}

/* One page at 16 MiB as the other kernel. Nobody goes over to it. */
static void other_kernel(void) {
	static char page[4096] __attribute__((aligned(4096)));
	struct kexec_segment segment = {.buf = page, .bufsz = sizeof page, .mem = (void *)0x1000000, .memsz = sizeof page};
	need(syscall(SYS_kexec_load, 0x1000000, 1, &segment, KEXEC_ARCH_DEFAULT), "kexec_load");
	need(syscall(SYS_kexec_load, 0, 0, 0, KEXEC_ARCH_DEFAULT), "kexec_load of none");
}

/* The least that the kernel takes for a kernel: the head of one (Documentation/x86/boot.rst). */
static void other_kernel_file(const char *path) {
	static unsigned char image[16 * 4096];
	image[0x1f1] = 1;                     /* one sector of real mode code */
	image[0x1fe] = 0x55, image[0x1ff] = 0xaa;
	image[0x200] = 0xeb, image[0x201] = 0x6a; /* over the head, to its end */
	memcpy(image + 0x202, "HdrS", 4);
	image[0x206] = 0x0f, image[0x207] = 2; /* protocol 2.15 */
	image[0x211] = 1;                     /* loaded high */
	image[0x22c] = image[0x22d] = image[0x22e] = 0xff, image[0x22f] = 0x7f; /* initrd below */
	image[0x232] = 0x20;                  /* alignment: 2 MiB */
	image[0x234] = 1;                     /* relocatable */
	image[0x236] = 0x63;                  /* 64 bits, above 4 GiB, page tables of five levels */
	image[0x239] = 8;                     /* a command line of 2 KiB */
	image[0x25a] = 0x100000 >> 16;        /* prefers 1 MiB */
	image[0x262] = 1;                     /* needs 64 KiB */
	int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
	need(file, "image");
	need(write(file, image, sizeof image) == sizeof image ? 0 : -1, "write");
	close(file);
	file = open(path, O_RDONLY);
	need(syscall(SYS_kexec_file_load, file, -1, 1UL, "", KEXEC_FILE_NO_INITRAMFS), "kexec_file_load");
	need(syscall(SYS_kexec_file_load, -1, -1, 0UL, 0, KEXEC_FILE_UNLOAD), "kexec_file_load of none");
}

/* The number of security_file_permission among the kernel's types: what a program could attach to. */
static unsigned function_id(void) {
	int file = open("/sys/kernel/btf/vmlinux", O_RDONLY);
	struct stat status;
	need(file, "types");
	need(fstat(file, &status), "fstat");
	char *bytes = malloc(status.st_size);
	for (long got = 0, more; got < status.st_size; got += more) {
		more = read(file, bytes + got, status.st_size - got);
		need(more > 0 ? 0 : -1, "read");
	}
	/* struct btf_header */
	unsigned head, type_off, type_len, str_off;
	memcpy(&head, bytes + 4, 4), memcpy(&type_off, bytes + 8, 4);
	memcpy(&type_len, bytes + 12, 4), memcpy(&str_off, bytes + 16, 4);
	char *at = bytes + head + type_off, *end = at + type_len, *names = bytes + head + str_off;
	for (unsigned id = 1; at < end; id++) {
		unsigned name, info;
		memcpy(&name, at, 4), memcpy(&info, at + 4, 4);
		unsigned kind = info >> 24 & 31, members = info & 0xffff;
		if (kind == 12 && !strcmp(names + name, "security_file_permission")) return id;
		static const unsigned each[] = {[4] = 12, [5] = 12, [6] = 8, [13] = 8, [15] = 12, [19] = 12};
		static const unsigned once[] = {[1] = 4, [3] = 12, [14] = 4, [17] = 4};
		at += 12;
		if (kind < sizeof each / sizeof *each) at += each[kind] * members;
		if (kind < sizeof once / sizeof *once) at += once[kind];
	}
	need(-1, "no such function");
	return 0;
}

/* A program that changes what a function answers, or one that only looks. */
static void bpf(int modifies) {
	static const struct bpf_insn nothing[] = {{.code = BPF_ALU64 | BPF_MOV | BPF_K}, {.code = BPF_JMP | BPF_EXIT}};
	union bpf_attr attributes;
	memset(&attributes, 0, sizeof attributes);
	attributes.prog_type = modifies ? BPF_PROG_TYPE_TRACING : BPF_PROG_TYPE_KPROBE;
	attributes.insn_cnt = 2;
	attributes.insns = (unsigned long)nothing;
	attributes.license = (unsigned long)"GPL";
	if (modifies) {
		attributes.expected_attach_type = BPF_MODIFY_RETURN;
		attributes.attach_btf_id = function_id();
	}
	need(syscall(SYS_bpf, BPF_PROG_LOAD, &attributes, sizeof attributes), "bpf");
}

int main(int argc, char **argv) {
	const char *how = argc > 1 ? argv[1] : "", *path = argc > 2 ? argv[2] : "";
	if (!strcmp(how, "finit_module")) module(path, 0);
	else if (!strcmp(how, "init_module")) module(path, 1);
	else if (!strcmp(how, "kexec_load")) other_kernel();
	else if (!strcmp(how, "kexec_file_load")) other_kernel_file(path);
	else if (!strcmp(how, "fmod_ret")) bpf(1);
	else if (!strcmp(how, "kprobe")) bpf(0);
	else return 1;
	mark();
	return 0;
}
