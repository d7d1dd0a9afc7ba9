// SPDX-License-Identifier: GPL-2.0
/*
 * What may run, decided in the kernel by a lookup: never by a question to user space.
 *
 * Compiled twice: TIER=1 hangs the programs into the LSM hooks, TIER=2 changes what the security functions return.
 * What they decide is the same code. The gate puts labels into a map ahead of time; a file without a label that holds
 * for exactly this version of it is refused. The labels are in one hash map, which forgets nothing by itself.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include "cordon.h"

char LICENSE[] SEC("license") = "GPL";

#if TIER == 1
#define HOOK(lsm, function) SEC("lsm/" lsm)
#else
#define HOOK(lsm, function) SEC("fmod_ret/security_" function)
#endif

#define EPERM 1
#define PROT_READ 1
#define PROT_EXEC 4
#define READ_IMPLIES_EXEC 0x0400000
#define FMODE_WRITE 2
#define ATTR_SIZE (1 << 3)
#define PTRACE_MODE_ATTACH 2
#define S_IFMT 00170000
#define S_IFCHR 0020000
#define S_IFBLK 0060000
#define BINFMT_MAGIC 0x42494e4d
#define BPF_FS_MAGIC 0xcafe4a11
#define BTRFS_MAGIC 0x9123683e
#define OVERLAY_MAGIC 0x794c7630
#define PROC_MAGIC 0x9fa0
#define MEMORY_MAJOR 1
#define MINOR_BITS 20

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct mode);
} cordon_mode SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct control);
} cordon_control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct key);
	__type(value, struct label);
} cordon_labels SEC(".maps");

/* What threads of the gate see when they open a file, by the thread. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, u32);
	__type(value, struct sight);
} cordon_sights SEC(".maps");

/* The superblock that has a device number, and how many had it before. */
struct superblock {
	u64 address;
	u32 count;
	u32 zero;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, u32);
	__type(value, struct superblock);
} cordon_mounts SEC(".maps");

/* Files and folders that only the gate may change. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct key);
	__type(value, u32);
} cordon_own SEC(".maps");

/* Block devices that hold mounted filesystems. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, u32);
	__type(value, u32);
} cordon_disks SEC(".maps");

/* When a program was last heard of for code in memory: those that compile do it all the time. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct key);
	__type(value, u64);
} cordon_heard SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} cordon_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, u32);
	__type(value, u64);
} cordon_counters SEC(".maps");

/*
 * How many folders and mounts of a path are told: the verifier's work, and so the time that loading takes, grows with
 * the square.
 */
#define PATH_DEPTH 28
#define PROGRAM_DEPTH 16

/* How long a program is not heard of again for code in memory. */
#define HEARD_NANOSECONDS 60000000000ULL

static __always_inline struct mode *mode(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&cordon_mode, &zero);
}

static __always_inline bool restricting(void)
{
	struct mode *found = mode();

	return found && found->state == STATE_RESTRICTING;
}

static __always_inline void count(u32 counter)
{
	u64 *value = bpf_map_lookup_elem(&cordon_counters, &counter);

	if (value)
		*value += 1;
}

/* The inode that holds the content: below overlayfs it is that of the layer. */
static __always_inline struct inode *content(struct file *file)
{
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	struct file *below;

	if (BPF_CORE_READ(inode, i_sb, s_magic) != OVERLAY_MAGIC)
		return inode;
	below = BPF_CORE_READ(file, private_data);
	if (bpf_core_type_exists(struct ovl_file))
		below = BPF_CORE_READ((struct ovl_file *)below, realfile);
	return below ? BPF_CORE_READ(below, f_inode) : inode;
}

static __always_inline void identify(struct inode *inode, struct key *key)
{
	struct super_block *sb = BPF_CORE_READ(inode, i_sb);
	struct superblock *known;

	key->inode = BPF_CORE_READ(inode, i_ino);
	key->volume = 0;
	key->device = BPF_CORE_READ(sb, s_dev);
	key->generation = BPF_CORE_READ(inode, i_generation);
	key->zero = 0;
	known = bpf_map_lookup_elem(&cordon_mounts, &key->device);
	key->mount = known ? known->count : 0;
	if (BPF_CORE_READ(sb, s_magic) == BTRFS_MAGIC) {
		/* Where its types are unknown, nothing on it has a label: see the gate. */
		if (bpf_core_type_exists(struct btrfs_inode)) {
			struct btrfs_inode *btrfs =
				(void *)inode - bpf_core_field_offset(struct btrfs_inode, vfs_inode);

			key->volume = BPF_CORE_READ(btrfs, root, root_key.objectid);
		}
	}
}

