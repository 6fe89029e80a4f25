/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What was there before the tracer, and what has gone without its noticing.
 * Go has the kernel walk through the sockets of one network namespace, after
 * the programs are attached; each socket that is not in gauges yet is claimed,
 * once: by this walk, or by the socket's next transition, whichever comes first.
 */
#ifndef FINWAIT_CLAIM_H
#define FINWAIT_CLAIM_H

/* What the walk has found, by state. Go sets them to 0 before and reads them after. */
__u64 walk_seen[NUM_STATES];
__u64 walk_claimed[NUM_STATES]; /* of those, the ones that were not in gauges */

static __always_inline void seen(__u32 state)
{
	barrier_var(state);
	if (state < NUM_STATES)
		__sync_fetch_and_add(&walk_seen[state], 1);
}

static __always_inline void claimed_in(__u64 net, __u32 netns, __u32 state)
{
	gauge_move(net, netns, CLOSE, state);
	barrier_var(state);
	if (state < NUM_STATES)
		__sync_fetch_and_add(&walk_claimed[state], 1);
}

/* Who closed first, of a socket that is found in that state. */
static __always_inline __u8 side_in(__u32 state)
{
	switch (state) {
	case FIN_WAIT1:
	case FIN_WAIT2:
		return SIDE_LOCAL;
	case CLOSE_WAIT:
	case LAST_ACK:
		return SIDE_PEER;
	case CLOSING:
		return SIDE_BOTH;
	}
	return SIDE_UNKNOWN;
}

static __always_inline void claim_socket(struct sock *sk)
{
	__u32 state = sk->__sk_common.skc_state;
	struct conn *c;

	if (state == CLOSE)
		return;
	seen(state);
	c = bpf_sk_storage_get(&conns, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!c) {
		ledger_add(storage_failed);
		return;
	}
	if (!settled)
		take_holder(sk, c);
	if (c->claimed)
		return;
	c->state = state;
	c->older = !settled;
	if (state == SYN_SENT)
		c->since_ns = syn_sent_since((struct tcp_sock *)sk, bpf_ktime_get_ns());
	if (claim_conn(c))
		return;
	bpf_get_socket_cookie(sk); /* the one it keeps in TIME_WAIT */
	c->side = side_in(state);
	if (state == LISTEN)
		c->who.role = ROLE_SERVER;
	claimed_in(sk->__sk_common.skc_net.net->net_cookie, sk->__sk_common.skc_net.net->ns.inum, state);
}

/*
 * A mini-socket may end while it is claimed. If it is still there once it is in
 * the map, its end is going to find it there. If not, whoever sets its state to
 * CLOSE knows whether the other has counted.
 */
static __always_inline bool mini_there(__u64 addr)
{
	if (tier == EVIDENCE_TIMER && !BPF_CORE_READ(mini_sock(addr), tw_timer.entry.pprev))
		return false;
	return mini_hashed(addr);
}

/*
 * A mini-socket whose full socket closed unseen: before the tracepoint was
 * attached, or because no program was run.
 */
static __always_inline void claim_unjoined(struct mini *m, __u64 addr)
{
	__u32 state = mini_substate(addr);

	if (bpf_ktime_get_ns() - m->since_ns < JOIN_TAKES_NS ||
	    __sync_val_compare_and_swap(&m->state, NOT_JOINED, state) != NOT_JOINED)
		return;
	bpf_map_delete_elem(&handoff, &m->tuple);
	claimed_in(m->net, m->tuple.netns, state);
}

static __always_inline void claim_mini(struct sock_common *skc)
{
	__u64 addr = (__u64)skc;
	struct mini m = {}, *placed;
	__u32 state;

	bpf_get_socket_cookie(skc);
	read_mini(&m, addr);
	m.state = state = mini_substate(addr);
	if (state == TIME_WAIT)
		m.since_ns = time_wait_began(addr, 0, bpf_ktime_get_ns());
	m.gauged = 1;
	m.older = !settled;
	seen(state);
	placed = mini_find(addr);
	if (placed && placed->state != CLOSE) {
		if (placed->state == NOT_JOINED)
			claim_unjoined(placed, addr);
		return;
	}
	if (!placed && unfollowed_live > 0)
		return; /* it was counted when it was made */
	if (!mini_put(addr, &m)) {
		ledger_add(unfollowed);
		return;
	}
	placed = mini_find(addr);
	if (!mini_there(addr) && placed &&
	    __sync_val_compare_and_swap(&placed->state, state, CLOSE) == state) {
		mini_forget(addr);
		return;
	}
	claimed_in(m.net, m.tuple.netns, state);
	if (tier == EVIDENCE_TIMER && state == FIN_WAIT2)
		watch_mini(addr);
}

