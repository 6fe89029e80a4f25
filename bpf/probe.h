/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The probe tier: mini-sockets and request sockets as seen by the kernel
 * functions that make, move and end them. None of these is inlined: each is
 * called from another file of the kernel, or through a pointer. It costs
 * nothing where no such function is called.
 *
 * A program that interrupts itself on one CPU is skipped (see finwait.bpf.c).
 * Where a softirq or another process can come in, two programs stand at the same
 * place and do the same: when one is skipped the other runs, and what the first
 * has done the second finds done.
 */
#ifndef FINWAIT_PROBE_H
#define FINWAIT_PROBE_H

static __always_inline bool is_tcp(const struct sock *sk)
{
	return sk->sk_protocol == IPPROTO_TCP;
}

static __always_inline void mini_made(struct sock *sk, __u64 addr)
{
	struct mini m = {}, *known;
	struct conn *c;

	if (!is_tcp(sk)) /* DCCP has mini-sockets too, up to 6.14 */
		return;
	if (counters_only && !attached)
		return; /* as if it were older */
	c = bpf_sk_storage_get(&conns, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!addr || !c || c->mini == addr)
		return;
	c->mini = addr;
	m.net = read_sock(&m.tuple, sk);
	m.tuple.lport = source_port(sk);
	m.family = sk->__sk_common.skc_family;
	m.cookie = m.tw_cookie = mini_cookie(addr);
	known = mini_find(addr);
	if (known)
		mini_end(known, addr, bpf_ktime_get_ns(), REASON_UNKNOWN);
	mini_begin(addr, &m);
}

SEC("fexit/inet_twsk_alloc")
int BPF_PROG(twsk_alloc, struct sock *sk, void *row, int state, struct inet_timewait_sock *tw)
{
	keep_cpu();
	mini_made(sk, (__u64)tw);
	leave_cpu();
	return 0;
}

SEC("fexit/inet_twsk_alloc")
int BPF_PROG(twsk_alloc_again, struct sock *sk, void *row, int state, struct inet_timewait_sock *tw)
{
	keep_cpu();
	mini_made(sk, (__u64)tw);
	leave_cpu();
	return 0;
}

/* tcp_timewait_state_process has stored the new substate just before. */
SEC("fentry/__inet_twsk_schedule")
int BPF_PROG(twsk_schedule, struct inet_timewait_sock *tw, int timeo, bool rearm)
{
	__u64 addr = (__u64)tw;
	struct mini *m;

	m = rearm ? mini_find(addr) : NULL;
	if (m)
		mini_rearm(m, addr, bpf_ktime_get_ns());
	return 0;
}

/*
 * Why the mini-socket is about to end. Of one that is not claimed yet it is known
 * up to its destructor, which follows at once if nobody else is looking at it.
 */
static __always_inline void mini_ends(__u64 addr, __u8 reason)
{
	struct mini *m = mini_find(addr);
	struct scratch *here;

	if (m) {
		m->reason = reason;
		return;
	}
	here = scratch_here();
	if (!here)
		return;
	here->ending = addr;
	here->ending_reason = reason;
}

static __always_inline __u8 ending_reason(__u64 addr)
{
	struct scratch *here = scratch_here();

	if (!here || here->ending != addr)
		return REASON_UNKNOWN;
	here->ending = 0;
	return here->ending_reason;
}

SEC("fentry/tw_timer_handler")
int BPF_PROG(tw_timer, struct timer_list *timer)
{
	mini_ends((__u64)timer - bpf_core_field_offset(struct inet_timewait_sock, tw_timer), REASON_EXPIRED);
	return 0;
}

SEC("fentry/inet_twsk_deschedule_put")
int BPF_PROG(twsk_deschedule, struct inet_timewait_sock *tw)
{
	__u64 addr = (__u64)tw;

	mini_ends(addr, early_reason(addr, callers(ctx, false)));
	return 0;
}

/*
 * The last reference to the mini-socket is gone. inet_twsk_purge stands in the
 * same file as inet_twsk_deschedule_put, and may have that inlined.
 */
SEC("fentry/tcp_twsk_destructor")
int BPF_PROG(twsk_destructor, struct sock *sk)
{
	__u64 addr = (__u64)sk;
	struct mini *m = mini_find(addr), stray = {};

	if (!m) {
		m = &stray;
		mini_stray(m, addr);
	}
	if (!m->reason)
		m->reason = ending_reason(addr);
	if (!m->reason && callers(ctx, false) & CALLED_BY(TWSK_PURGE))
		m->reason = REASON_NETNS_GONE;
	mini_end(m, addr, bpf_ktime_get_ns(), m->reason);
	return 0;
}

/* A process accepts the socket: sock_graft, under the socket's lock. */
static __always_inline void accepted(struct sock *sk)
{
	struct conn *c;

	if (!is_tcp(sk))
		return;
	c = bpf_sk_storage_get(&conns, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!c || c->who.origin == ORIGIN_ACCEPT)
		return;
	c->who.role = ROLE_SERVER;
	take_owner(&c->who, ORIGIN_ACCEPT);
}

SEC("fentry/security_sock_graft")
int BPF_PROG(sock_graft, struct sock *sk)
{
	keep_cpu();
	accepted(sk);
	leave_cpu();
	return 0;
}

SEC("fentry/security_sock_graft")
int BPF_PROG(sock_graft_again, struct sock *sk)
{
	keep_cpu();
	accepted(sk);
	leave_cpu();
	return 0;
}

