/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The timer tier: mini-sockets and request sockets as seen by the tracepoints
 * of their timers, which load wherever BTF is. They run for every timer of the
 * host, so each leaves at once when the timer is of another kind.
 */
#ifndef FINWAIT_TIMER_H
#define FINWAIT_TIMER_H

/* The mini-socket or request socket that the timer belongs to, or 0. */
static __always_inline __u64 mini_of_timer(struct timer_list *timer)
{
	if ((__u64)timer->function != symbols[SYMBOL_TW_TIMER_HANDLER].start)
		return 0;
	return (__u64)timer - bpf_core_field_offset(struct inet_timewait_sock, tw_timer);
}

static __always_inline __u64 request_of_timer(struct timer_list *timer)
{
	if ((__u64)timer->function != symbols[SYMBOL_REQSK_TIMER_HANDLER].start)
		return 0;
	return (__u64)timer - bpf_core_field_offset(struct request_sock, rsk_timer);
}

/* Armed anew if it is known, else the birth of a mini-socket. */
static __always_inline void mini_armed(__u64 addr)
{
	struct mini *m = mini_find(addr), born = {};
	struct scratch *here = scratch_here();
	__u64 now = bpf_ktime_get_ns();

	if (!here)
		return;
	if (m && same_mini(m, addr)) {
		mini_rearm(m, addr, now);
		return;
	}
	if (here->rearming == addr) { /* there was no room for it, or it is not claimed yet */
		here->rearming = 0;
		return;
	}
	if (m)
		mini_end(m, addr, now, REASON_UNKNOWN);
	if (counters_only && !attached)
		return; /* as if it were older */
	read_mini(&born, addr);
	mini_begin(addr, &born);
	if (bpf_map_update_elem(&handoff, &born.tuple, &addr, BPF_ANY))
		ledger_add(handoff_full);
}

/* Another listener has taken over what expiring is: all but the address stays. */
static __always_inline bool request_moved(__u64 addr, const struct finwait_tuple *tuple, struct scratch *here)
{
	__u64 old = here->expiring;
	struct request *found, r;

	found = old ? request_find(old) : NULL;
	if (!found || !same_tuple(&found->tuple, tuple))
		return false;
	here->expiring = 0;
	r = *found;
	found->taken = 1;
	bpf_map_delete_elem(&requests, &old);
	if (bpf_map_update_elem(&requests, &addr, &r, BPF_ANY))
		ledger_add(requests_full);
	return true;
}

/* Armed anew after it has run, or the birth of a half-open connection. */
static __always_inline void request_armed(__u64 addr)
{
	struct request *known = request_find(addr), r = {};
	struct scratch *here = scratch_here();

	if (!here)
		return;
	read_request(&r, addr);
	if (known && same_tuple(&known->tuple, &r.tuple)) {
		here->expiring = 0;
		request_refresh(known, addr);
		if (known->cookie || !filter_samples())
			request_tell(known); /* its cookie may never be known */
		return;
	}
	if (request_moved(addr, &r.tuple, here))
		return;
	here->expiring = 0;
	if (!request_timeouts(addr))
		request_begin(addr, &r, false);
}

SEC("tp_btf/timer_start")
int BPF_PROG(timer_start, struct timer_list *timer)
{
	__u64 addr = mini_of_timer(timer);

	if (addr) {
		mini_armed(addr);
		return 0;
	}
	addr = request_of_timer(timer);
	if (addr)
		request_armed(addr);
	return 0;
}

/*
 * A timer is cancelled when it expires, when it is armed anew to another
 * moment, and when what it belongs to is ended early. Only the last has to be
 * told here; who called says which it is.
 */
static __always_inline void mini_cancelled(void *ctx, __u64 addr)
{
	struct mini *m = mini_find(addr), stray = {};
	struct scratch *here = scratch_here();
	__u32 by = callers(ctx, false);

	if (!(by & (CALLED_BY(TWSK_DESCHEDULE) | CALLED_BY(TWSK_PURGE)))) {
		if (here && by)
			here->rearming = m ? 0 : addr; /* else it expires */
		return;
	}
	if (!m) {
		m = &stray;
		mini_stray(m, addr);
	}
	mini_end(m, addr, bpf_ktime_get_ns(), early_reason(addr, by));
}

