/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Whose the sockets are that are older than the tracer: the kernel does not
 * note who called connect or listen, but a process has the socket open. Go runs
 * find_holders once, through the files of all processes, and then claim, which
 * takes what was found: the kernel holds the socket's lock around it (since
 * 5.15), as it does around connect, listen and accept, so that no owner that is
 * learnt from those meanwhile is written over.
 *
 * The walk sees the processes of the caller's PID namespace, and no socket that
 * only io_uring or a message on its way (SCM_RIGHTS) keeps.
 */
#ifndef FINWAIT_OWNERS_H
#define FINWAIT_OWNERS_H

struct holder {
	struct finwait_who who; /* without role */
	__u64 started_ns; /* the process */
	__u64 opened; /* by that process */
};

/*
 * Who has a socket open: key is the socket. Created by find_holders, deleted by
 * take_holder, or freed by the kernel with the socket.
 * Refused (option memory limit): ledger.storage_failed; it stays without owner.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct holder);
} holders SEC(".maps");

/* The one who opened the socket comes before others, then the oldest. */
static __always_inline bool comes_first(const struct holder *h, bool opened, __u64 started_ns)
{
	if (h->who.origin == ORIGIN_UNKNOWN || opened != h->opened)
		return h->who.origin == ORIGIN_UNKNOWN || opened;
	return started_ns < h->started_ns;
}

static __always_inline bool wants_holder(struct sock *sk)
{
	struct conn *c;

	if (sk->sk_protocol != IPPROTO_TCP || sk->sk_type != SOCK_STREAM)
		return false;
	if (sk->__sk_common.skc_family != AF_INET && sk->__sk_common.skc_family != AF_INET6)
		return false;
	/* One in CLOSE has no owner; who connects or listens is going to be it. */
	if (sk->__sk_common.skc_state == CLOSE)
		return false;
	c = bpf_sk_storage_get(&conns, sk, NULL, 0);
	return !c || c->who.origin == ORIGIN_UNKNOWN;
}

SEC("iter/task_file")
int find_holders(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket *socket;
	__u64 started_ns;
	struct holder *h;
	struct sock *sk;
	bool opened;

	if (!file || !task)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk || !wants_holder(sk))
		return 0;
	h = bpf_sk_storage_get(&holders, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!h) {
		ledger_add(storage_failed);
		return 0;
	}
	opened = has_opened(task, file);
	started_ns = BPF_CORE_READ(task, group_leader, start_time);
	if (!comes_first(h, opened, started_ns))
		return 0;
	take_task(&h->who, task, ORIGIN_SNAPSHOT);
	h->started_ns = started_ns;
	h->opened = opened;
	return 0;
}

/* Gives the socket the owner that was found, if it has none. */
static __always_inline void take_holder(struct sock *sk, struct conn *c)
{
	struct holder *h = bpf_sk_storage_get(&holders, sk, NULL, 0);
	__u8 role = c->who.role;

	if (!h)
		return;
	if (c->who.origin == ORIGIN_UNKNOWN) {
		c->who = h->who;
		c->who.role = role;
	}
	bpf_sk_storage_delete(&holders, sk);
}

#endif