static __always_inline void look(struct inode *inode, struct version *version)
{
	version->zero = 0;
	version->size = BPF_CORE_READ(inode, i_size);
	if (bpf_core_field_exists(((struct inode___apart *)0)->i_ctime_sec)) {
		version->ctime_seconds = BPF_CORE_READ((struct inode___apart *)inode, i_ctime_sec);
		/* The highest bit says that someone asked for it (Linux 6.13). */
		version->ctime_nanoseconds =
			BPF_CORE_READ((struct inode___apart *)inode, i_ctime_nsec) & 0x7fffffff;
	} else if (bpf_core_field_exists(((struct inode___renamed *)0)->__i_ctime)) {
		version->ctime_seconds = BPF_CORE_READ((struct inode___renamed *)inode, __i_ctime.tv_sec);
		version->ctime_nanoseconds = BPF_CORE_READ((struct inode___renamed *)inode, __i_ctime.tv_nsec);
	} else {
		version->ctime_seconds = BPF_CORE_READ(inode, i_ctime.tv_sec);
		version->ctime_nanoseconds = BPF_CORE_READ(inode, i_ctime.tv_nsec);
	}
}

static __always_inline bool is_same(const struct version *a, const struct version *b)
{
	return a->ctime_seconds == b->ctime_seconds && a->ctime_nanoseconds == b->ctime_nanoseconds &&
	       a->size == b->size;
}

/*
 * What follows are global functions of numbers: the verifier looks at each once, and not at each place that calls it.
 * Pointers pass through them as numbers, and what they point to is read with care.
 */

/* Whether the file may run: 0 and the classes of its label, eight bits up, or else why not. */
__noinline int judge(u64 address)
{
	struct inode *inode = (void *)address;
	struct mode *now = mode();
	struct version version;
	struct label *label;
	struct key key;

	identify(inode, &key);
	label = bpf_map_lookup_elem(&cordon_labels, &key);
	/* In an execve(2) the kernel keeps writers away from here on; whoever maps the file is asked again. */
	if (BPF_CORE_READ(inode, i_writecount.counter) > 0)
		return REASON_BEING_WRITTEN;
	if (!label || !now || !label->settled)
		return REASON_UNLISTED;
	look(inode, &version);
	if (!is_same(&label->version, &version))
		return REASON_CHANGED;
	if (label->epochs[now->epoch & 1] != now->epoch)
		return REASON_STALE;
	return label->inode == key.inode ? (label->classes & 0xff) << 8 : REASON_UNLISTED;
}

#define REASON(judged) ((judged) & 0xff)
#define CLASSES(judged) ((judged) >> 8)

/* The program of the calling process; none for a thread of the kernel. */
static __always_inline struct file *program(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, mm, exe_file);
}

static __always_inline u32 classes_of_program(void)
{
	struct file *file = program();
	int judged = file ? judge((u64)content(file)) : REASON_UNLISTED;

	return REASON(judged) ? 0 : CLASSES(judged);
}

static __always_inline struct control *control(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&cordon_control, &zero);
}

/* Whether the gate calls. Where none runs, one that starts may take the place: it is known by its program. */
static __always_inline bool is_gate(void)
{
	struct control *known = control();

	if (!known)
		return false;
	if (known->gate)
		return known->gate == bpf_get_current_pid_tgid() >> 32;
	return classes_of_program() & CLASS_GATE;
}

/*
 * Writes a path's components from the last to the first, through all mounts, until there are `most` bytes, a power of
 * two, or `depth` components; the buffer has room for one more name. How many bytes there are is kept in the event, so that the verifier knows
 * the same of it in each round and does not try them all. Answers whether the beginning is missing.
 */