/* Is child, born on this CPU, the socket that the request socket became? */
static __always_inline bool comes_of(__u64 child, const struct finwait_tuple *tuple)
{
	struct sock *sk = (struct sock *)child;
	struct finwait_tuple t = {};
	__u8 family;

	if (!child)
		return false;
	read_head(&t, &family, &sk->__sk_common);
	t.lport = source_port(sk);
	return same_tuple(&t, tuple);
}

static __always_inline void request_cancelled(void *ctx, __u64 addr)
{
	struct scratch *here = scratch_here();
	__u64 now = bpf_ktime_get_ns(), child;
	struct request r = {};
	__u32 by = 0;

	if (!here)
		return;
	child = here->child;
	read_request(&r, addr);
	if (comes_of(child, &r.tuple)) {
		here->child = 0;
	} else {
		child = 0;
		by = callers(ctx, false);
		if (!by)
			return; /* it expires */
	}
	if (!request_take(addr, &r))
		return;
	if (child)
		request_complete(&r, child);
	else
		request_drop(&r, now, request_reason(addr, by));
}

SEC("tp_btf/timer_cancel")
int BPF_PROG(timer_cancel, struct timer_list *timer)
{
	__u64 addr = mini_of_timer(timer);

	if (addr) {
		mini_cancelled(ctx, addr);
		return 0;
	}
	addr = request_of_timer(timer);
	if (addr)
		request_cancelled(ctx, addr);
	return 0;
}

static __always_inline void mini_expired(__u64 addr)
{
	struct mini *m = mini_find(addr), stray = {};

	if (!m) {
		m = &stray;
		mini_stray(m, addr);
	}
	mini_end(m, addr, bpf_ktime_get_ns(), REASON_EXPIRED);
}

/* Its handler is about to arm it anew, or to give it up. */
static __always_inline void request_expires(__u64 addr)
{
	struct request *r = request_find(addr);
	struct scratch *here = scratch_here();

	if (!here)
		return;
	if (!r) {
		r = &here->stray;
		read_request(r, addr);
		r->told = 1;
		r->since_ns = 0;
		r->gauged = gauge_strays();
	}
	request_refresh(r, addr);
	r->reason = timer_reason(addr);
	here->expiring = addr;
}

SEC("tp_btf/timer_expire_entry")
int BPF_PROG(timer_expire_entry, struct timer_list *timer)
{
	__u64 addr = mini_of_timer(timer);

	if (addr) {
		mini_expired(addr);
		return 0;
	}
	addr = request_of_timer(timer);
	if (addr)
		request_expires(addr);
	return 0;
}

/* A request socket whose timer has run without being armed anew is gone. */
SEC("tp_btf/timer_expire_exit")
int BPF_PROG(timer_expire_exit, struct timer_list *timer)
{
	__u64 addr = (__u64)timer - bpf_core_field_offset(struct request_sock, rsk_timer);
	struct scratch *here = scratch_here();
	struct request *found, r;

	if (!here || !here->expiring || here->expiring != addr)
		return 0;
	here->expiring = 0;
	found = request_find(addr);
	r = found ? *found : here->stray;
	if (!found || request_claim(addr, found))
		request_drop(&r, bpf_ktime_get_ns(), r.reason);
	return 0;
}

/*
 * The first moment at which a half-open connection can be given a cookie, and
 * its listener's owner: a second after its SYN, when the answer is repeated.
 */
SEC("tp_btf/tcp_retransmit_synack")
int BPF_PROG(retransmit_synack, struct sock *sk, struct request_sock *req)
{
	__u64 addr = (__u64)req;
	struct request *r = request_find(addr);
	struct conn *c;

	if (!r || r->told)
		return 0;
	r->cookie = bpf_get_socket_cookie((void *)req);
	c = bpf_sk_storage_get(&conns, sk, NULL, 0);
	if (c)
		r->who = c->who;
	request_tell(r);
	return 0;
}

#endif
