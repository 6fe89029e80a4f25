/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Full sockets: what inet_sock_set_state says, put right. */
#ifndef FINWAIT_SOCKET_H
#define FINWAIT_SOCKET_H

#define CGROUP_DEPTH 32 /* deepest cgroup that is searched for an ancestor */

/* Global, as emit_if_wanted is; it takes the task's address. */
__noinline bool in_filter_cgroup(__u64 addr)
{
	const volatile struct finwait_filter *f = the_filter();
	struct task_struct *task = (struct task_struct *)addr;
	struct cgroup_subsys_state *css;
	struct cgroup *cgroup;
	__u64 id;

	css = &BPF_CORE_READ(task, cgroups, dfl_cgrp)->self;
	for (int depth = 0; depth < CGROUP_DEPTH && css; depth++) {
		cgroup = container_of(css, struct cgroup, self);
		id = BPF_CORE_READ(cgroup, kn, id);
		for (__u32 i = 0; i < FILTER_MAX && i < f->cgroup_len; i++) {
			if (f->cgroup[i] == id)
				return true;
		}
		css = BPF_CORE_READ(css, parent);
	}
	return false;
}

static __always_inline void take_task(struct finwait_who *who, struct task_struct *task, __u8 origin)
{
	who->origin = origin;
	who->pid = task->tgid;
	who->uid = BPF_CORE_READ(task, cred, uid.val);
	who->cgroup_id = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
	who->in_cgroup = the_filter()->cgroup_len && in_filter_cgroup(address_of(task));
	/* The string ends where it ends; an earlier owner's name may be longer. */
	__builtin_memset(who->comm, 0, sizeof(who->comm));
	BPF_CORE_READ_STR_INTO(&who->comm, task, group_leader, comm);
}

/* The caller of connect or listen. Right only where current is the caller. */
static __always_inline void take_owner(struct finwait_who *who, __u8 origin)
{
	take_task(who, bpf_get_current_task_btf(), origin);
}

/*
 * Has this process opened the file, by socket or accept? A file keeps the
 * credentials object of who has, and no two processes share one: fork makes
 * another (copy_creds). If it is this process's, nobody else has opened the file;
 * if it is not, it may have changed its own since, as execve and setuid do.
 */
static __always_inline bool has_opened(struct task_struct *task, struct file *file)
{
	const struct cred *opener = BPF_CORE_READ(file, f_cred);

	return opener && opener == BPF_CORE_READ(task, cred);
}

/*
 * Who has accepted the socket, where no probe has said so: whoever opened its
 * file, if that is who calls now, to close it as a rule. The probe tier needs it
 * where the kernel has no security_sock_graft.
 */
static __always_inline void learn_accept(struct finwait_who *who, const struct sock *sk, __u8 old)
{
	if (who->role == ROLE_SERVER && who->origin != ORIGIN_ACCEPT && old != LISTEN && sk->sk_lock.owned &&
	    has_opened(bpf_get_current_task_btf(), BPF_CORE_READ(sk, sk_socket, file)))
		take_owner(who, ORIGIN_ACCEPT);
}

/*
 * connect and listen hold the socket's lock as its owner, in the context of
 * the caller; so does nothing that runs in someone else's context, but the
 * backlog, in which neither happens.
 */
static __always_inline void learn_who(struct finwait_who *who, const struct sock *sk, __u8 old, __u8 new)
{
	if (old == LISTEN)
		who->role = ROLE_SERVER;
	if (old != CLOSE) {
		learn_accept(who, sk, old);
		return;
	}
	if (new == SYN_RECV) {
		who->role = ROLE_SERVER; /* the owner came with the listener's storage */
		return;
	}
	who->role = new == LISTEN ? ROLE_SERVER : ROLE_CLIENT;
	if (sk->sk_lock.owned)
		take_owner(who, new == LISTEN ? ORIGIN_LISTEN : ORIGIN_CONNECT);
}

