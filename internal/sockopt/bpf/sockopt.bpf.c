// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// Records the socket options that a unit's processes set and read, and refuses
// those that are not on the unit's list. The programs are attached to the
// unit's control group (kernel: Documentation/bpf/prog_cgroup_sockopt.rst).
//
// Who uses this file may choose the GPL for it. The kernel gives the helpers
// that look into its own structures only to programs that say they are under it
// (bpf-helpers(7)), and by_systemd() needs them.
//
// Nothing is included, so that the object depends on the compiler alone and can
// be made again to the same bytes. Numbers and structures without a comment are
// those of the kernel's include/uapi/linux/bpf.h, which never change.

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef unsigned long long __u64;

#define SEC(name) __attribute__((section(name), used))
#define inlined static inline __attribute__((always_inline))

// How libbpf and cilium/ebpf read the definition of a map: a number is the
// length of an array, a type that of what a pointer points to.
#define NUMBER(name, value) int (*name)[value]
#define TYPE(name, type) type *name

enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_F_NO_PREALLOC = 1,
	BPF_NOEXIST = 1,
};

struct bpf_spin_lock {
	__u32 val;
};

struct bpf_sock {
	__u32 bound_dev_if;
	__u32 family;
	__u32 type;
	__u32 protocol;
};

struct bpf_sockopt {
	struct bpf_sock *sk;
	void *optval;
	void *optval_end;
	__s32 level;
	__s32 optname;
	__s32 optlen;
	__s32 retval;
};

struct task_struct;

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) = (void *)2;
static long (*const bpf_get_current_comm)(void *buf, __u32 size) = (void *)16;
static long (*const bpf_spin_lock)(struct bpf_spin_lock *lock) = (void *)93;
static long (*const bpf_spin_unlock)(struct bpf_spin_lock *lock) = (void *)94;
static long (*const bpf_probe_read_kernel)(void *dst, __u32 size, const void *src) = (void *)113;
static long (*const bpf_probe_read_kernel_str)(void *dst, __u32 size, const void *src) = (void *)115;
static __u64 (*const bpf_ktime_get_boot_ns)(void) = (void *)125;
static struct task_struct *(*const bpf_get_current_task_btf)(void) = (void *)158;

// Of the kernel's own structures no more than what is read. Where the fields
// are in the running kernel is worked out when the program is loaded, from the
// kernel's description of its types (kernel: Documentation/bpf/btf.rst).
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct user_namespace {
	struct user_namespace *parent;
};

// Up to Linux 6.2 a set of capabilities was an array of words. What follows ___
// in a name is not compared.
struct kernel_cap_struct___words {
	__u32 cap[2];
};

struct cred___words {
	struct kernel_cap_struct___words cap_effective;
};

struct kernel_cap_struct {
	__u64 val;
};

struct cred {
	struct kernel_cap_struct cap_effective;
	struct user_namespace *user_ns;
};

struct qstr {
	const unsigned char *name;
};

struct dentry {
	struct qstr d_name;
};

struct path {
	struct dentry *dentry;
};

struct file {
	struct path f_path;
};

struct mm_struct {
	struct file *exe_file;
};

struct kernfs_node {
	__u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
	__s32 level;
	struct cgroup *ancestors[1];
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct task_struct {
	__s32 tgid;
	struct css_set *cgroups;
	struct task_struct *real_parent;
	const struct cred *cred;
	struct mm_struct *mm;
};

#pragma clang attribute pop

#define HAS_FIELD(field) __builtin_preserve_field_info(field, 2)

enum call {
	CALL_SET = 0,
	CALL_GET = 1,
};

enum mode {
	MODE_OFF = 0,
	MODE_RECORD = 1,
	MODE_ENFORCE = 2,
};

enum {
	// getsockopt is held to the list too.
	FLAG_LIST_GET = 1,

	CAP_SYS_ADMIN = 21,
	TASK_COMM_LEN = 16,

	// The smallest page there is. The kernel has given the program no more than a
	// page of a value.
	PAGE = 4096,