static __always_inline bool walk(struct dentry *dentry, struct vfsmount *at, u8 *buffer, u32 most, u32 depth,
					volatile u32 *bytes)
{
	struct mount *mount = (void *)at - bpf_core_field_offset(struct mount, mnt);

	*bytes = 0;
	for (u32 i = 0; i < depth; i++) {
		struct dentry *parent = BPF_CORE_READ(dentry, d_parent);
		u32 used = *bytes;
		long length;

		if (dentry == BPF_CORE_READ(mount, mnt.mnt_root)) {
			struct mount *below = BPF_CORE_READ(mount, mnt_parent);

			if (below == mount)
				return false;
			dentry = BPF_CORE_READ(mount, mnt_mountpoint);
			mount = below;
			continue;
		}
		if (used >= most)
			return true;
		length = bpf_probe_read_kernel_str(buffer + (used & (most - 1)), NAME_BYTES,
						   BPF_CORE_READ(dentry, d_name.name));
		if (length <= 0)
			return true;
		*bytes = used + length;
		/* A file that exists in memory only has a name, and no place. */
		if (dentry == parent)
			return false;
		dentry = parent;
	}
	return true;
}

/* A pointer that the verifier knows, as a number. */
static __always_inline u64 number(const void *pointer)
{
	u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), &pointer);
	return value;
}

/* What there is to tell, in one number. */
#define WHAT(hook, reason, guard, refused) ((hook) | (reason) << 8 | (guard) << 16 | (u32)(refused) << 24)

static __always_inline struct event *begin_event(u32 what)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct event *event;

	if (what >> 24)
		count(COUNTER_REFUSED);
	event = bpf_ringbuf_reserve(&cordon_events, sizeof(*event), 0);
	if (!event) {
		count(COUNTER_EVENTS_LOST);
		return 0;
	}
	event->at = bpf_ktime_get_ns();
	event->cgroup = bpf_get_current_cgroup_id();
	event->hook = what & 0xff;
	event->reason = what >> 8 & 0xff;
	event->guard = what >> 16 & 0xff;
	event->refused = what >> 24;
	event->pid = bpf_get_current_pid_tgid() >> 32;
	event->parent = BPF_CORE_READ(task, real_parent, tgid);
	event->user = bpf_get_current_uid_gid();
	event->path_bytes = 0;
	event->program_bytes = 0;
	event->cut = 0;
	return event;
}

/*
 * Tells the gate of a file, after the verdict and without a say in it. The inode may be 0.
 *
 * Whoever executes is often gone when the gate looks, so its program is told too.
 */
__noinline int tell_of(u32 what, u64 inode, u64 dentry, u64 mount)
{
	struct key key = {};
	struct event *event;
	struct file *file;

	if (inode)
		identify((void *)inode, &key);
	event = begin_event(what);
	if (!event)
		return 0;
	event->key = key;
	event->cut = walk((void *)dentry, (void *)mount, event->path, PATH_BYTES, PATH_DEPTH, &event->path_bytes);
	file = program();
	if (file)
		walk(BPF_CORE_READ(file, f_path.dentry), BPF_CORE_READ(file, f_path.mnt), event->program,
		     PROGRAM_BYTES, PROGRAM_DEPTH, &event->program_bytes);
	bpf_ringbuf_submit(event, 0);
	return 0;
}

/* Tells the gate of what is about no file. Few programs of those that call this have the verifier's patience for paths. */
__noinline int tell(u32 what)
{
	struct event *event = begin_event(what);

	if (!event)
		return 0;
	__builtin_memset(&event->key, 0, sizeof(event->key));
	bpf_ringbuf_submit(event, 0);
	return 0;
}

static __always_inline void tell_of_file(struct file *file, u32 what)
{
	tell_of(what, (u64)content(file), (u64)BPF_CORE_READ(file, f_path.dentry),
	     (u64)BPF_CORE_READ(file, f_path.mnt));
}

/* How a guard is set: off while the machine is not restricted, and for the gate itself. */
__noinline int guarded(u32 guard)
{
	struct control *known;

	if (!restricting() || is_gate())
		return GUARD_OFF;
	known = control();
	return known ? known->guards[guard & 15] : GUARD_ENFORCE;
}

/* Holds what was tried against a guard. */
static __always_inline int guard(u32 guard, u32 hook)
{
	u32 set = guarded(guard);

	if (set == GUARD_OFF)
		return 0;
	tell(WHAT(hook, REASON_GUARD, guard, set == GUARD_ENFORCE));
	return set == GUARD_ENFORCE ? -EPERM : 0;
}

/* The same for what was tried on a file. */
static __always_inline int guard_file(u32 guard, u32 hook, struct file *file)
{
	u32 set = guarded(guard);

	if (set == GUARD_OFF)
		return 0;
	tell_of_file(file, WHAT(hook, REASON_GUARD, guard, set == GUARD_ENFORCE));
	return set == GUARD_ENFORCE ? -EPERM : 0;
}

