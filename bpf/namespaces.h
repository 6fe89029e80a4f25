/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Network namespaces that no process is in and that are mounted nowhere: a file
 * keeps them, open in some process, which is the namespace itself or a socket.
 */
#ifndef FINWAIT_NAMESPACES_H
#define FINWAIT_NAMESPACES_H

/*
 * Which namespaces the run of that number has written. Key is the inode number.
 * Full: the namespace is written again for each of its files.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u64);
} netns_written SEC(".maps");

/* Set by Go before each run. */
__u64 netns_run;

static __always_inline void write_netns(struct bpf_iter__task_file *ctx, __u32 pid, __u32 netns, bool socket)
{
	struct finwait_netns_file file = {.netns = netns, .pid = pid, .fd = ctx->fd, .socket = socket};
	__u64 run = netns_run, *written;

	written = bpf_map_lookup_elem(&netns_written, &netns);
	if (!netns || (written && *written == run))
		return;
	bpf_map_update_elem(&netns_written, &netns, &run, BPF_ANY);
	bpf_seq_write(ctx->meta->seq, &file, sizeof(file));
}

/* Namespaces of all kinds are such files; Go tells them apart. */
SEC("iter/task_file")
int find_netns(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct ns_common *ns;
	struct socket *sock;
	__u32 pid;

	if (!file || !task)
		return 0;
	pid = task->tgid;
	sock = bpf_sock_from_file(file);
	if (sock) {
		write_netns(ctx, pid, BPF_CORE_READ(sock, sk, __sk_common.skc_net.net, ns.inum), true);
		return 0;
	}
	if (BPF_CORE_READ(file, f_inode, i_sb, s_magic) != NSFS_MAGIC)
		return 0;
	ns = BPF_CORE_READ(file, f_inode, i_private);
	write_netns(ctx, pid, BPF_CORE_READ(ns, inum), false);
	return 0;
}

#endif
