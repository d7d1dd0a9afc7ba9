/* cc: -static-pie -fPIE */
/* anonymous HOW [FILE]: runs code that no file of the machine holds as a program. */
#define _GNU_SOURCE
#include "code.h"
#include <elf.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096

static void *need(void *memory, const char *what) {
	if (memory == MAP_FAILED) {
		perror(what);
		exit(2);
	}
	return memory;
}

static void run(void *memory) { ((void (*)(void))memory)(); }

static void *anonymous(int protection) {
	return need(mmap(0, PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "anonymous memory");
}

static void *put(void *memory) { return memcpy(memory, code, code_end - code); }

static void make_executable(void *memory) {
	if (mprotect(memory, PAGE, PROT_READ | PROT_EXEC)) {
		perror("mprotect");
		exit(2);
	}
}

/* A static ELF program, loaded as the kernel would: userland exec. */
static void load(const char *path) {
	int file = open(path, O_RDONLY);
	struct stat status;
	if (file < 0 || fstat(file, &status)) exit(3);
	char *bytes = malloc(status.st_size);
	if (read(file, bytes, status.st_size) != status.st_size) exit(3);
	Elf64_Ehdr *head = (void *)bytes;
	Elf64_Phdr *parts = (void *)(bytes + head->e_phoff);
	for (int i = 0; i < head->e_phnum; i++) {
		if (parts[i].p_type != PT_LOAD) continue;
		unsigned long start = parts[i].p_vaddr & -(unsigned long)PAGE;
		unsigned long end = (parts[i].p_vaddr + parts[i].p_memsz + PAGE - 1) & -(unsigned long)PAGE;
		need(mmap((void *)start, end - start, PROT_READ | PROT_WRITE | PROT_EXEC,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), "segment");
		memcpy((void *)parts[i].p_vaddr, bytes + parts[i].p_offset, parts[i].p_filesz);
	}
	run((void *)head->e_entry);
}

int main(int argc, char **argv) {
	const char *how = argc > 1 ? argv[1] : "";
	if (!strcmp(how, "map")) {
		run(put(anonymous(PROT_READ | PROT_WRITE | PROT_EXEC)));
	} else if (!strcmp(how, "load") && argc == 3) {
		load(argv[2]);
	} else if (!strcmp(how, "protect")) {
		void *memory = put(anonymous(PROT_READ | PROT_WRITE));
		make_executable(memory);
		run(memory);
	} else if (!strcmp(how, "protect-file") && argc == 3) {
		int file = open(argv[2], O_RDONLY);
		void *memory = need(mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0), "private mapping");
		put(memory);
		make_executable(memory);
		run(memory);
	} else if (!strcmp(how, "dual")) {
		int memory = syscall(SYS_memfd_create, "dual", 0);
		if (ftruncate(memory, PAGE)) return 3;
		put(need(mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0), "writable mapping"));
		run(need(mmap(0, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, memory, 0), "executable mapping"));
	} else if (!strcmp(how, "implied")) {
		if (personality(READ_IMPLIES_EXEC) < 0) return 3;
		run(put(anonymous(PROT_READ | PROT_WRITE)));
	} else if (!strcmp(how, "remap") && argc == 3) {
		/* CVE-2024-47745: the mapping is made again with what reading implies, and no module is asked. */
		int file = open(argv[2], O_RDWR);
		void *memory = need(mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0), "shared mapping");
		put(memory);
		if (personality(READ_IMPLIES_EXEC) < 0) return 3;
		if (syscall(SYS_remap_file_pages, memory, PAGE, 0, 0, 0)) {
			perror("remap_file_pages");
			return 4;
		}
		run(memory);
	}
	return 1;
}