/* Code that no file holds. The processes that compile are heard of once a minute. */
__noinline int anonymous(u32 hook)
{
	struct control *known = control();
	u32 set = known ? known->guards[GUARD_ANONYMOUS_CODE] : GUARD_ENFORCE;
	struct file *file = program();
	struct key key = {};
	u64 now, *heard;

	if (set == GUARD_OFF || classes_of_program() & CLASS_JIT)
		return 0;
	if (file)
		identify(content(file), &key);
	now = bpf_ktime_get_ns();
	heard = bpf_map_lookup_elem(&cordon_heard, &key);
	if (!heard || now - *heard > HEARD_NANOSECONDS) {
		bpf_map_update_elem(&cordon_heard, &key, &now, BPF_ANY);
		tell(WHAT(hook, REASON_ANONYMOUS, GUARD_ANONYMOUS_CODE, set == GUARD_ENFORCE));
	} else if (set == GUARD_ENFORCE) {
		count(COUNTER_REFUSED);
	}
	return set == GUARD_ENFORCE;
}

static __always_inline int execute(struct linux_binprm *bprm)
{
	struct file *file = bprm->file;
	u32 judged, reason;

	if (!restricting())
		return 0;
	count(COUNTER_ASKED);
	judged = judge((u64)content(file));
	reason = REASON(judged);
	if (!reason && CLASSES(judged) & CLASS_STACK && !(CLASSES(judged) & CLASS_JIT)) {
		struct control *known = control();

		if (!known || known->guards[GUARD_ANONYMOUS_CODE] == GUARD_ENFORCE)
			reason = REASON_STACK;
	}
	if (!reason)
		return 0;
	tell_of_file(file, WHAT(HOOK_EXECUTE, reason, 0, true));
	return -EPERM;
}

/* Asked once for an execution, and for a check whether one would be allowed (AT_EXECVE_CHECK). */
HOOK("bprm_creds_for_exec", "bprm_creds_for_exec")
int BPF_PROG(execute_file, struct linux_binprm *bprm)
{
	return execute(bprm);
}

/* Asked for the program and for each interpreter of a script. */
HOOK("bprm_check_security", "bprm_check")
int BPF_PROG(execute_program, struct linux_binprm *bprm)
{
	return execute(bprm);
}

static __always_inline int map_code(struct file *file, u32 hook)
{
	u32 reason;

	count(COUNTER_ASKED);
	if (!file)
		return anonymous(hook) ? -EPERM : 0;
	reason = REASON(judge((u64)content(file)));
	if (!reason)
		return 0;
	tell_of_file(file, WHAT(hook, reason, 0, true));
	return -EPERM;
}

#if TIER == 1
HOOK("mmap_file", "")
int BPF_PROG(map_file, struct file *file, unsigned long asked, unsigned long protection)
{
	if (!(protection & PROT_EXEC) || !restricting())
		return 0;
	return map_code(file, HOOK_MAP);
}
#else
/* The function gets what was asked for, and the hook what comes of it. */
HOOK("", "mmap_file")
int BPF_PROG(map_file, struct file *file, unsigned long asked)
{
	if (!(asked & (PROT_EXEC | PROT_READ)) || !restricting())
		return 0;
	if (!(asked & PROT_EXEC)) {
		struct task_struct *task = (void *)bpf_get_current_task();

		if (!(BPF_CORE_READ(task, personality) & READ_IMPLIES_EXEC))
			return 0;
	}
	return map_code(file, HOOK_MAP);
}
#endif

HOOK("file_mprotect", "file_mprotect")
int BPF_PROG(protect, struct vm_area_struct *area, unsigned long asked, unsigned long protection)
{
	struct file *file;

	if (!(protection & PROT_EXEC) || !restricting())
		return 0;
	file = area->vm_file;
	/* Pages of a private mapping that were written to are no file's. */
	if (file && area->anon_vma && anonymous(HOOK_PROTECT))
		return -EPERM;
	return map_code(file, HOOK_PROTECT);
}

/*
 * What a thread of the gate opens that waits to see it: it has an entry then. The last one stays: overlayfs opens the file
 * of the layer after its own.
 */