/*
 * The same for a request socket; whoever deletes it from the map has counted.
 * One whose timer runs at the moment is left alone: if it goes on, the next
 * audit claims it.
 */
static __always_inline bool request_there(__u64 addr)
{
	if (tier == EVIDENCE_TIMER && !BPF_CORE_READ(request_sock(addr), rsk_timer.entry.pprev))
		return false;
	return request_hashed(addr);
}

static __always_inline void claim_request(struct sock_common *skc)
{
	__u64 addr = (__u64)skc;
	struct request r = {}, *placed;

	bpf_get_socket_cookie(skc);
	read_request(&r, addr);
	r.since_ns = half_open_since(addr);
	r.told = 1;
	r.gauged = 1;
	r.who.role = ROLE_SERVER;
	seen(NEW_SYN_RECV);
	if (request_find(addr))
		return;
	if (bpf_map_update_elem(&requests, &addr, &r, BPF_ANY)) {
		ledger_add(requests_full);
		return;
	}
	placed = request_find(addr);
	if (!request_there(addr) && placed && request_claim(addr, placed))
		return;
	claimed_in(r.net, r.tuple.netns, NEW_SYN_RECV);
}

/*
 * The kind of a mini-socket or request socket is read from its state: where
 * MPTCP is above the listener, as it is for servers written in Go, the helpers
 * for them (bpf_skc_to_tcp_timewait_sock) do not know its sk_prot.
 */
SEC("iter/tcp")
int claim(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct sock *sk;

	if (!skc)
		return 0;
	sk = (struct sock *)bpf_skc_to_tcp_sock(skc);
	if (sk) {
		claim_socket(sk);
		return 0;
	}
	if (skc->skc_state == TIME_WAIT)
		claim_mini(skc);
	else if (skc->skc_state == NEW_SYN_RECV)
		claim_request(skc);
	return 0;
}

/*
 * Takes out of minis what the kernel does not have, if it had it not at the
 * last audit either: its end was missed. In between lies more time than any
 * end takes.
 */
SEC("iter/bpf_map_elem")
int audit_minis(struct bpf_iter__bpf_map_elem *ctx)
{
	__u64 *key = ctx->key, addr;
	struct mini *m;
	__u32 state;

	if (!key)
		return 0;
	addr = *key;
	m = mini_find(addr);
	if (!m)
		return 0;
	if (same_mini(m, addr) && mini_there(addr)) {
		m->suspect = 0;
		return 0;
	}
	if (!m->suspect) {
		m->suspect = 1;
		return 0;
	}
	state = m->state;
	if (__sync_val_compare_and_swap(&m->state, state, CLOSE) != state)
		return 0;
	if (m->gauged && state < CLOSE)
		gauge_move(m->net, m->tuple.netns, state, CLOSE);
	unwatch_mini(addr);
	mini_forget(addr);
	if (state != CLOSE)
		ledger_add(stale);
	return 0;
}

/* The same of requests. */
SEC("iter/bpf_map_elem")
int audit_requests(struct bpf_iter__bpf_map_elem *ctx)
{
	struct request now = {}, was, *r;
	__u64 *key = ctx->key, addr;

	if (!key)
		return 0;
	addr = *key;
	r = bpf_map_lookup_elem(&requests, &addr);
	if (!r)
		return 0;
	read_request(&now, addr);
	if (same_tuple(&r->tuple, &now.tuple) && request_hashed(addr)) {
		r->suspect = 0;
		return 0;
	}
	if (!r->suspect) {
		r->suspect = 1;
		return 0;
	}
	was = *r;
	if (!request_claim(addr, r)) {
		bpf_map_delete_elem(&requests, &addr);
		return 0;
	}
	if (was.gauged)
		gauge_move(was.net, was.tuple.netns, NEW_SYN_RECV, CLOSE);
	ledger_add(stale);
	return 0;
}

#endif
