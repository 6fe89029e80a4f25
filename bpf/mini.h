/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Mini-sockets: what the kernel keeps of a connection in TIME_WAIT, or in
 * FIN_WAIT2 once nobody owns it. A tier of evidence says when one begins, moves
 * on or ends; what that means is said here.
 *
 *	begin --> join (its full socket closes) --> [move to TIME_WAIT] --> end
 *
 * Any of them may run on another CPU at the same time, so that each step is
 * claimed by a compare-and-swap of mini.state before it is told. What the map
 * cannot guard against is that an element which one CPU still looks at is
 * deleted and used again by another; only sweeps look for long enough.
 */
#ifndef FINWAIT_MINI_H
#define FINWAIT_MINI_H

/* Length of a jiffy, set by the loader. */
const volatile __u64 jiffy_ns = 0;

/* Much more than lies between the making of a mini-socket and the closing of its full socket. */
#define JOIN_TAKES_NS 10000000ULL

#define NOT_JOINED NUM_STATES /* its full socket has not closed yet */
#define ENDED (NUM_STATES + 1) /* nor has it now that the mini-socket is gone */

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

/* Is it still in the kernel's table? */
static __always_inline bool mini_hashed(__u64 addr)
{
	return BPF_CORE_READ(mini_sock(addr), __tw_common.skc_node.pprev) != NULL;
}