/*
 * Keeps a transition that cannot be told yet; it is told with the next. There
 * is room for one, the transition out of CLOSE: after it the socket has all it
 * is going to have. Two have to wait: connecting, where the filter hangs on the
 * port that the kernel is about to choose, and the birth of an accepted socket.
 * That one has a cookie and address of its own only from 6.15 on (a3a128f611a9
 * "inet: consolidate inet_csk_clone_lock()"), and where it comes from is known
 * when its half-open connection is complete.
 */
static __always_inline void hold(struct conn *c, const struct transition *t)
{
	c->held_ns = t->time_ns;
	c->held_since_ns = t->since_ns;
	c->held_old = t->old;
	c->held_new = t->new;
}

/* Tells the held transition, with the tuple of the one that follows. */
static __always_inline void release(struct conn *c, struct sock *sk, const struct transition *next,
				    bool wanted)
{
	struct transition t = *next;

	t.time_ns = c->held_ns;
	t.since_ns = c->held_since_ns;
	t.old = c->held_old;
	t.new = c->held_new;
	t.evidence = EVIDENCE_KERNEL;
	t.reason = REASON_UNKNOWN;
	c->held_ns = 0;
	if (t.new == SYN_RECV) {
		request_join(&t, sk, &c->who, wanted);
		count(t.old, t.new);
		if (t.old == CLOSE && next->new == ESTABLISHED &&settled && !opened_by_data(sk))
			ledger_add(syn_cookies);
	}
	offer(&t, &c->who, wanted);
}

/* An accepted socket is born: its storage, if any, is a copy of its listener's. */
static __always_inline void be_born(struct conn *c, struct sock *sk, struct transition *t)
{
	struct scratch *here = scratch_here();

	if (here)
		here->child = (__u64)sk;
	if (!c) {
		ledger_add(not_held);
		count(t->old, t->new);
		return;
	}
	c->since_ns = t->time_ns;
	learn_who(&c->who, sk, t->old, t->new);
	hold(c, t);
}

/* Tells a transition of a full socket and notes it in the socket's storage. */
static __always_inline void tell(struct conn *c, struct sock *sk, struct transition *t, enum verdict verdict)
{
	static struct finwait_who nobody; /* not const: see emit_if_wanted */

	if (!c) {
		if (verdict == LATER)
			ledger_add(not_held);
		offer(t, &nobody, verdict == PASS);
		return;
	}
	t->since_ns = c->since_ns;
	c->since_ns = t->time_ns;
	if (c->held_ns && (c->held_new == SYN_RECV || verdict == PASS))
		release(c, sk, t, verdict == PASS);
	c->held_ns = 0;
	/* What a listener accepts may pass where it does not, and inherits its owner. */
	if (verdict == DROP && t->new != LISTEN && !know_all)
		return;
	learn_who(&c->who, sk, t->old, t->new);
	if (verdict == LATER && t->new != CLOSE)
		hold(c, t);
	else
		offer(t, &c->who, verdict == PASS);
}

/* Puts the socket into gauges, unless it is there, and tells whether it was. */
static __always_inline bool claim_conn(struct conn *c)
{
	return __sync_val_compare_and_swap(&c->claimed, 0, 1);
}

/* A socket's next transition is never the same as its last. */
static __always_inline __u16 transition_id(int old, int new)
{
	return (__u16)(old << 8 | new);
}

/*
 * A socket that leaves another state than the one it is known to be in has made
 * a transition for which no program was run. The gauges follow.
 */
static __always_inline void catch_missed(const struct transition *t, const struct conn *c)
{
	if (c->state == t->old)
		return;
	ledger_add(missed);
	gauge_move(t->net, t->tuple.netns, c->state, t->old);
}

/*
 * A socket in CLOSE is in no gauge. One that is older than the tracer, and not
 * claimed yet, is claimed by what it does.
 */
static __always_inline void gauge_socket(const struct transition *t, const struct conn *c, bool claimed)
{
	if (c)
		gauge_move(t->net, t->tuple.netns, claimed ? t->old : CLOSE, t->new);
}

#endif
