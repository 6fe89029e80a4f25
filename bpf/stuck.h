/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Which sockets have been in their state for too long. Go has the kernel walk
 * through the sockets of one network namespace; those that have are written out.
 * The kernel holds the lock of a full socket meanwhile (since 5.15).
 *
 * How long is exact where a transition has shown it, or claim found it noted. Of
 * a socket that is older than the tracer it may be a lower bound: what stamps.h
 * tells, or else that it was there when the tracer had settled.
 */
#ifndef FINWAIT_STUCK_H
#define FINWAIT_STUCK_H

/* How long is too long, by state; 0 for states that nobody asks for. Set by Go. */
__u64 stuck_over[NUM_STATES];

/* The moment for which ages are told, a little before the walk. Set by Go. */
__u64 stuck_now;

/*
 * How many sockets may have been there for too long, by state: nothing says
 * that they have not. Go sets them to 0 before and reads them after.
 */
__u64 stuck_maybe[NUM_STATES];

static __always_inline __u64 over(__u32 state)
{
	barrier_var(state);
	return state < NUM_STATES ? stuck_over[state] : 0;
}

static __always_inline void maybe(__u32 state)
{
	barrier_var(state);
	if (state < NUM_STATES)
		__sync_fetch_and_add(&stuck_maybe[state], 1);
}

/*
 * The kernel ends a mini-socket after a minute at most (tcp_time_wait), and one
 * in FIN_WAIT2 is not stuck because a process had waited before it closed.
 */
static __always_inline bool ends_before(__u64 limit)
{
	return limit >= TIMEWAIT_SECONDS * 1000000000ULL;
}

/* Sets the age from when the state began, or if that is 0, from when it had. */
static __always_inline void set_age(struct finwait_stuck *row, __u64 since, __u64 by, bool older, __u64 now)
{
	if (!since) {
		row->at_least = 1;
		since = by ?: now;
		if (older && settled_ns && settled_ns < since)
			since = settled_ns;
	}
	row->age_ns = stuck_now > since ? stuck_now - since : 0;
}

static __always_inline void stuck_socket(struct finwait_stuck *row, struct sock *sk, __u64 now)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	__u64 since = 0;
	struct conn *c;
	bool known;

	read_sock(&row->tuple, sk);
	row->tuple.lport = source_port(sk);
	row->family = sk->__sk_common.skc_family;
	c = bpf_sk_storage_get(&conns, sk, NULL, 0);
	known = c && c->claimed && c->state == row->state; /* else a transition was missed */
	if (known)
		since = c->since_ns;
	if (c)
		row->who = c->who;
	set_age(row, since, in_state_by(tp, row->state, now), known && c->older, now);
}

/* What is not in minis for want of room (ledger.unfollowed) has no age. */
static __always_inline void stuck_mini(struct finwait_stuck *row, __u64 addr, __u64 now)
{
	struct mini *m = mini_find(addr), unknown = {};

	if (!m || !same_mini(m, addr)) {
		m = &unknown;
		read_mini(m, addr);
	}
	row->tuple = m->tuple;
	row->family = m->family;
	row->who = m->who;
	row->cookie = m->cookie;
	if (m->state == row->state)
		set_age(row, m->since_ns, 0, m->older, now);
	else
		set_age(row, 0, 0, false, now);
}

static __always_inline void stuck_request(struct finwait_stuck *row, __u64 addr, __u64 now)
{
	struct request *r = request_find(addr);

	read_request_tuple(&row->tuple, &row->family, addr);
	if (r)
		row->who = r->who;
	row->who.role = ROLE_SERVER;
	set_age(row, half_open_since(addr), 0, false, now);
}

SEC("iter/tcp")
int find_stuck(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	__u64 now = bpf_ktime_get_ns(), addr = (__u64)skc;
	struct finwait_stuck row = {};
	struct sock *sk;
	bool mini;

	if (!skc)
		return 0;
	sk = (struct sock *)bpf_skc_to_tcp_sock(skc);
	mini = skc->skc_state == TIME_WAIT; /* see claim */
	row.state = mini ? mini_substate(addr) : skc->skc_state;
	if (!over(row.state))
		return 0;
	if (sk)
		stuck_socket(&row, sk, now);
	else if (mini)
		stuck_mini(&row, addr, now);
	else
		stuck_request(&row, addr, now);
	if (filter_tuple(&row.tuple, row.family) != PASS || !filter_who(&row.who))
		return 0;
	if (row.age_ns < over(row.state)) {
		if (row.at_least && !(mini && ends_before(over(row.state))))
			maybe(row.state);
		return 0;
	}
	if (!row.cookie)
		row.cookie = bpf_get_socket_cookie(skc);
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}

#endif