__noinline int see(u64 address)
{
	struct inode *inode = (void *)address;
	u32 thread = bpf_get_current_pid_tgid();
	struct sight sight = {};

	identify(inode, &sight.key);
	look(inode, &sight.version);
	sight.magic = BPF_CORE_READ(inode, i_sb, s_magic);
	sight.writers = BPF_CORE_READ(inode, i_writecount.counter) > 0;
	sight.user_namespace = BPF_CORE_READ(inode, i_sb, s_user_ns, level);
	if (sight.magic == BTRFS_MAGIC && !bpf_core_type_exists(struct btrfs_inode))
		sight.magic = 0;
	bpf_map_update_elem(&cordon_sights, &thread, &sight, BPF_EXIST);
	return 0;
}

/* What was known of the file's content no longer holds. */
__noinline int forget(u64 inode)
{
	struct key key;

	identify((void *)inode, &key);
	if (bpf_map_lookup_elem(&cordon_labels, &key)) {
		bpf_map_delete_elem(&cordon_labels, &key);
		count(COUNTER_VOIDED);
	}
	return 0;
}

static __always_inline bool is_own(struct inode *inode)
{
	struct key key;

	if (!inode)
		return false;
	identify(inode, &key);
	return bpf_map_lookup_elem(&cordon_own, &key) != 0;
}

/* Whether a name is that of an own file, or of anything in an own folder. */
__noinline int is_own_name(u64 address)
{
	struct dentry *dentry = (void *)address;

	return is_own(BPF_CORE_READ(dentry, d_inode)) || is_own(BPF_CORE_READ(dentry, d_parent, d_inode));
}

/* Which guard keeps a file from being opened for writing. */
__noinline int guard_of(u64 inode_address, u64 dentry_address)
{
	struct inode *inode = (void *)inode_address;
	struct dentry *dentry = (void *)dentry_address;
	unsigned long magic = BPF_CORE_READ(inode, i_sb, s_magic);
	u32 kind = BPF_CORE_READ(inode, i_mode) & S_IFMT;
	u32 device = BPF_CORE_READ(inode, i_rdev);
	struct key key;

	if (kind == S_IFBLK)
		return bpf_map_lookup_elem(&cordon_disks, &device) ? GUARD_BLOCK_DEVICES : GUARDS;
	if (kind == S_IFCHR) {
		/* The machine's memory and ports: /dev/mem, kmem, port. */
		u32 minor = device & ((1 << MINOR_BITS) - 1);

		return device >> MINOR_BITS == MEMORY_MAJOR && (minor == 1 || minor == 2 || minor == 4) ?
			       GUARD_PROC_MEM :
			       GUARDS;
	}
	if (magic == PROC_MAGIC) {
		const unsigned char *at = BPF_CORE_READ(dentry, d_name.name);
		u32 name = 0;

		/* Three letters and the end, whatever the order of bytes. */
		bpf_probe_read_kernel(&name, sizeof(name), at);
		return name == bpf_htonl(0x6d656d00) ? GUARD_PROC_MEM : GUARDS;
	}
	if (magic == BINFMT_MAGIC)
		return GUARD_BINFMT;
	if (is_own_name(dentry_address))
		return GUARD_OWN_FILES;
	identify(inode, &key);
	return bpf_map_lookup_elem(&cordon_labels, &key) ? GUARD_WRITE_LABELLED : GUARDS;
}

static __always_inline int open_for_writing(struct file *file)
{
	u32 which = guard_of((u64)BPF_CORE_READ(file, f_inode), (u64)BPF_CORE_READ(file, f_path.dentry));

	if (which >= GUARDS)
		return 0;
	return guard_file(which, HOOK_OPEN, file);
}

HOOK("file_open", "file_open")
int BPF_PROG(open_file, struct file *file)
{
	struct mode *now = mode();
	struct control *known;
	int refused;

	if (!now || now->state == STATE_OFF)
		return 0;
	known = control();
	if (known && known->gate && known->gate == bpf_get_current_pid_tgid() >> 32)
		see((u64)BPF_CORE_READ(file, f_inode));
	if (!(file->f_mode & FMODE_WRITE))
		return 0;
	refused = now->state == STATE_RESTRICTING ? open_for_writing(file) : 0;
	/* What is not opened is not written. */
	if (!refused)
		forget((u64)BPF_CORE_READ(file, f_inode));
	return refused;
}

