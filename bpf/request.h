/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Half-open connections: what the kernel keeps of a SYN that is answered and
 * not acknowledged yet, a request socket in NEW_SYN_RECV. A tier of evidence
 * says when one is queued, completed or dropped; what that means is said here.
 *
 *	begin --> [tell, once its cookie is known] --> complete --> join (the child's next transition)
 *	                                           \-> drop
 *
 * Completion comes between the birth of the child, which the tracepoint tells,
 * and the child's next transition, all in one softirq; only then are address
 * and cookie of the child what they will be (see hold in socket.h).
 */
#ifndef FINWAIT_REQUEST_H
#define FINWAIT_REQUEST_H

static __always_inline struct request_sock *request_sock(__u64 addr)
{
	return (struct request_sock *)addr;
}

static __always_inline __u64 read_request_tuple(struct finwait_tuple *tuple, __u8 *family, __u64 addr)
{
	struct request_sock *req = request_sock(addr);

	tuple->lport = BPF_CORE_READ(req, __req_common.skc_num);
	return read_head(tuple, family, &req->__req_common);
}

static __always_inline void read_request(struct request *r, __u64 addr)
{
	struct request_sock *req = request_sock(addr);

	r->net = read_request_tuple(&r->tuple, &r->family, addr);
	r->cookie = BPF_CORE_READ(req, __req_common.skc_cookie.counter);
}

/* A tool such as ss may have asked for the cookie since it was last read. */
static __always_inline void request_refresh(struct request *r, __u64 addr)
{
	if (!r->cookie)
		r->cookie = BPF_CORE_READ(request_sock(addr), __req_common.skc_cookie.counter);
}

static __always_inline __u32 request_timeouts(__u64 addr)
{
	return BPF_CORE_READ_BITFIELD_PROBED(request_sock(addr), num_timeout);
}

/* Is it still in the kernel's table? */
static __always_inline bool request_hashed(__u64 addr)
{
	return BPF_CORE_READ(request_sock(addr), __req_common.skc_node.pprev) != NULL;
}

static __always_inline void request_emit(const struct request *r, __u8 old, __u8 new, __u64 time_ns,
					 __u64 since_ns, __u8 reason)
{
	struct transition t = {};

	if (counters_only)
		return;
	t.tuple = r->tuple;
	t.net = r->net;
	t.time_ns = time_ns;
	t.since_ns = since_ns;
	t.cookie = r->cookie;
	t.family = r->family;
	t.old = old;
	t.new = new;
	t.evidence = tier;
	t.reason = reason;
	offer(&t, &r->who, filter_tuple(&t.tuple, t.family) == PASS);
}

/* Tells that the connection is half-open, unless that has been told. */
static __always_inline void request_tell(struct request *r)
{
	if (r->told)
		return;
	r->told = 1;
	if (r->since_ns)
		request_emit(r, CLOSE, NEW_SYN_RECV, r->since_ns, 0, REASON_UNKNOWN);
}

/*
 * Is a request socket that is not in requests in gauges all the same? The
 * probe tier does not see the end of such a one: what is freed may have been
 * accepted long before.
 */
static __always_inline bool gauge_strays(void)
{
	return settled && tier == EVIDENCE_TIMER;
}

/* A SYN has been queued. r has what the tier knows of it. */
static __always_inline void request_begin(__u64 addr, struct request *r, bool tell)
{
	bool room;

	r->since_ns = bpf_ktime_get_ns();
	r->who.role = ROLE_SERVER;
	r->gauged = 1;
	count(CLOSE, NEW_SYN_RECV);
	if (tell)
		request_tell(r);
	room = !bpf_map_update_elem(&requests, &addr, r, BPF_ANY);
	if (!room) {
		ledger_add(requests_full);
		request_tell(r);
	}
	if (room || gauge_strays())
		gauge_move(r->net, r->tuple.netns, CLOSE, NEW_SYN_RECV);
}

static __always_inline struct request *request_find(__u64 addr)
{
	struct request *r = bpf_map_lookup_elem(&requests, &addr);

	return r && !r->taken ? r : NULL;
}

/* Takes what was found out of the map, so that only one can end it. */
static __always_inline bool request_claim(__u64 addr, struct request *found)
{
	if (__sync_val_compare_and_swap(&found->taken, 0, 1))
		return false;
	bpf_map_delete_elem(&requests, &addr);
	return true;
}

/*
 * Takes the request socket out of requests into r. One that is not there is
 * read from the kernel.
 */
static __always_inline bool request_take(__u64 addr, struct request *r)
{
	struct request *found = request_find(addr);

	if (!found) {
		read_request(r, addr);
		r->who.role = ROLE_SERVER;
		r->told = 1;
		r->gauged = gauge_strays();
		return true;
	}
	*r = *found;
	request_refresh(r, addr);
	return request_claim(addr, found);
}

/* The half-open connection is given up. */
static __always_inline void request_drop(struct request *r, __u64 time_ns, __u8 reason)
{
	request_tell(r);
	count(NEW_SYN_RECV, CLOSE);
	if (!counters_only)
		count_ending(NEW_SYN_RECV, reason, SIDE_UNKNOWN);
	if (r->gauged)
		gauge_move(r->net, r->tuple.netns, NEW_SYN_RECV, CLOSE);
	request_emit(r, NEW_SYN_RECV, CLOSE, time_ns, r->since_ns, reason);
	if (records_on)
		record_half_open(r, time_ns, reason);
}

/* Its handshake is complete: the socket at child goes on. */
static __always_inline void request_complete(const struct request *r, __u64 child)
{
	struct completed c = {.child = child, .since_ns = r->since_ns, .told = r->told};

	if (r->gauged)
		gauge_move(r->net, r->tuple.netns, NEW_SYN_RECV, CLOSE);
	if (counters_only)
		recount(CLOSE, NEW_SYN_RECV, SYN_RECV); /* see count_state */
	else if (bpf_map_update_elem(&completed, &r->tuple, &c, BPF_ANY))
		ledger_add(completed_full);
}

static __always_inline bool opened_by_data(const struct sock *sk)
{
	return BPF_CORE_READ_BITFIELD_PROBED((const struct tcp_sock *)sk, syn_data_acked);
}

/*
 * t is the birth of an accepted socket, CLOSE to SYN_RECV. If it comes out of a
 * half-open connection, that is what it was before; if not, the SYN was
 * answered with a cookie, or carried data.
 */
static __always_inline void request_join(struct transition *t, struct sock *sk, const struct finwait_who *who,
					 bool wanted)
{
	struct completed *found, c;

	found = bpf_map_lookup_elem(&completed, &t->tuple);
	if (!found || found->child != (__u64)sk)
		return;
	c = *found;
	bpf_map_delete_elem(&completed, &t->tuple);
	if (records_on)
		walk_half_open(sk, c.since_ns, t->time_ns);
	if (!c.told && wanted) {
		struct transition begin = *t;

		begin.old = CLOSE;
		begin.new = NEW_SYN_RECV;
		begin.time_ns = c.since_ns;
		begin.since_ns = 0;
		begin.evidence = tier;
		emit_if_wanted(&begin, who, true);
	}
	t->old = NEW_SYN_RECV;
	t->since_ns = c.since_ns;
	t->evidence = tier;
}

/*
 * Why the timer of a request socket gives it up, as reqsk_timer_handler
 * decides: no listener, as many SYN-ACKs as there may be, or fewer because
 * more than half of the queue is in use.
 */
static __always_inline __u8 timer_reason(__u64 addr)
{
	struct sock *listener = BPF_CORE_READ(request_sock(addr), __req_common.skc_listener);
	struct inet_connection_sock *icsk = (struct inet_connection_sock *)listener;
	struct net *net = BPF_CORE_READ(listener, __sk_common.skc_net.net);
	__u32 most = BPF_CORE_READ(icsk, icsk_syn_retries), timeouts = request_timeouts(addr);
	__u32 queued = BPF_CORE_READ(icsk, icsk_accept_queue.qlen.counter) + 1;
	__u32 backlog = BPF_CORE_READ(listener, sk_max_ack_backlog);

	if (BPF_CORE_READ(listener, __sk_common.skc_state) != LISTEN)
		return REASON_LISTENER_GONE;
	if (!most)
		most = BPF_CORE_READ(net, ipv4.sysctl_tcp_synack_retries);
	if (timeouts >= most)
		return REASON_TIMEOUT_HANDSHAKE;
	return queued * 2 > (backlog > 8 ? backlog : 8) ? REASON_QUEUE_FULL : REASON_UNKNOWN;
}

/* Why a segment makes the kernel give a half-open connection up (tcp_v4_rcv, tcp_check_req). */
static __always_inline __u8 segment_reason(__u64 addr)
{
	struct sock *listener = BPF_CORE_READ(request_sock(addr), __req_common.skc_listener);
	struct net *net = BPF_CORE_READ(listener, __sk_common.skc_net.net);

	if (BPF_CORE_READ(listener, __sk_common.skc_state) != LISTEN)
		return REASON_LISTENER_GONE;
	if (BPF_CORE_READ(net, ipv4.sysctl_tcp_abort_on_overflow) &&
	    BPF_CORE_READ(listener, sk_ack_backlog) > BPF_CORE_READ(listener, sk_max_ack_backlog))
		return REASON_QUEUE_FULL;
	return REASON_RST_RECEIVED;
}

/* Why a half-open connection is given up, by who called. */
static __always_inline __u8 request_reason(__u64 addr, __u32 by)
{
	if (by & CALLED_BY(TWSK_PURGE))
		return REASON_NETNS_GONE;
	if (by & CALLED_BY(REQSK_TIMER_HANDLER))
		return timer_reason(addr);
	if (by & (CALLED_BY(TCP_V4_ERR) | CALLED_BY(TCP_V6_ERR)))
		return REASON_UNREACHABLE;
	if (by & (CALLED_BY(TCP_ABORT) | CALLED_BY(DIAG_DESTROY)))
		return REASON_KILLED;
	if (by & (CALLED_BY(TCP_V4_RCV) | CALLED_BY(TCP_V6_RCV)))
		return segment_reason(addr);
	return REASON_UNKNOWN;
}

#endif
