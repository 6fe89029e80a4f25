/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Mini-sockets: what the kernel keeps of a connection in TIME_WAIT, or in
 * FIN_WAIT2 once nobody owns it. A tier of evidence (timer.h) says when one
 * begins, moves on or ends; what that means is said here.
 *
 *	begin  --> join (its full socket closes) --> [move to TIME_WAIT] --> end
 *
 * Any of them may run on another CPU at the same time, so that each step is
 * claimed by a compare-and-swap of mini.state before it is told.
 */
#ifndef FINWAIT_MINI_H
#define FINWAIT_MINI_H

/* Length of a jiffy, set by the loader. */
const volatile __u64 jiffy_ns = 0;

/* Not yet joined with the closing of its full socket. */
#define NOT_JOINED NUM_STATES

/* From a cancel without a new start to the verdict that it was the end. */
#define END_SETTLES_NS 10000000ULL

static __always_inline struct inet_timewait_sock *mini_sock(__u64 addr)
{
	return (struct inet_timewait_sock *)addr;
}

static __always_inline __u32 mini_substate(__u64 addr)
{
	return BPF_CORE_READ(mini_sock(addr), tw_substate);
}

static __always_inline void read_mini(struct mini *m, __u64 addr)
{
	struct inet_timewait_sock *tw = mini_sock(addr);

	m->family = BPF_CORE_READ(tw, __tw_common.skc_family);
	if (m->family == AF_INET) {
		map_ipv4(m->tuple.laddr, BPF_CORE_READ(tw, __tw_common.skc_rcv_saddr));
		map_ipv4(m->tuple.raddr, BPF_CORE_READ(tw, __tw_common.skc_daddr));
	} else {
		bpf_core_read(m->tuple.laddr, 16, &tw->__tw_common.skc_v6_rcv_saddr);
		bpf_core_read(m->tuple.raddr, 16, &tw->__tw_common.skc_v6_daddr);
	}
	m->tuple.lport = bpf_ntohs(BPF_CORE_READ(tw, tw_sport));
	m->tuple.rport = bpf_ntohs(BPF_CORE_READ(tw, __tw_common.skc_dport));
	m->tuple.netns = BPF_CORE_READ(tw, __tw_common.skc_net.net, ns.inum);
	m->cookie = BPF_CORE_READ(tw, __tw_common.skc_cookie.counter);
}

/* Is m about what is at addr now? The slab hands addresses out again at once. */
static __always_inline bool same_mini(const struct mini *m, __u64 addr)
{
	struct inet_timewait_sock *tw = mini_sock(addr);
	__u64 cookie = BPF_CORE_READ(tw, __tw_common.skc_cookie.counter);

	if (m->cookie && cookie)
		return m->cookie == cookie;
	return m->tuple.lport == bpf_ntohs(BPF_CORE_READ(tw, tw_sport)) &&
	       m->tuple.rport == bpf_ntohs(BPF_CORE_READ(tw, __tw_common.skc_dport));
}

static __always_inline void watch_mini(__u64 addr)
{
	__u8 one = 1;
	long err;

	err = bpf_map_update_elem(&watch, &addr, &one, BPF_NOEXIST);
	if (!err)
		__sync_fetch_and_add(&watching, 1);
	else if (err != -EEXIST)
		ledger_add(watch_full);
}

static __always_inline void unwatch_mini(__u64 addr)
{
	if (!bpf_map_delete_elem(&watch, &addr))
		__sync_fetch_and_add(&watching, -1);
}

/* Tells a mini-socket's transition, if nobody has yet. */
static __always_inline bool mini_move(struct mini *m, __u32 old, __u32 new, __u64 time_ns)
{
	struct transition t = {};

	if (__sync_val_compare_and_swap(&m->state, old, new) != old)
		return false;
	t.tuple = m->tuple;
	t.time_ns = time_ns;
	t.since_ns = m->since_ns;
	t.cookie = m->cookie;
	t.family = m->family;
	t.old = old;
	t.new = new;
	t.evidence = EVIDENCE_TIMER;
	m->since_ns = time_ns;
	count(old, new);
	if (filter_tuple(&t.tuple, t.family) == PASS)
		emit_if_wanted(&t, &m->who);
	return true;
}

/*
 * When TIME_WAIT began, from the deadline it set. To the jiffy, and of use
 * only as long as no later segment has set the deadline anew.
 */
static __always_inline __u64 time_wait_began(__u64 addr, __u64 since_ns, __u64 now)
{
	__u64 expires = BPF_CORE_READ(mini_sock(addr), tw_timer.expires);
	__s64 left = expires - bpf_jiffies64();
	__s64 ago = (__s64)TIMEWAIT_SECONDS * 1000000000 - left * (__s64)jiffy_ns;
	__u64 began = ago > 0 ? now - ago : now;

	return began > since_ns ? began : since_ns;
}