static __always_inline void read_mini(struct mini *m, __u64 addr)
{
	struct inet_timewait_sock *tw = mini_sock(addr);

	m->net = read_head(&m->tuple, &m->family, &tw->__tw_common);
	m->tuple.lport = bpf_ntohs(BPF_CORE_READ(tw, tw_sport));
	m->tw_cookie = mini_cookie(addr);
	m->cookie = m->tw_cookie;
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

/* What is known of the mini-socket at addr, or NULL. */
static __always_inline struct mini *mini_find(__u64 addr)
{
	struct mini *m = bpf_map_lookup_elem(&minis, &addr);

	if (!m && minis_put_aside)
		m = bpf_map_lookup_elem(&minis_aside, &addr);
	return m;
}

static __always_inline bool mini_put(__u64 addr, const struct mini *m)
{
	long err = bpf_map_update_elem(&minis, &addr, m, BPF_ANY);

	if (err != -EBUSY)
		return !err;
	__sync_fetch_and_add(&minis_put_aside, 1);
	return !bpf_map_update_elem(&minis_aside, &addr, m, BPF_ANY);
}

/* One that the map refuses to delete is in CLOSE, and as good as gone. */
static __always_inline void mini_forget(__u64 addr)
{
	if (bpf_map_delete_elem(&minis, &addr) && minis_put_aside)
		bpf_map_delete_elem(&minis_aside, &addr);
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
	if (tier == EVIDENCE_TIMER && !bpf_map_delete_elem(&watch, &addr))
		__sync_fetch_and_add(&watching, -1);
}

/* Tells what has become of a mini-socket that was in old since m->since_ns. */
static __always_inline void mini_emit(struct mini *m, __u64 addr, __u32 old, __u32 new, __u64 time_ns,
				      __u8 reason)
{
	struct transition t = {};

	t.tuple = m->tuple;
	t.net = m->net;
	t.time_ns = time_ns;
	t.since_ns = m->since_ns;
	t.cookie = m->cookie;
	t.family = m->family;
	t.old = old;
	t.new = new;
	t.evidence = tier;
	t.reason = reason;
	t.side = m->side;
	m->since_ns = time_ns;
	offer(&t, &m->who, filter_tuple(&t.tuple, t.family) == PASS);
	if (records_on)
		record_step(addr, m, &t);
}

/* Counts and tells a mini-socket's transition, if nobody has yet. */
static __always_inline bool mini_tell(struct mini *m, __u64 addr, __u32 old, __u32 new, __u64 time_ns,
				      __u8 reason)
{
	if (__sync_val_compare_and_swap(&m->state, old, new) != old)
		return false;
	count(old, new);
	if (new == CLOSE && !counters_only)
		count_ending(old, reason, m->side);
	if (!counters_only)
		mini_emit(m, addr, old, new, time_ns, reason);
	return true;
}

/* The same, of a mini-socket that has been in gauges in its old state. */
static __always_inline bool mini_move(struct mini *m, __u64 addr, __u32 old, __u32 new, __u64 time_ns,
				      __u8 reason)
{
	if (!mini_tell(m, addr, old, new, time_ns, reason))
		return false;
	if (m->gauged)
		gauge_move(m->net, m->tuple.netns, old, new);
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

/* Tells an orphan's move to TIME_WAIT that nothing has shown. */
static __always_inline void catch_up(struct mini *m, __u64 addr, __u64 now)
{
	if (m->state != FIN_WAIT2 || mini_substate(addr) != TIME_WAIT)
		return;
	mini_move(m, addr, FIN_WAIT2, TIME_WAIT, time_wait_began(addr, m->since_ns, now), REASON_UNKNOWN);
}

/* A mini-socket has been made; its full socket is about to close. */
static __always_inline void mini_begin(__u64 addr, struct mini *m)
{
	m->state = NOT_JOINED;
	m->since_ns = bpf_ktime_get_ns();
	m->gauged = 1;
	mini_put(addr, m); /* no room: mini_join counts it */
}

/* The mini-socket that has replaced the socket with this tuple, or 0. */
static __always_inline __u64 mini_of(const struct finwait_tuple *tuple, struct conn *c)
{
	__u64 *found, addr;

	if (tier == EVIDENCE_PROBE) {
		addr = c ? c->mini : 0;
		if (c)
			c->mini = 0;
		return addr;
	}
	found = bpf_map_lookup_elem(&handoff, tuple);
	if (!found)
		return 0;
	addr = *found;
	bpf_map_delete_elem(&handoff, tuple);
	return addr;
}

/* Is what the kernel has at addr older than the tracer, and not claimed? */
static __always_inline void mini_stray(struct mini *m, __u64 addr)
{
	read_mini(m, addr);
	m->state = mini_substate(addr);
	m->gauged = settled;
	m->stray = 1;
}

/*
 * Is the mini-socket gone before its full socket has closed? mini_join goes on then.
 * Where nobody claims those whose full socket's transition was missed, it is their
 * turn now.
 */
static __always_inline bool mini_waits(struct mini *m, __u64 addr, __u64 time_ns)
{
	if (__sync_val_compare_and_swap(&m->state, NOT_JOINED, ENDED) != NOT_JOINED)
		return false;
	if (!counters_only || time_ns - m->since_ns < JOIN_TAKES_NS)
		return true;
	bpf_map_delete_elem(&handoff, &m->tuple);
	m->state = mini_substate(addr);
	return false;
}

/* The mini-socket is gone since time_ns. */
static __always_inline void mini_end(struct mini *m, __u64 addr, __u64 time_ns, __u8 reason)
{
	__u32 state;
	bool watched;

	m->ended_ns = time_ns;
	m->reason = reason;
	if (mini_waits(m, addr, time_ns))
		return;
	watched = m->state == FIN_WAIT2;
	catch_up(m, addr, time_ns);
	state = m->state;
	if (state >= CLOSE || !mini_move(m, addr, state, CLOSE, time_ns, reason))
		return;
	if (watched)
		unwatch_mini(addr);
	if (!m->stray)
		mini_forget(addr);
	else if (m->gauged && unfollowed_live > 0)
		__sync_fetch_and_add(&unfollowed_live, -1);
}

/*
 * A full socket has closed into the mini-socket at addr: t is what the
 * tracepoint said, its new state CLOSE. What the socket knew goes into the
 * mini-socket, and if that is in TIME_WAIT, the transition is told.
 */
static __always_inline void mini_join(__u64 addr, const struct conn *c, bool claimed,
				      const struct transition *t)
{
	struct mini unfollowed = {}, *m;
	__u32 state, substate = mini_substate(addr);

	m = mini_find(addr);
	if (!m) {
		ledger_add(unfollowed);
		m = &unfollowed;
		mini_stray(m, addr);
		if (m->gauged)
			__sync_fetch_and_add(&unfollowed_live, 1);
	}
	m->cookie = t->cookie;
	m->since_ns = c ? c->since_ns : 0;
	if (c) {
		m->who = c->who;
		m->side = c->side;
		m->older = c->older;
	}
	if (claimed)
		gauge_move(t->net, t->tuple.netns, t->old, CLOSE);
	if (m->gauged)
		gauge_move(t->net, t->tuple.netns, CLOSE, substate);
	state = m->state;
	m->state = t->old;
	if (substate == TIME_WAIT)
		mini_tell(m, addr, t->old, TIME_WAIT, t->time_ns, REASON_UNKNOWN);
	else if (tier == EVIDENCE_TIMER && m != &unfollowed)
		watch_mini(addr);
	if (state == ENDED)
		mini_end(m, addr, m->ended_ns, m->reason);
}

/* The timer has been armed anew, perhaps because the peer's FIN has come. */
static __always_inline void mini_rearm(struct mini *m, __u64 addr, __u64 now)
{
	if (m->state != FIN_WAIT2 || mini_substate(addr) != TIME_WAIT)
		return;
	mini_move(m, addr, FIN_WAIT2, TIME_WAIT, now, REASON_UNKNOWN);
	unwatch_mini(addr);
}

/* Tells an orphan's move to TIME_WAIT, if it has moved. */
static __always_inline void sweep_orphan(__u64 addr, __u64 now)
{
	struct mini *m = mini_find(addr);

	if (m && same_mini(m, addr))
		catch_up(m, addr, now);
	if (!m || m->state != FIN_WAIT2)
		unwatch_mini(addr);
}

/*
 * Why a mini-socket ends before its time, by who called. One that connect
 * takes over is out of the table by then (__inet_check_established); a segment
 * that ends TIME_WAIT without being a reset is a SYN that begins a connection
 * (TCP_TW_SYN), and one that ends FIN_WAIT2 is answered with a reset (TCP_TW_RST).
 */
static __always_inline __u8 early_reason(__u64 addr, __u32 by)
{
	if (!mini_hashed(addr))
		return REASON_REUSED;
	if (by & CALLED_BY(TWSK_PURGE))
		return REASON_NETNS_GONE;
	if (by & CALLED_BY(TIMEWAIT_PROCESS))
		return REASON_RST_RECEIVED;
	if (by & (CALLED_BY(TCP_V4_RCV) | CALLED_BY(TCP_V6_RCV)))
		return mini_substate(addr) == TIME_WAIT ? REASON_REUSED : REASON_RST_SENT_LATE_DATA;
	if (by & (CALLED_BY(TCP_ABORT) | CALLED_BY(DIAG_DESTROY)))
		return REASON_KILLED;
	return REASON_UNKNOWN;
}

#endif
