/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Mini-sockets: what the kernel keeps of a connection in TIME_WAIT, or in
 * FIN_WAIT2 once nobody owns it. A tier of evidence (timer.h) says when one
 * begins, moves on or ends; what that means is said here.
 *
 *	begin  --> join (its full socket closes) --> [move to TIME_WAIT] --> end
 *
 * Any of them may run on another CPU at the same time, so that each step is
 * claimed by a compare-and-swap of mini.state before it is told. What the map
 * cannot guard against is that an element which one CPU still looks at is
 * deleted and used again by another; only a sweep looks for long enough.
 */
#ifndef FINWAIT_MINI_H
#define FINWAIT_MINI_H

/* Length of a jiffy, set by the loader. */
const volatile __u64 jiffy_ns = 0;

/* Not yet joined with the closing of its full socket. */
#define NOT_JOINED NUM_STATES

/*
 * Between its cancel and its start a timer that is armed anew belongs to a CPU
 * with interrupts off: longer than this is an end, or a virtual CPU that is
 * not run; see settle_later.
 */
#define CANCEL_SETTLES_NS 10000000ULL

static __always_inline struct inet_timewait_sock *mini_sock(__u64 addr)
{
	return (struct inet_timewait_sock *)addr;
}

static __always_inline __u32 mini_substate(__u64 addr)
{
	return BPF_CORE_READ(mini_sock(addr), tw_substate);
}

static __always_inline __u64 mini_cookie(__u64 addr)
{
	return BPF_CORE_READ(mini_sock(addr), __tw_common.skc_cookie.counter);
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
	m->tw_cookie = mini_cookie(addr);
	m->cookie = m->tw_cookie;
	m->substate = mini_substate(addr);
}

