/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Full sockets: what inet_sock_set_state says, put right. */
#ifndef FINWAIT_SOCKET_H
#define FINWAIT_SOCKET_H

static __always_inline void map_ipv4(__u8 *addr, __be32 ipv4)
{
	__u32 *words = (__u32 *)addr;

	words[0] = 0;
	words[1] = 0;
	words[2] = bpf_htonl(0xffff);
	words[3] = ipv4;
}

/*
 * inet_num is 0 once a socket is closed, while inet_sport is left from an
 * earlier connection when a socket connects or listens once more and the port
 * is yet to be chosen (inet_hash_connect, inet_csk_get_port). So each is right
 * where the other is wrong.
 */
static __always_inline __u16 local_port(const struct sock *sk, __u8 old)
{
	__be16 port = 0;

	if (old == CLOSE)
		return BPF_CORE_READ(sk, __sk_common.skc_num);
	bpf_core_read(&port, sizeof(port), &((const struct inet_sock *)sk)->inet_sport);
	return bpf_ntohs(port);
}

static __always_inline void read_socket(struct transition *t, const struct sock *sk)
{
	t->family = sk->__sk_common.skc_family;
	if (t->family == AF_INET) {
		map_ipv4(t->tuple.laddr, sk->__sk_common.skc_rcv_saddr);
		map_ipv4(t->tuple.raddr, sk->__sk_common.skc_daddr);
	} else {
		bpf_core_read(t->tuple.laddr, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_core_read(t->tuple.raddr, 16, &sk->__sk_common.skc_v6_daddr);
	}
	t->tuple.netns = sk->__sk_common.skc_net.net->ns.inum;
	t->tuple.rport = bpf_ntohs(sk->__sk_common.skc_dport);
	t->tuple.lport = local_port(sk, t->old);
}

#define CGROUP_DEPTH 32 /* deepest cgroup that is searched for an ancestor */

static __always_inline bool in_filter_cgroup(struct task_struct *task)
{
	struct cgroup_subsys_state *css;
	struct cgroup *cgroup;
	__u64 id;

	css = &BPF_CORE_READ(task, cgroups, dfl_cgrp)->self;
	for (int depth = 0; depth < CGROUP_DEPTH && css; depth++) {
		cgroup = container_of(css, struct cgroup, self);
		id = BPF_CORE_READ(cgroup, kn, id);
		for (__u32 i = 0; i < FILTER_MAX && i < filter_cgroup_len; i++) {
			if (filter_cgroup[i] == id)
				return true;
		}
		css = BPF_CORE_READ(css, parent);
	}
	return false;
}

/* The caller of connect or listen. Right only where current is the caller. */
static __always_inline void take_owner(struct finwait_who *who, __u8 origin)
{
	struct task_struct *task = bpf_get_current_task_btf();

	who->origin = origin;
	who->pid = task->tgid;
	who->uid = bpf_get_current_uid_gid();
	who->cgroup_id = bpf_get_current_cgroup_id();
	who->in_cgroup = filter_cgroup_len && in_filter_cgroup(task);
	/* The string ends where it ends; an earlier owner's name may be longer. */
	__builtin_memset(who->comm, 0, sizeof(who->comm));
	bpf_core_read_str(who->comm, sizeof(who->comm), &task->group_leader->comm);
}

/*
 * connect and listen hold the socket's lock as its owner, in the context of
 * the caller; so does nothing that runs in someone else's context, but the
 * backlog, in which neither happens.
 */
static __always_inline void learn_who(struct finwait_who *who, const struct sock *sk, __u8 old, __u8 new)
{
	if (old != CLOSE)
		return;
	if (new == SYN_RECV) {
		who->role = ROLE_SERVER; /* the owner came with the listener's storage */
		return;
	}
	who->role = new == LISTEN ? ROLE_SERVER : ROLE_CLIENT;
	if (sk->sk_lock.owned)
		take_owner(who, new == LISTEN ? ORIGIN_LISTEN : ORIGIN_CONNECT);
}

/*
 * Keeps a transition whose filter hangs on what the socket does not have yet;
 * it is told with the next. There is room for one, the transition out of CLOSE:
 * after it the socket has all it is going to have.
 */
static __always_inline void hold(struct conn *c, const struct transition *t)
{
	c->held_ns = t->time_ns;
	c->held_since_ns = t->since_ns;
	c->held_old = t->old;
	c->held_new = t->new;
}

/* Tells the held transition, with the tuple of the one that follows. */
static __always_inline void release(struct conn *c, const struct transition *next)
{
	struct transition t = *next;

	t.time_ns = c->held_ns;
	t.since_ns = c->held_since_ns;
	t.old = c->held_old;
	t.new = c->held_new;
	t.evidence = EVIDENCE_KERNEL;
	c->held_ns = 0;
	emit_if_wanted(&t, &c->who);
}

/*
 * Up to 6.14 an accepted socket enters SYN_RECV before it has an address, a
 * remote port or a cookie of its own (it still has the listener's; fixed by
 * a3a128f611a9 "inet: consolidate inet_csk_clone_lock()").
 */
static __always_inline bool unborn(const struct transition *t)
{
	return t->new == SYN_RECV && !t->tuple.rport;
}

/* Tells a transition of a full socket and notes it in the socket's storage. */
static __always_inline void tell(struct sock *sk, struct transition *t, enum verdict verdict)
{
	static const struct finwait_who nobody = {};
	struct conn *c;

	c = bpf_sk_storage_get(&conns, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!c) {
		ledger_add(storage_failed);
		if (verdict == LATER || unborn(t))
			ledger_add(not_held);
		else if (verdict == PASS)
			emit_if_wanted(t, &nobody);
		return;
	}
	if (t->old == CLOSE && t->new == SYN_RECV) { /* cloned from the listener's */
		c->since_ns = 0;
		c->held_ns = 0;
	}
	t->since_ns = c->since_ns;
	learn_who(&c->who, sk, t->old, t->new);
	if (c->held_ns && verdict == PASS)
		release(c, t);
	c->since_ns = t->time_ns;
	c->held_ns = 0;
	if (verdict == PASS && !unborn(t))
		emit_if_wanted(t, &c->who);
	else if ((verdict == LATER || unborn(t)) && t->new != CLOSE)
		hold(c, t);
}

#endif