/*
 * What it returns has changed with 6.10; that there are references says in
 * every version that the request socket has been queued.
 */
SEC("fexit/inet_csk_reqsk_queue_hash_add")
int BPF_PROG(reqsk_hash_add, struct sock *sk, struct request_sock *req)
{
	struct request r = {};
	struct conn *c;

	if (!is_tcp(sk) || !BPF_CORE_READ(req, __req_common.skc_refcnt.refs.counter))
		return 0;
	read_request(&r, (__u64)req);
	r.cookie = bpf_get_socket_cookie((void *)req);
	c = bpf_sk_storage_get(&conns, sk, NULL, 0);
	if (c)
		r.who = c->who;
	request_begin((__u64)req, &r, true);
	return 0;
}

/* What it is about to do, if it gives the half-open connection up: of that the stack may not tell. */
SEC("fentry/reqsk_timer_handler")
int BPF_PROG(reqsk_timer, struct timer_list *timer)
{
	__u64 addr = (__u64)timer - bpf_core_field_offset(struct request_sock, rsk_timer);
	struct request *r = request_find(addr);

	if (r)
		r->reason = timer_reason(addr);
	return 0;
}

/* Takes what has come in place of a request socket that was moved. */
static __always_inline bool request_arrive(__u64 addr, struct request *r)
{
	struct finwait_tuple tuple = {};
	struct request *found;
	__u8 family;

	if (!migrations)
		return false;
	read_request_tuple(&tuple, &family, addr);
	found = bpf_map_lookup_elem(&migrated, &tuple);
	if (!found || found->moved_from == addr)
		return false;
	*r = *found;
	if (bpf_map_delete_elem(&migrated, &tuple))
		return false;
	__sync_fetch_and_add(&migrations, -1);
	return true;
}

/* Is child the socket whose birth count_state has counted last on this CPU? */
static __always_inline bool take_child(__u64 child)
{
	struct scratch *here = scratch_here();

	if (!here || here->child != child)
		return false;
	here->child = 0;
	return true;
}

SEC("fentry/inet_csk_complete_hashdance")
int BPF_PROG(complete_hashdance, struct sock *sk, struct sock *child, struct request_sock *req, bool own_req)
{
	struct request r = {};

	if (!own_req || !is_tcp(sk))
		return 0;
	if (!request_arrive((__u64)req, &r) && !request_take((__u64)req, &r))
		return 0;
	if (!counters_only || take_child((__u64)child))
		request_complete(&r, (__u64)child);
	return 0;
}

/* Without a segment it is the timer of a request socket that asks for another listener. */
SEC("fexit/reuseport_migrate_sock")
int BPF_PROG(migrate_sock, struct sock *sk, struct sock *migrating, void *skb, struct sock *other)
{
	struct scratch *here = scratch_here();
	__u64 addr = (__u64)migrating;
	struct request *r;

	r = other && !skb ? request_find(addr) : NULL;
	if (!r || !here)
		return 0;
	r->migrating = 1;
	here->migrating = addr;
	return 0;
}

/* A request socket that is in no map: the copy of one that could not be moved? */
static __always_inline void copy_freed(__u64 addr)
{
	struct scratch *here = scratch_here();
	struct finwait_tuple tuple = {};
	struct request *r;
	__u64 original;
	__u8 family;

	if (!here || !here->migrating)
		return;
	original = here->migrating;
	here->migrating = 0;
	read_request_tuple(&tuple, &family, addr);
	r = request_find(original);
	if (r && same_tuple(&r->tuple, &tuple))
		r->migrating = 0;
}

static __always_inline void request_leave(const struct request *r)
{
	if (bpf_map_update_elem(&migrated, &r->tuple, r, BPF_ANY))
		ledger_add(requests_full);
	else
		__sync_fetch_and_add(&migrations, 1);
}

/*
 * The last reference to a request socket is gone. One whose handshake was
 * completed has left requests then.
 */
static __always_inline void request_freed(void *ctx, __u64 addr)
{
	struct request *found = request_find(addr), r = {};
	__u32 by;

	if (found) {
		r = *found;
		if (!request_claim(addr, found))
			return;
		if (r.migrating) {
			r.migrating = 0;
			r.moved_from = addr;
			request_leave(&r);
			return;
		}
	} else if (!request_arrive(addr, &r)) {
		copy_freed(addr);
		return;
	}
	by = callers(ctx, false);
	request_drop(&r, bpf_ktime_get_ns(), by ? request_reason(addr, by) : r.reason);
}

SEC("fentry/tcp_v4_reqsk_destructor")
int BPF_PROG(reqsk_destructor4, struct request_sock *req)
{
	keep_cpu();
	request_freed(ctx, (__u64)req);
	leave_cpu();
	return 0;
}

SEC("fentry/tcp_v4_reqsk_destructor")
int BPF_PROG(reqsk_destructor4_again, struct request_sock *req)
{
	keep_cpu();
	request_freed(ctx, (__u64)req);
	leave_cpu();
	return 0;
}

SEC("fentry/tcp_v6_reqsk_destructor")
int BPF_PROG(reqsk_destructor6, struct request_sock *req)
{
	keep_cpu();
	request_freed(ctx, (__u64)req);
	leave_cpu();
	return 0;
}

SEC("fentry/tcp_v6_reqsk_destructor")
int BPF_PROG(reqsk_destructor6_again, struct request_sock *req)
{
	keep_cpu();
	request_freed(ctx, (__u64)req);
	leave_cpu();
	return 0;
}

#endif
