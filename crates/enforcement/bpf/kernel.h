/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the programs read of the kernel: only the fields that are read, found by name when they are loaded (CO-RE), so
 * that one object fits every kernel. The names and types are those of include/linux of Linux 5.8 to 6.17.
 */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;
typedef long long s64;
/* What bpf_helper_defs.h calls them. */
typedef u8 __u8;
typedef u16 __u16;
typedef u32 __u32;
typedef u64 __u64;
typedef s32 __s32;
typedef s64 __s64;
typedef u16 __be16;
typedef u32 __be32;
typedef u32 __wsum;
typedef _Bool bool;
enum { false, true };

enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
};

/* Flags of bpf_map_update_elem. */
enum { BPF_ANY = 0, BPF_NOEXIST = 1, BPF_EXIST = 2 };

/* Commands of bpf(2), `enum bpf_cmd`. */
enum { BPF_PROG_LOAD = 5, BPF_LINK_UPDATE = 29, BPF_LINK_DETACH = 34 };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	int counter;
} atomic_t;

struct timespec64 {
	s64 tv_sec;
	long tv_nsec;
};

struct user_namespace {
	int level;
};

struct super_block {
	u32 s_dev;
	unsigned long s_magic;
	struct user_namespace *s_user_ns;
};

struct inode {
	u16 i_mode;
	struct super_block *i_sb;
	unsigned long i_ino;
	u32 i_rdev;
	s64 i_size;
	atomic_t i_writecount;
	u32 i_generation;
	struct timespec64 i_ctime;
};

/* Linux 6.6 renamed the field. */
struct inode___renamed {
	struct timespec64 __i_ctime;
};

/* Linux 6.11 took it apart. */
struct inode___apart {
	s64 i_ctime_sec;
	u32 i_ctime_nsec;
};

struct qstr {
	const unsigned char *name;
};

struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
};

struct vfsmount {
	struct dentry *mnt_root;
	struct super_block *mnt_sb;
};

struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct file {
	struct inode *f_inode;
	u32 f_mode;
	struct path f_path;
	void *private_data;
};

/* Since Linux 6.13 an open file of overlayfs holds this, not the file below it itself. */
struct ovl_file {
	struct file *realfile;
};

/* btrfs numbers inodes anew in each subvolume. */
struct btrfs_key {
	u64 objectid;
};

struct btrfs_root {
	struct btrfs_key root_key;
};

struct btrfs_inode {
	struct btrfs_root *root;
	struct inode vfs_inode;
};

struct linux_binprm {
	struct file *file;
};

struct vm_area_struct {
	struct file *vm_file;
	void *anon_vma;
};

struct mm_struct {
	struct file *exe_file;
};

typedef struct {
	u32 val;
} kuid_t;

struct cred {
	kuid_t uid;
};

struct task_struct {
	struct mm_struct *mm;
	unsigned int personality;
	int pid;
	int tgid;
	struct task_struct *real_parent;
	const struct cred *cred;
};

struct iattr {
	unsigned int ia_valid;
};

struct bpf_map {
	char name[16];
};

union bpf_attr {
	struct {
		u32 prog_type;
	};
};

enum kernel_read_file_id {
	READING_MODULE = 2,
	READING_KEXEC_IMAGE = 3,
	READING_KEXEC_INITRAMFS = 4,
};

enum kernel_load_data_id {
	LOADING_MODULE = 2,
	LOADING_KEXEC_IMAGE = 3,
	LOADING_KEXEC_INITRAMFS = 4,
};

#pragma clang attribute pop