	MAX_SEEN = 4096,
	MAX_ALLOW = 4096,
};

// One kind of call. There is no other padding than what is named: a key is
// compared byte by byte.
struct seen_key {
	__s32 level;
	__s32 optname;
	__u32 protocol;
	__u16 family;
	__u16 type;
	__u8 call;
	__u8 by_systemd;
	__u8 zero[2];
};

// Who made a call last or first, and when (CLOCK_BOOTTIME).
struct who {
	__u64 time;
	__u32 pid;
	__u8 comm[TASK_COMM_LEN];
	__u32 zero;
};

struct seen_value {
	struct bpf_spin_lock lock;
	__u32 zero;
	__u64 allowed;
	__u64 refused;
	struct who first;
	struct who last;
	// The last one that was refused; its time is 0 where none was.
	struct who last_refused;
};

struct allow_key {
	__s32 level;
	__s32 optname;
	__u32 call;
};

struct settings {
	__u32 mode;
	__u32 flags;
	// The unit's control group and how far it is below the root, or 0 and 0 where
	// any task is held to the rules.
	__u64 cgroup;
	__u32 level;
	__u32 zero;
};

// What could not be stored: calls of kinds that found the table full, or no
// memory.
struct lost {
	__u64 allowed;
	__u64 refused;
	__u64 last;
};

// Not an LRU table: a program that tries a million kinds must not push out what
// was recorded before. Not allocated beforehand: most units use a dozen.
struct {
	NUMBER(type, BPF_MAP_TYPE_HASH);
	NUMBER(map_flags, BPF_F_NO_PREALLOC);
	NUMBER(max_entries, MAX_SEEN);
	TYPE(key, struct seen_key);
	TYPE(value, struct seen_value);
} seen SEC(".maps");

struct {
	NUMBER(type, BPF_MAP_TYPE_HASH);
	NUMBER(map_flags, BPF_F_NO_PREALLOC);
	NUMBER(max_entries, MAX_ALLOW);
	TYPE(key, struct allow_key);
	TYPE(value, __u32);
} allow SEC(".maps");

struct {
	NUMBER(type, BPF_MAP_TYPE_ARRAY);
	NUMBER(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, struct settings);
} config SEC(".maps");

struct {
	NUMBER(type, BPF_MAP_TYPE_ARRAY);
	NUMBER(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, struct lost);
} overflow SEC(".maps");

// in_unit says whether the caller is in the unit's control group or below it. The
// kernel goes by the control group in which the socket was made, and the socket
// that a unix server accepts is made by the client when it connects
// (unix_stream_connect in net/unix/af_unix.c). So what the journal, the bus and
// any other server does with a connection from the unit comes here, too: it is not
// the unit's doing, and to refuse it would break the server's side.
inlined int in_unit(const struct settings *c)
{
	struct cgroup *group, *above = 0;
	struct kernfs_node *kn = 0;
	__u64 id = 0;

	if (!c->cgroup)
		return 1;
	group = bpf_get_current_task_btf()->cgroups->dfl_cgrp;
	if (group->kn->id == c->cgroup)
		return 1;
	if ((__s32)c->level >= group->level)
		return 0;
	bpf_probe_read_kernel(&above, sizeof(above), &group->ancestors[c->level]);
	bpf_probe_read_kernel(&kn, sizeof(kn), &above->kn);
	bpf_probe_read_kernel(&id, sizeof(id), &kn->id);
	return id == c->cgroup;
}

// holds_sys_admin says whether a task holds CAP_SYS_ADMIN in the initial user
// namespace.
inlined int holds_sys_admin(const struct cred *cred)
{
	const struct cred___words *words = (const void *)cred;
	__u32 low;

	if (cred->user_ns->parent)
		return 0;
	if (HAS_FIELD(words->cap_effective.cap))
		low = words->cap_effective.cap[0];
	else
		low = cred->cap_effective.val;
	return low >> CAP_SYS_ADMIN & 1;
}

// by_systemd says whether the caller is systemd: its own process in the unit's
// control group, before that executes the unit's program, or PID 1. It must never
// be refused, and what it does is not the unit's doing.
//
// Two things must hold, since names can be taken by anybody (a comm of
// "(agent)", a program called systemd-executor, systemd itself with LD_PRELOAD):
//
//  - It holds CAP_SYS_ADMIN, as systemd's process does until shortly before the
//    exec. A program of the unit that holds it can change the list as it likes
//    (it can open any map by its id), so nobody is let through who could not
//    have let himself through.
//  - It runs systemd's executable. Before systemd 255 that is a process which
//    was forked by PID 1 and has executed nothing since: then its exe_file is the
//    very struct file of PID 1's, which every exec replaces by another. From
//    systemd 255 on it is /usr/lib/systemd/systemd-executor, which PID 1 executes
//    for each process of a unit; of that the name is enough, whatever file
//    system it is on and whether or not it has been upgraded meanwhile.
inlined int by_systemd(void)
{
	static const char executor[] = "systemd-executor";
	char name[sizeof(executor) + 1] = {};
	struct task_struct *task = bpf_get_current_task_btf(), *p = task;
	struct file *exe;
	unsigned i;

	if (!holds_sys_admin(task->cred))
		return 0;
	// PID 1 itself sets options on sockets that it makes for .socket units.
	if (task->tgid == 1)
		return 1;
	exe = task->mm->exe_file;
	if (!exe)
		return 0;

	// (sd-pam), a child of the process that becomes the program, is systemd's too.
#pragma unroll
	for (i = 0; i < 3; i++) {
		p = p->real_parent;
		if (p->tgid == 1) {
			if (p->mm->exe_file == exe)
				return 1;
			break;
		}
	}

	bpf_probe_read_kernel_str(name, sizeof(name), exe->f_path.dentry->d_name.name);
#pragma unroll
	for (i = 0; i < sizeof(executor); i++)
		if (name[i] != executor[i])
			return 0;
	return 1;
}

inlined void record(const struct seen_key *key, int refused)
{
	struct seen_value *v, fresh = {};
	struct who now = {};
	__u32 zero = 0;

	now.time = bpf_ktime_get_boot_ns();
	now.pid = bpf_get_current_task_btf()->tgid;
	bpf_get_current_comm(now.comm, sizeof(now.comm));

	v = bpf_map_lookup_elem(&seen, key);
	if (!v) {
		fresh.first = now;
		// Another CPU may have been first: what it stored stays.
		bpf_map_update_elem(&seen, key, &fresh, BPF_NOEXIST);
		v = bpf_map_lookup_elem(&seen, key);
	}
	if (!v) {
		struct lost *o = bpf_map_lookup_elem(&overflow, &zero);

		if (!o)
			return;
		if (refused)
			__sync_fetch_and_add(&o->refused, 1);
		else
			__sync_fetch_and_add(&o->allowed, 1);
		o->last = now.time;
		return;
	}
	// A lock and not atomic additions: a comm must not become half of one and half
	// of another, nor a time belong to another process.
	bpf_spin_lock(&v->lock);
	v->last = now;
	if (refused) {
		v->refused++;
		v->last_refused = now;
	} else {
		v->allowed++;
	}
	bpf_spin_unlock(&v->lock);
}

inlined int decide(struct bpf_sockopt *ctx, enum call call)
{
	struct seen_key key = {};
	struct bpf_sock *sk = ctx->sk;
	struct settings *c;
	__u32 zero = 0, mode;
	int refused = 0;

	// A value larger than a page is not all there, and the call fails with EFAULT
	// on older kernels unless the length is set to 0, with which every kernel goes
	// on with the caller's own buffer. Smaller ones are left alone: a program
	// of a control group further up may want to read them.
	if (ctx->optlen > PAGE)
		ctx->optlen = 0;

	c = bpf_map_lookup_elem(&config, &zero);
	if (!c)
		return 1;
	mode = c->mode;
	if (mode == MODE_OFF || !in_unit(c))
		return 1;

	key.call = call;
	key.level = ctx->level;
	key.optname = ctx->optname;
	if (sk) {
		key.family = sk->family;
		key.type = sk->type;
		key.protocol = sk->protocol;
	}
	key.by_systemd = by_systemd();

	if (mode == MODE_ENFORCE && !key.by_systemd && (call == CALL_SET || c->flags & FLAG_LIST_GET)) {
		struct allow_key a = {.level = key.level, .optname = key.optname, .call = call};

		refused = !bpf_map_lookup_elem(&allow, &a);
	}
	record(&key, refused);
	return !refused;
}

// 0 refuses: the caller gets EPERM.
SEC("cgroup/setsockopt")
int aaunit_set(struct bpf_sockopt *ctx)
{
	return decide(ctx, CALL_SET);
}

// This hook runs after the kernel's work: the return value is left alone, so that
// a call that failed fails as it did. What is refused has been done by then, and
// the value is in the caller's memory: only the call's result says EPERM.
SEC("cgroup/getsockopt")
int aaunit_get(struct bpf_sockopt *ctx)
{
	return decide(ctx, CALL_GET);
}

char _license[] SEC("license") = "GPL";
