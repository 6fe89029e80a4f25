/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * One record for each connection, when it has ended: the states that it went
 * through and for how long, what it carried, and why it is gone. It is gathered
 * where the connection is kept: in the storage of its full socket, and then
 * beside its mini-socket. All of it is off unless the loader asks for it.
 */
#ifndef FINWAIT_RECORD_H
#define FINWAIT_RECORD_H

const volatile bool records_on = false;
/* A record is told when TIME_WAIT begins, not when it ends. */
const volatile bool records_at_time_wait = false;

/*
 * The walk of a full socket so far: key is the socket. Created by its first
 * transition that is seen, freed by the kernel with the socket.
 * Refused: ledger.storage_failed; the record then lacks its walk.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct finwait_walk);
} walks SEC(".maps");

/*
 * The records of connections that are mini-sockets now: key is the address, as
 * in minis. Inserted when the full socket closes, deleted when the record is
 * told. Preallocated, as minis is, and of the same size; one element if off.
 * Full: ledger.records_full; the record then has no more than the mini-socket.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, struct finwait_conn);
} records SEC(".maps");

/*
 * Records on their way to Go. Size set by the loader.
 * Full: the record is lost and ledger.records_lost counts it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 12);
	__type(value, struct finwait_conn);
} ended SEC(".maps");

static __always_inline void walk_enter(struct finwait_walk *w, __u32 state)
{
	if (state != CLOSE)
		w->visited |= 1 << (state & 15);
}

/* Has it been in the state for longer than it should? */
static __always_inline bool is_slow(__u32 state, __u64 dwell_ns)
{
	__u64 limit;

	barrier_var(state);
	if (state >= NUM_STATES)
		return false;
	limit = the_filter()->slow_ns[state];
	return limit && dwell_ns >= limit;
}

static __always_inline void walk_leave(struct finwait_walk *w, __u32 state, __u64 since_ns, __u64 now)
{
	barrier_var(state);
	if (state >= NUM_STATES)
		return;
	w->visited |= 1 << state;
	if (!since_ns || now < since_ns)
		return;
	w->known |= 1 << state;
	w->dwell_ns[state] = now - since_ns;
	if (is_slow(state, now - since_ns))
		w->slow = 1;
}

/* A full socket goes from one state to the next; c does not know of it yet. */
static __noinline void walk_step(struct sock *sk, const struct conn *c, const struct transition *t)
{
	struct finwait_walk *w;

	if (t->old == LISTEN || t->new == LISTEN)
		return;
	w = bpf_sk_storage_get(&walks, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!w) {
		ledger_add(storage_failed);
		return;
	}
	if (t->old == CLOSE) {
		__builtin_memset(w, 0, sizeof(*w));
		w->start_ns = t->time_ns;
	} else {
		walk_leave(w, t->old, c->since_ns, t->time_ns);
	}
	walk_enter(w, t->new);
}

/* Before the socket was born, at born_ns, its connection was half-open. */
static __always_inline void walk_half_open(struct sock *sk, __u64 since_ns, __u64 born_ns)
{
	struct finwait_walk *w = bpf_sk_storage_get(&walks, sk, NULL, 0);

	if (!w)
		return;
	w->start_ns = since_ns;
	walk_leave(w, NEW_SYN_RECV, since_ns, born_ns);
}

/* Is there to be a record of this connection? All of them are counted. */
static __always_inline bool record_wanted(bool slow, __u32 reasons, __u64 cookie,
					  const struct finwait_tuple *tuple, __u8 family,
					  const struct finwait_who *who)
{
	ledger_add(records_made);
	if (!the_filter()->all_records && !slow && !(the_filter()->reasons & reasons))
		return false;
	return filter_tuple(tuple, family) == PASS && filter_who(who) && filter_sample(cookie, tuple);
}

static __always_inline struct finwait_conn *record_reserve(void)
{
	struct finwait_conn *r = bpf_ringbuf_reserve(&ended, sizeof(*r), 0);

	if (!r)
		ledger_add(records_lost);
	return r;
}

static __always_inline void record_tell(struct finwait_conn *r)
{
	bpf_ringbuf_submit(r, wake_flags(WAKE_RECORDS));
	ledger_add(records_told);
}

/*
 * What the kernel has counted of a full socket. bytes_sent has what was sent
 * again too, and bytes_received the peer's FIN, once it has come (tcp_fin).
 */
static __always_inline void record_counts(struct finwait_conn *r, const struct sock *sk)
{
	const struct tcp_sock *tp = (const struct tcp_sock *)sk;

	r->bytes_sent = BPF_CORE_READ(tp, bytes_sent) - BPF_CORE_READ(tp, bytes_retrans);
	r->bytes_received = BPF_CORE_READ(tp, bytes_received);
	if (r->bytes_received && BPF_CORE_READ(sk, __sk_common.skc_flags) & SOCK_DONE)
		r->bytes_received--;
	r->segments_sent = BPF_CORE_READ(tp, segs_out);
	r->segments_received = BPF_CORE_READ(tp, segs_in);
	r->retransmits = BPF_CORE_READ(tp, total_retrans);
	r->srtt_us = BPF_CORE_READ(tp, srtt_us) >> 3;
	r->counted = 1;
}