/* Is m about what is at addr now? The slab hands addresses out again at once. */
static __always_inline bool same_mini(const struct mini *m, __u64 addr)
{
	struct inet_timewait_sock *tw = mini_sock(addr);

	/* Without a cookie at first it gets one when a tool such as ss asks. */
	if (m->tw_cookie)
		return m->tw_cookie == mini_cookie(addr);
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

static __always_inline struct mini *mini_insert(__u64 addr, struct mini *m)
{
	if (bpf_map_update_elem(&minis, &addr, m, BPF_ANY))
		return NULL;
	return bpf_map_lookup_elem(&minis, &addr);
}

/* A mini-socket has been made; its full socket is about to close. */
static __always_inline void mini_begin(__u64 addr)
{
	struct mini m = {};

	read_mini(&m, addr);
	m.state = NOT_JOINED;
	mini_insert(addr, &m); /* no room: mini_join counts it */
	if (bpf_map_update_elem(&handoff, &m.tuple, &addr, BPF_ANY))
		ledger_add(handoff_full);
}

/* A mini-socket made before finwait started shows itself by ending. */
static __always_inline struct mini *mini_adopt(__u64 addr)
{
	struct mini m = {};

	read_mini(&m, addr);
	m.state = m.substate;
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
	if (!m)
		ledger_add(unfollowed);
	if (!m || __sync_val_compare_and_swap(&m->state, NOT_JOINED, t->old) != NOT_JOINED) {
		/* No room, or gone as soon as it came: it was there all the same. */
		m = &unfollowed;
		read_mini(m, addr);
		m->state = t->old;
	}
	m->cookie = t->cookie;
	c = bpf_sk_storage_get(&conns, sk, NULL, 0);
	if (c) {
		m->who = c->who;
		m->since_ns = c->since_ns;
	}
	if (mini_substate(addr) == TIME_WAIT)
		mini_move(m, t->old, TIME_WAIT, t->time_ns);
	else
		watch_mini(addr);
}

/* The timer has been armed anew: what looked like an end was none. */
static __always_inline void mini_rearm(struct mini *m, __u64 addr, __u64 now)
{
	m->cancelled_ns = 0;
	m->moved_ns = 0;
	if (m->state != FIN_WAIT2 || mini_substate(addr) != TIME_WAIT)
		return;
	mini_move(m, FIN_WAIT2, TIME_WAIT, now);
	unwatch_mini(addr);
}

/* Its timer has been cancelled: its end, or the first half of arming it anew. */
static __always_inline void mini_cancel(struct mini *m, __u64 addr, __u64 now)
{
	m->cancelled_ns = now;
	m->moved_ns = 0;
	m->substate = mini_substate(addr);
	if (m->state == FIN_WAIT2 && m->substate == TIME_WAIT)
		m->moved_ns = time_wait_began(addr, m->since_ns, now);
}

/* The mini-socket is gone since time_ns. */
static __always_inline void mini_end(struct mini *m, __u64 addr, __u64 time_ns)
{
	__u32 state;

	/* Its full socket's end was never seen. */
	if (__sync_val_compare_and_swap(&m->state, NOT_JOINED, m->substate) == NOT_JOINED)
		bpf_map_delete_elem(&handoff, &m->tuple);
	if (m->moved_ns)
		mini_move(m, FIN_WAIT2, TIME_WAIT, m->moved_ns);
	state = m->state;
	if (state == CLOSE || !mini_move(m, state, CLOSE, time_ns))
		return;
	unwatch_mini(addr);
	bpf_map_delete_elem(&minis, &addr);
}

/* Tells an orphan's move to TIME_WAIT, if it has moved. */
static __always_inline void sweep_orphan(__u64 addr, __u64 now)
{
	struct mini *m = bpf_map_lookup_elem(&minis, &addr);

	if (m && same_mini(m, addr))
		catch_up(m, addr, now);
	if (!m || m->state != FIN_WAIT2)
		unwatch_mini(addr);
}

/* The timer cancelled at that time was not armed anew. */
static __always_inline void settle(__u64 addr, __u64 time_ns)
{
	struct mini *m = bpf_map_lookup_elem(&minis, &addr);

	if (m && m->cancelled_ns == time_ns)
		mini_end(m, addr, time_ns);
}

/*
 * Notes what this CPU has cancelled now, or with an address of 0 that it has
 * gone on to something else, and returns what it had noted before. That has
 * ended, unless it is what the CPU is at work on: whatever is at addr.
 */
static __always_inline struct cancelled note_cancel(const struct cancelled *now, __u64 addr)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct cancelled before = {}, *slot;

	slot = bpf_map_lookup_elem(&cancels, &cpu);
	if (!slot)
		return before;
	before = *slot;
	slot->time_ns = now->time_ns;
	slot->tw_cookie = now->tw_cookie;
	if (__sync_val_compare_and_swap(&slot->addr, before.addr, now->addr) != before.addr) {
		slot->addr = now->addr; /* sweep_cancelled has settled it meanwhile */
		before.addr = 0;
	}
	if (before.addr && before.addr != addr)
		settle(before.addr, before.time_ns);
	return before;
}

/*
 * Settles what a CPU has cancelled last, if it has not touched a mini-socket's
 * timer since. mod_timer leaves entry.pprev set between cancel and start; only
 * a removal clears it (detach_timer).
 */
static __always_inline void settle_later(__u32 cpu, __u64 now)
{
	struct cancelled *c;
	struct mini *m;
	__u64 addr, time_ns;

	c = bpf_map_lookup_elem(&cancels, &cpu);
	if (!c || !c->addr)
		return;
	addr = c->addr;
	time_ns = c->time_ns;
	if (now < time_ns + CANCEL_SETTLES_NS)
		return;
	m = bpf_map_lookup_elem(&minis, &addr);
	if (m && same_mini(m, addr) && BPF_CORE_READ(mini_sock(addr), tw_timer.entry.pprev))
		return;
	if (__sync_val_compare_and_swap(&c->addr, addr, 0) == addr)
		settle(addr, time_ns);
}

#endif