/* A device number may pass to another superblock; what is known of the one before counts for nothing then. */
HOOK("sb_set_mnt_opts", "sb_set_mnt_opts")
int BPF_PROG(mount_superblock, struct super_block *sb)
{
	u32 device = BPF_CORE_READ(sb, s_dev);
	struct superblock *known = bpf_map_lookup_elem(&cordon_mounts, &device);
	struct superblock next = { .address = (u64)sb, .count = 1 };

	if (known && known->address == (u64)sb)
		return 0;
	if (known)
		next.count = known->count + 1;
	bpf_map_update_elem(&cordon_mounts, &device, &next, BPF_ANY);
	return 0;
}

#if TIER == 1
SEC("lsm/sb_free_security")
#else
SEC("fentry/security_sb_free")
#endif
int BPF_PROG(free_superblock, struct super_block *sb)
{
	u32 device = BPF_CORE_READ(sb, s_dev);
	struct superblock *known = bpf_map_lookup_elem(&cordon_mounts, &device);

	/* The next one may lie at the same address. */
	if (known && known->address == (u64)sb)
		known->address = 0;
	return 0;
}

static __always_inline int change(struct dentry *at)
{
	return is_own_name(number(at)) ? guard(GUARD_OWN_FILES, HOOK_CHANGE) : 0;
}

static __always_inline int set_attributes(struct dentry *dentry, struct iattr *attributes)
{
	struct mode *now = mode();

	if (!now || now->state == STATE_OFF)
		return 0;
	if (BPF_CORE_READ(attributes, ia_valid) & ATTR_SIZE)
		forget((u64)BPF_CORE_READ(dentry, d_inode));
	return now->state == STATE_RESTRICTING ? change(dentry) : 0;
}

/* The gate loads the one that fits: the hook has had another argument in front since Linux 6.9, the function since 5.12. */
HOOK("inode_setattr", "inode_setattr")
int BPF_PROG(set_attributes_2, struct dentry *dentry, struct iattr *attributes)
{
	return set_attributes(dentry, attributes);
}

HOOK("inode_setattr", "inode_setattr")
int BPF_PROG(set_attributes_3, void *mount, struct dentry *dentry, struct iattr *attributes)
{
	return set_attributes(dentry, attributes);
}

HOOK("inode_unlink", "inode_unlink")
int BPF_PROG(unlink, struct inode *folder, struct dentry *dentry)
{
	return restricting() ? change(dentry) : 0;
}

HOOK("inode_rmdir", "inode_rmdir")
int BPF_PROG(remove_folder, struct inode *folder, struct dentry *dentry)
{
	return restricting() ? change(dentry) : 0;
}

HOOK("inode_create", "inode_create")
int BPF_PROG(create, struct inode *folder, struct dentry *dentry)
{
	return restricting() ? change(dentry) : 0;
}

HOOK("inode_link", "inode_link")
int BPF_PROG(link, struct dentry *old, struct inode *folder, struct dentry *dentry)
{
	return restricting() ? change(dentry) : 0;
}

HOOK("inode_symlink", "inode_symlink")
int BPF_PROG(link_to_name, struct inode *folder, struct dentry *dentry)
{
	return restricting() ? change(dentry) : 0;
}

HOOK("inode_rename", "inode_rename")
int BPF_PROG(rename, struct inode *old_folder, struct dentry *old, struct inode *folder, struct dentry *dentry)
{
	int refused;

	if (!restricting())
		return 0;
	refused = change(old);
	return refused ? refused : change(dentry);
}

/* While nothing is pinned there is no device 0 to unmount. */
HOOK("sb_umount", "sb_umount")
int BPF_PROG(unmount, struct vfsmount *mount)
{
	struct control *known = control();
	struct super_block *sb;

	if (!restricting() || !known || !known->pins_device)
		return 0;
	sb = BPF_CORE_READ(mount, mnt_sb);
	if (BPF_CORE_READ(sb, s_magic) != BPF_FS_MAGIC || BPF_CORE_READ(sb, s_dev) != known->pins_device)
		return 0;
	return guard(GUARD_OWN_BPF, HOOK_UNMOUNT);
}

static __always_inline bool is_module(u32 id)
{
	return id == bpf_core_enum_value(enum kernel_read_file_id, READING_MODULE);
}

static __always_inline bool is_kernel(u32 id)
{
	return id == bpf_core_enum_value(enum kernel_read_file_id, READING_KEXEC_IMAGE) ||
	       id == bpf_core_enum_value(enum kernel_read_file_id, READING_KEXEC_INITRAMFS);
}