/* What is known of a full socket that closes; t is its last transition. */
static __noinline void record_fill(struct finwait_conn *r, struct sock *sk, const struct conn *c,
				   const struct transition *t)
{
	struct finwait_walk *w = bpf_sk_storage_get(&walks, sk, NULL, 0);

	__builtin_memset(r, 0, sizeof(*r));
	if (w)
		r->walk = *w;
	r->end_ns = t->time_ns;
	r->cookie = t->cookie;
	r->who = c->who;
	r->tuple = t->tuple;
	r->family = t->family;
	r->side = t->side;
	r->reason = t->reason;
	record_counts(r, sk);
}

/* A full socket has closed, and no mini-socket takes its place. */
static __noinline void record_end(struct sock *sk, const struct conn *c, const struct transition *t)
{
	struct finwait_conn *r;
	struct finwait_walk *w;

	if (t->old == LISTEN)
		return;
	w = bpf_sk_storage_get(&walks, sk, NULL, 0);
	if (!record_wanted(w && w->slow, 1U << (t->reason & 31), t->cookie, &t->tuple, t->family, &c->who))
		return;
	r = record_reserve();
	if (!r)
		return;
	record_fill(r, sk, c, t);
	record_tell(r);
}

/* A full socket has closed into the mini-socket at addr. */
static __noinline void record_keep(__u64 addr, struct sock *sk, const struct conn *c,
				   const struct transition *t)
{
	static const struct finwait_conn empty = {};
	struct finwait_conn *r;

	bpf_map_update_elem(&records, &addr, &empty, BPF_ANY);
	r = bpf_map_lookup_elem(&records, &addr);
	if (r)
		record_fill(r, sk, c, t);
	else
		ledger_add(records_full);
}

/* What a mini-socket knows whose full socket was not seen. */
static __always_inline void record_of_mini(struct finwait_conn *r, const struct mini *m,
					   const struct transition *t)
{
	__builtin_memset(r, 0, sizeof(*r));
	r->cookie = m->cookie;
	r->who = m->who;
	r->tuple = m->tuple;
	r->family = m->family;
	r->side = m->side;
	walk_leave(&r->walk, t->old, t->since_ns, t->time_ns);
	walk_enter(&r->walk, t->new);
}

/*
 * A mini-socket ends, or begins its TIME_WAIT; kept is what its full socket has
 * left, if that was seen. One that was in TIME_WAIT has ended in order: both
 * have closed. Why TIME_WAIT has ended is another matter.
 */
static __always_inline void record_of_end(const struct finwait_conn *kept, const struct mini *m,
					  const struct transition *t)
{
	bool waited = t->old == TIME_WAIT || t->new == TIME_WAIT;
	__u32 reason = waited ? REASON_FIN : t->reason, ended = waited ? t->reason : REASON_UNKNOWN;
	bool slow = kept ? kept->walk.slow : t->since_ns && is_slow(t->old, t->time_ns - t->since_ns);
	struct finwait_conn *r;

	if (!record_wanted(slow, (1U << (reason & 31) | 1U << (ended & 31)) & ~1U, m->cookie, &m->tuple,
			   m->family, &m->who))
		return;
	r = record_reserve();
	if (!r)
		return;
	if (kept)
		*r = *kept;
	else
		record_of_mini(r, m, t);
	r->end_ns = t->time_ns;
	r->reason = reason;
	r->time_wait_reason = ended;
	record_tell(r);
}

/* A mini-socket goes from one state to the next, or ends. */
static __noinline void record_step(__u64 addr, const struct mini *m, const struct transition *t)
{
	struct finwait_conn *kept;

	if (records_at_time_wait && t->old == TIME_WAIT)
		return; /* told */
	kept = bpf_map_lookup_elem(&records, &addr);
	if (kept) {
		walk_leave(&kept->walk, t->old, t->since_ns, t->time_ns);
		walk_enter(&kept->walk, t->new);
	}
	if (t->new != CLOSE && !records_at_time_wait)
		return;
	record_of_end(kept, m, t);
	if (kept)
		bpf_map_delete_elem(&records, &addr);
}

/* A half-open connection is given up. */
static __noinline void record_half_open(const struct request *req, __u64 time_ns, __u32 reason)
{
	bool slow = req->since_ns && is_slow(NEW_SYN_RECV, time_ns - req->since_ns);
	struct finwait_conn *r;

	if (!record_wanted(slow, 1U << (reason & 31), req->cookie, &req->tuple, req->family, &req->who))
		return;
	r = record_reserve();
	if (!r)
		return;
	__builtin_memset(r, 0, sizeof(*r));
	r->end_ns = time_ns;
	r->cookie = req->cookie;
	r->who = req->who;
	r->tuple = req->tuple;
	r->family = req->family;
	r->reason = reason;
	r->walk.start_ns = req->since_ns;
	walk_leave(&r->walk, NEW_SYN_RECV, req->since_ns, time_ns);
	record_tell(r);
}

#endif