/* Tells an orphan's move to TIME_WAIT that no tracepoint has shown. */
static __always_inline void catch_up(struct mini *m, __u64 addr, __u64 now)
{
	if (m->state != FIN_WAIT2 || mini_substate(addr) != TIME_WAIT)
		return;
	mini_move(m, FIN_WAIT2, TIME_WAIT, time_wait_began(addr, m->since_ns, now));
}

/* A mini-socket is there that was not before. */
static __always_inline struct mini *mini_insert(__u64 addr, struct mini *m)
{
	if (bpf_map_update_elem(&minis, &addr, m, BPF_ANY)) {
		ledger_add(minis_full);
		return NULL;
	}
	return bpf_map_lookup_elem(&minis, &addr);
}

/* A mini-socket has been made; its full socket is about to close. */
static __always_inline void mini_begin(__u64 addr)
{
	struct mini m = {};

	read_mini(&m, addr);
	m.state = NOT_JOINED;
	mini_insert(addr, &m);
	if (bpf_map_update_elem(&handoff, &m.tuple, &addr, BPF_ANY))
		ledger_add(handoff_full);
}

/* A mini-socket made before finwait started shows itself by ending. */
static __always_inline struct mini *mini_adopt(__u64 addr)
{
	struct mini m = {};

	read_mini(&m, addr);
	m.state = mini_substate(addr);
	return mini_insert(addr, &m);
}

/* The mini-socket that has replaced the socket with this tuple, or 0. */
static __always_inline __u64 mini_of(const struct finwait_tuple *tuple)
{
	__u64 *found, addr;

	found = bpf_map_lookup_elem(&handoff, tuple);
	if (!found)
		return 0;
	addr = *found;
	bpf_map_delete_elem(&handoff, tuple);
	return addr;
}

/*
 * A full socket has closed into the mini-socket at addr: t is what the
 * tracepoint said, its new state CLOSE. What the socket knew goes into the
 * mini-socket, and if that is in TIME_WAIT, the transition is told.
 */
static __always_inline void mini_join(__u64 addr, struct sock *sk, const struct transition *t)
{
	struct mini unfollowed = {}, *m;
	struct conn *c;

	m = bpf_map_lookup_elem(&minis, &addr);
	if (!m) { /* minis was full */
		m = &unfollowed;
		read_mini(m, addr);
	}
	m->cookie = t->cookie;
	c = bpf_sk_storage_get(&conns, sk, NULL, 0);
	if (c) {
		m->who = c->who;
		m->since_ns = c->since_ns;
	}
	m->state = t->old;
	if (mini_substate(addr) == TIME_WAIT)
		mini_move(m, t->old, TIME_WAIT, t->time_ns);
	else
		watch_mini(addr);
}

/* The timer has been armed anew: what looked like an end was none. */
static __always_inline void mini_rearm(struct mini *m, __u64 addr, __u64 now)
{
	m->ended_ns = 0;
	if (m->state == FIN_WAIT2 && mini_substate(addr) == TIME_WAIT)
		mini_move(m, FIN_WAIT2, TIME_WAIT, now);
	if (m->state == TIME_WAIT)
		unwatch_mini(addr);
}

/* The mini-socket is gone since time_ns. */
static __always_inline void mini_end(struct mini *m, __u64 addr, __u64 time_ns)
{
	__u32 state = m->state;

	if (state == NOT_JOINED) { /* its full socket's end was never seen */
		bpf_map_delete_elem(&handoff, &m->tuple);
		m->state = state = TIME_WAIT;
	}
	if (state == CLOSE || !mini_move(m, state, CLOSE, time_ns))
		return;
	unwatch_mini(addr);
	bpf_map_delete_elem(&minis, &addr);
}

/* What no tracepoint tells: see watch. Run by Go every so often. */
static __always_inline void sweep_mini(__u64 addr, __u64 now)
{
	struct mini *m = bpf_map_lookup_elem(&minis, &addr);

	if (!m) {
		unwatch_mini(addr);
		return;
	}
	if (!m->ended_ns) {
		catch_up(m, addr, now);
		if (m->state == TIME_WAIT)
			unwatch_mini(addr);
		return;
	}
	/*
	 * mod_timer leaves entry.pprev set between its cancel and its start;
	 * only the removal of the timer clears it (detach_timer).
	 */
	if (now - m->ended_ns < END_SETTLES_NS)
		return;
	if (same_mini(m, addr) && BPF_CORE_READ(mini_sock(addr), tw_timer.entry.pprev))
		return;
	mini_end(m, addr, m->ended_ns);
}

#endif