/* A module needs a label like a program; another kernel gets none. */
HOOK("kernel_read_file", "kernel_read_file")
int BPF_PROG(read_kernel_file, struct file *file, u32 id)
{
	if (!restricting() || (!is_module(id) && !is_kernel(id)))
		return 0;
	if (is_module(id) && !REASON(judge((u64)content(file))))
		return 0;
	return guard_file(is_module(id) ? GUARD_KERNEL_MODULES : GUARD_KEXEC, HOOK_READ_KERNEL_FILE, file);
}

HOOK("kernel_load_data", "kernel_load_data")
int BPF_PROG(load_kernel_data, u32 id)
{
	if (!restricting() || (!is_module(id) && !is_kernel(id)))
		return 0;
	return guard(is_module(id) ? GUARD_KERNEL_MODULES : GUARD_KEXEC, HOOK_LOAD_KERNEL_DATA);
}

static __always_inline int trace(struct task_struct *target)
{
	struct control *known = control();
	u32 which;

	if (!restricting())
		return 0;
	which = known && known->gate && known->gate == BPF_CORE_READ(target, tgid) ? GUARD_OWN_PROCESSES : GUARD_PTRACE;
	return guard(which, HOOK_TRACE);
}

HOOK("ptrace_access_check", "ptrace_access_check")
int BPF_PROG(trace_other, struct task_struct *target, unsigned int access)
{
	return access & PTRACE_MODE_ATTACH ? trace(target) : 0;
}

HOOK("ptrace_traceme", "ptrace_traceme")
int BPF_PROG(be_traced, struct task_struct *tracer)
{
	return trace((void *)bpf_get_current_task());
}

/* The service manager may: stopping the gate lifts nothing, and shutting down must work. */
HOOK("task_kill", "task_kill")
int BPF_PROG(signal, struct task_struct *target, void *info, int number)
{
	struct control *known = control();

	if (!number || !known || !known->gate || BPF_CORE_READ(target, tgid) != known->gate || !restricting() ||
	    bpf_get_current_pid_tgid() >> 32 == 1)
		return 0;
	return guard(GUARD_OWN_PROCESSES, HOOK_SIGNAL);
}

/* Programs that change what the kernel does; those of the service manager's sandboxes are not among them. */
static __always_inline bool is_invasive(u32 type)
{
	switch (type) {
	case 2: /* kprobe */
	case 5: /* tracepoint */
	case 7: /* perf event */
	case 17: /* raw tracepoint */
	case 24: /* raw tracepoint, writable */
	case 26: /* tracing */
	case 27: /* struct ops */
	case 28: /* extension */
	case 29: /* LSM */
	case 31: /* syscall */
		return true;
	default:
		return false;
	}
}

HOOK("bpf", "bpf")
int BPF_PROG(use_bpf, int command, union bpf_attr *attributes)
{
	u32 which = command == BPF_PROG_LOAD ? GUARD_BPF : GUARD_OWN_BPF;

	if (command != BPF_PROG_LOAD && command != BPF_LINK_UPDATE && command != BPF_LINK_DETACH)
		return 0;
	if (!restricting() || bpf_get_current_pid_tgid() >> 32 == 1)
		return 0;
	if (command == BPF_PROG_LOAD && !is_invasive(BPF_CORE_READ(attributes, prog_type)))
		return 0;
	return guard(which, HOOK_BPF);
}

/* Our maps are known by their names. */
HOOK("bpf_map", "bpf_map")
int BPF_PROG(use_map, struct bpf_map *map, u32 access)
{
	char name[8] = {};

	if (!(access & FMODE_WRITE) || !restricting())
		return 0;
	bpf_probe_read_kernel(name, sizeof(name), &map->name);
	if (name[0] != 'c' || name[1] != 'o' || name[2] != 'r' || name[3] != 'd' || name[4] != 'o' ||
	    name[5] != 'n' || name[6] != '_')
		return 0;
	return guard(GUARD_OWN_BPF, HOOK_BPF);
}

/* A dead gate's process id may pass to another process. */
#if TIER == 1
SEC("lsm/task_free")
#else
SEC("fentry/security_task_free")
#endif
int BPF_PROG(free_task, struct task_struct *task)
{
	struct control *known = control();
	u32 pid = BPF_CORE_READ(task, pid);

	if (known && known->gate && known->gate == pid)
		known->gate = 0;
	return 0;
}
