/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the programs and the gate share: the layout of maps and events. `src/kernel/abi.rs` says the same in Rust, and
 * a test compares the two. Whoever changes a layout counts LAYOUT up, so that no gate reads the maps of another.
 */
#pragma once

#define LAYOUT 1

/* What the programs do. */
enum state {
	/* Nothing. */
	STATE_OFF = 0,
	/* Void the labels of files that are opened for writing. */
	STATE_WATCHING = 1,
	/* Refuse what has no label, too. */
	STATE_RESTRICTING = 2,
};

/* The mode word: one write switches. */
struct mode {
	u32 state;
	/* Which labels count: those of this epoch. */
	u32 epoch;
};

/* Numbered as `domain::policy_settings::Guard`, and one more. */
enum guard {
	GUARD_WRITE_LABELLED,
	GUARD_KERNEL_MODULES,
	GUARD_KEXEC,
	GUARD_PTRACE,
	GUARD_PROC_MEM,
	GUARD_BLOCK_DEVICES,
	GUARD_BINFMT,
	GUARD_BPF,
	GUARD_OWN_FILES,
	GUARD_OWN_PROCESSES,
	GUARD_OWN_BPF,
	GUARD_ANONYMOUS_CODE,
	GUARDS,
};

enum guard_mode {
	GUARD_OFF = 0,
	GUARD_AUDIT = 1,
	GUARD_ENFORCE = 2,
};

struct control {
	/* The running gate's process id as the first namespace counts; 0 when there is none. */
	u32 gate;
	/* The superblock that holds the pins; 0 when nothing is pinned. */
	u32 pins_device;
	u8 guards[16];
	/* Names the judge whose labels are those of the epoch in the mode word; only the gate reads it. */
	u8 judge[32];
};

/* Which file: what the hooks see of an inode. */
struct key {
	u64 inode;
	/* btrfs numbers inodes anew in each subvolume; 0 elsewhere. */
	u64 volume;
	u32 device;
	u32 generation;
	/* Which of the superblocks that had this device number. */
	u32 mount;
	u32 zero;
};

/* Which content. */
struct version {
	s64 ctime_seconds;
	u32 ctime_nanoseconds;
	u32 zero;
	s64 size;
};

enum {
	/* It may run with a stack that is code. */
	CLASS_STACK = 1,
	/* It may make code in memory: it compiles while it runs. */
	CLASS_JIT = 2,
	/* It is the gate's own program. */
	CLASS_GATE = 4,
};

struct label {
	/* Again: an element may be given to another key while it is read. */
	u64 inode;
	struct version version;
	/* It counts for an epoch when that stands in the place of its parity; 0 counts for none. */
	u32 epochs[2];
	u32 classes;
	/* 0 while the file is being read. */
	u32 settled;
	u8 digest[32];
};

/* What the gate's own open of a file showed. */
struct sight {
	struct key key;
	struct version version;
	u64 magic;
	/* Whether someone has it open for writing. */
	u32 writers;
	/* How deep the user namespace is that owns its superblock; 0 is the first. */
	u32 user_namespace;
};

enum hook {
	HOOK_EXECUTE = 1,
	HOOK_MAP,
	HOOK_PROTECT,
	HOOK_OPEN,
	HOOK_CHANGE,
	HOOK_READ_KERNEL_FILE,
	HOOK_LOAD_KERNEL_DATA,
	HOOK_TRACE,
	HOOK_SIGNAL,
	HOOK_UNMOUNT,
	HOOK_BPF,
};

enum reason {
	/* No label. */
	REASON_UNLISTED = 1,
	/* A label of another version. */
	REASON_CHANGED,
	REASON_BEING_WRITTEN,
	/* A label of another epoch: the policy in force does not list it. */
	REASON_STALE,
	/* Code that no file holds. */
	REASON_ANONYMOUS,
	/* A stack that is code. */
	REASON_STACK,
	/* A guard; which one is in the event. */
	REASON_GUARD,
};

#define PATH_BYTES 1024
#define PROGRAM_BYTES 512
#define NAME_BYTES 256

struct event {
	struct key key;
	/* Nanoseconds since the boot, without suspension. */
	u64 at;
	u64 cgroup;
	u32 hook;
	u32 reason;
	u32 guard;
	/* Whether it was refused. */
	u32 refused;
	s32 pid;
	s32 parent;
	u32 user;
	/* Bytes of the paths: components from the last to the first, each with a NUL. */
	u32 path_bytes;
	u32 program_bytes;
	/* Whether the beginning of the path is missing. */
	u32 cut;
	u8 path[PATH_BYTES + NAME_BYTES];
	u8 program[PROGRAM_BYTES + NAME_BYTES];
};

/* What abi.rs believes. */
_Static_assert(sizeof(struct event) == 2136, "the layout of events");
_Static_assert(__builtin_offsetof(struct event, path) == 88, "the layout of events");
_Static_assert(__builtin_offsetof(struct event, program) == 1368, "the layout of events");

enum counter {
	COUNTER_ASKED,
	COUNTER_REFUSED,
	COUNTER_EVENTS_LOST,
	COUNTER_VOIDED,
	COUNTERS,
};
