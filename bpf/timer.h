/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The timer tier: mini-sockets as seen by the tracepoints of their timers,
 * which load wherever BTF is. They run for every timer of the host, so each
 * leaves at once when the timer is not a mini-socket's.
 */
#ifndef FINWAIT_TIMER_H
#define FINWAIT_TIMER_H

extern void tw_timer_handler __ksym;

/* The mini-socket that the timer belongs to, or 0. */
static __always_inline __u64 mini_of_timer(struct timer_list *timer)
{
	if ((__u64)timer->function != (__u64)&tw_timer_handler)
		return 0;
	return (__u64)timer - bpf_core_field_offset(struct inet_timewait_sock, tw_timer);
}

static const struct cancelled nothing = {};

/*
 * Armed anew, if this CPU has just cancelled the same; else the birth of a
 * mini-socket, perhaps at the address of one whose end is not yet told.
 */
SEC("tp_btf/timer_start")
int BPF_PROG(timer_start, struct timer_list *timer)
{
	__u64 addr = mini_of_timer(timer), now;
	struct cancelled before;
	struct mini *m;

	if (!addr)
		return 0;
	now = bpf_ktime_get_ns();
	before = note_cancel(&nothing, addr);
	m = bpf_map_lookup_elem(&minis, &addr);
	if (before.addr == addr && before.tw_cookie == mini_cookie(addr)) {
		if (m)
			mini_rearm(m, addr, now);
		return 0;
	}
	if (m)
		mini_end(m, addr, m->cancelled_ns ?: now);
	mini_begin(addr);
	return 0;
}

/*
 * A timer is cancelled when it expires, when it is armed anew to another
 * moment, and when the mini-socket is ended early; only the first and the
 * second are followed at once by another tracepoint. A mini-socket that connect
 * takes over is out of the hash table by now (__inet_check_established), and
 * so is clearly gone; for the others note_cancel waits for what follows.
 */
SEC("tp_btf/timer_cancel")
int BPF_PROG(timer_cancel, struct timer_list *timer)
{
	__u64 addr = mini_of_timer(timer);
	struct cancelled now = {};
	struct mini *m;

	if (!addr)
		return 0;
	now.addr = addr;
	now.time_ns = bpf_ktime_get_ns();
	now.tw_cookie = mini_cookie(addr);
	note_cancel(&now, addr);
	m = bpf_map_lookup_elem(&minis, &addr);
	if (!m)
		m = mini_adopt(addr);
	if (!m) {
		ledger_add(unfollowed);
		return 0;
	}
	mini_cancel(m, addr, now.time_ns);
	if (BPF_CORE_READ(mini_sock(addr), __tw_common.skc_node.pprev))
		return 0;
	mini_end(m, addr, now.time_ns);
	note_cancel(&nothing, addr);
	return 0;
}

SEC("tp_btf/timer_expire_entry")
int BPF_PROG(timer_expire_entry, struct timer_list *timer)
{
	__u64 addr = mini_of_timer(timer);
	struct mini unfollowed = {}, *m;
	struct cancelled before;

	if (!addr)
		return 0;
	before = note_cancel(&nothing, addr);
	m = bpf_map_lookup_elem(&minis, &addr);
	if (!m && before.addr != addr) /* its end is told */
		return 0;
	if (!m) { /* no room in minis */
		m = &unfollowed;
		read_mini(m, addr);
		m->state = m->substate;
	}
	mini_end(m, addr, bpf_ktime_get_ns());
	return 0;
}

#endif
