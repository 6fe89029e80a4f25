// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * finwait's kernel side. See README.md for how the files fit together.
 */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <stdbool.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "finwait.h"
#include "kernel.h"
#include "maps.h"
#include "filter.h"
#include "tuple.h"
#include "gauge.h"
#include "callers.h"
#include "preempt.h"
#include "transition.h"
#include "record.h"
#include "profile.h"
#include "request.h"
#include "socket.h"
#include "mini.h"
#include "reason.h"
#include "timer.h"
#include "probe.h"
#include "owners.h"
#include "stamps.h"
#include "claim.h"
#include "stuck.h"
#include "namespaces.h"

/*
 * A closing socket hands over to a mini-socket from these states only: see the
 * callers of tcp_time_wait().
 */
static __always_inline bool may_leave_mini(__u8 old, __u8 new)
{
	return new == CLOSE && (old == FIN_WAIT2 || old == CLOSING);
}

/* Does an accepted socket come into being? */
static __always_inline bool is_birth(__u8 old, __u8 new)
{
	return old == CLOSE && new == SYN_RECV;
}

/*
 * The tracepoint runs before the new state is stored, under the socket's lock.
 *
 * A clone's old state is its listener's (inet_csk_clone_lock), which has not
 * left LISTEN; what is true is that the socket was not there before.
 */
static __always_inline int on_set_state(void *ctx, struct sock *sk, int old, int new)
{
	__u16 id = transition_id(old, new);
	struct transition t = {};
	struct conn *c;
	bool claimed;
	__u64 mini;

	if (new == SYN_RECV && old != SYN_SENT)
		old = CLOSE;
	if ((__u32)old >= NUM_STATES || (__u32) new >= NUM_STATES) {
		ledger_add(unknown_state);
		return 0;
	}
	t.old = old;
	t.new = new;
	t.time_ns = bpf_ktime_get_ns();
	t.evidence = EVIDENCE_KERNEL;
	t.family = sk->__sk_common.skc_family;
	t.net = read_sock(&t.tuple, sk);
	t.tuple.lport = local_port(sk, old);
	c = bpf_sk_storage_get(&conns, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!c)
		ledger_add(storage_failed);
	claimed = c && claim_conn(c);
	if (claimed && !is_birth(old, new))
		catch_missed(&t, c);
	if (c) {
		c->handled = id;
		c->state = new;
	}
	if (is_birth(old, new)) {
		if (records_on && c)
			walk_step(sk, c, &t);
		gauge_socket(&t, c, claimed);
		be_born(c, sk, &t);
		return 0;
	}
	t.cookie = bpf_get_socket_cookie(sk);
	mini = may_leave_mini(old, new) ? mini_of(&t.tuple, c) : 0;
	if (mini) {
		t.side = c ? c->side : SIDE_UNKNOWN;
		if (records_on && c)
			record_keep(mini, sk, c, &t);
		mini_join(mini, c, claimed, &t);
		return 0;
	}
	if (c) {
		note_end(ctx, sk, c, old, new);
		t.reason = c->reason;
		t.side = c->side;
	}
	if (records_on && c)
		walk_step(sk, c, &t);
	gauge_socket(&t, c, claimed);
	count(old, new);
	if (new == CLOSE)
		count_ending(old, t.reason, t.side);
	tell(c, sk, &t, filter_tuple(&t.tuple, t.family));
	if (records_on && c && new == CLOSE)
		record_end(sk, c, &t);
	return 0;
}

static __always_inline bool is_transition(const struct sock *sk, int old, int new)
{
	return attached && sk->sk_protocol == IPPROTO_TCP && old != new;
}

/*
 * Since 6.1 the kernel skips a program that interrupts itself on one CPU
 * (05b24ff9b2cf), and a softirq may come in wherever a process changes a
 * socket's state: a packet's transition would be lost in the middle of a
 * system call's. So there are several programs on the tracepoint.
 *
 * The first takes what happens without an owner of the socket's lock, where
 * softirqs are off and nothing can come in between; the second takes the rest.
 * Should a softirq hit the moment in which the first lets a system call's
 * transition pass, the second finds no mark of the first's and takes over. And
 * where a tracepoint does not keep another process from the CPU (since 7.0), so
 * that the second can be skipped too, the third takes what the socket's storage
 * does not know of, and the fourth what that was skipped for. The loader leaves
 * those two out where a tracepoint does (tracepoints_keep_cpu).
 */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state_softirq, struct sock *sk, int old, int new)
{
	if (sk->sk_lock.owned || !is_transition(sk, old, new))
		return 0;
	mark(sk, new);
	return on_set_state(ctx, sk, old, new);
}

/*
 * Is a transition that no process makes still to be told? If so it is this
 * program's now, and no other's.
 */
static __always_inline bool take_over(struct sock *sk, int new)
{
	if (marked(sk, new))
		return false;
	mark(sk, new);
	ledger_add(taken_over);
	return true;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state, struct sock *sk, int old, int new)
{
	if (!is_transition(sk, old, new))
		return 0;
	if (!tracepoints_keep_cpu)
		keep_cpu();
	if (sk->sk_lock.owned || take_over(sk, new))
		on_set_state(ctx, sk, old, new);
	if (!tracepoints_keep_cpu)
		leave_cpu();
	return 0;
}

/* The same of one that a process makes: is it not in the socket's storage? */
static __always_inline bool take_over_owned(struct sock *sk, int old, int new)
{
	struct conn *c = bpf_sk_storage_get(&conns, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);

	if (!c || c->handled == transition_id(old, new))
		return false;
	ledger_add(taken_over);
	return true;
}

static __always_inline void set_state_once_more(void *ctx, struct sock *sk, int old, int new)
{
	keep_cpu();
	if (sk->sk_lock.owned ? take_over_owned(sk, old, new) : take_over(sk, new))
		on_set_state(ctx, sk, old, new);
	leave_cpu();
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state_again, struct sock *sk, int old, int new)
{
	if (is_transition(sk, old, new))
		set_state_once_more(ctx, sk, old, new);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state_last, struct sock *sk, int old, int new)
{
	if (is_transition(sk, old, new))
		set_state_once_more(ctx, sk, old, new);
	return 0;
}

/* A socket closes: is it into a mini-socket, of which another transition is counted? */
static __always_inline bool leaves_mini(struct sock *sk, int old)
{
	struct transition t = {};
	__u64 mini;

	t.net = read_sock(&t.tuple, sk);
	t.tuple.lport = source_port(sk);
	mini = mini_of(&t.tuple, tier == EVIDENCE_PROBE ? bpf_sk_storage_get(&conns, sk, NULL, 0) : NULL);
	if (!mini)
		return false;
	t.old = old;
	t.new = CLOSE;
	mini_join(mini, NULL, false, &t);
	return true;
}

/*
 * In place of all those above where transitions are counted and no more: one
 * program, since a second would cost as much again. What interrupts it is lost to
 * the counters, which the kernel counts (recursion_misses).
 *
 * Whether an accepted socket was half-open before is known when its request socket
 * is taken out of the table, and put right then.
 */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(count_state, struct sock *sk, int old, int new)
{
	struct scratch *here;

	if (!is_transition(sk, old, new))
		return 0;
	if ((__u32)old >= NUM_STATES || (__u32) new >= NUM_STATES) {
		ledger_add(unknown_state);
		return 0;
	}
	if (new == SYN_RECV && old != SYN_SENT) {
		old = CLOSE;
		here = scratch_here();
		if (here)
			here->child = (__u64)sk;
	}
	if (!may_leave_mini(old, new) || !leaves_mini(sk, old))
		count(old, new);
	return 0;
}

/* Looks at the mini-sockets in watch. Run by Go every so often. */
SEC("iter/bpf_map_elem")
int sweep_orphans(struct bpf_iter__bpf_map_elem *ctx)
{
	__u64 *addr = ctx->key;

	if (addr)
		sweep_orphan(*addr, bpf_ktime_get_ns());
	return 0;
}

/* bpf2go finds the types that no map mentions through these. */
const enum finwait_state *unused_state __attribute__((unused));
const enum finwait_evidence *unused_evidence __attribute__((unused));
const enum finwait_origin *unused_origin __attribute__((unused));
const enum finwait_role *unused_role __attribute__((unused));
const enum finwait_event_flags *unused_flags __attribute__((unused));
const enum finwait_side *unused_side __attribute__((unused));
const enum finwait_reason *unused_reason __attribute__((unused));
const enum finwait_symbol *unused_symbol __attribute__((unused));
const struct finwait_filter *unused_filter __attribute__((unused));
const struct finwait_conn *unused_conn __attribute__((unused));
const enum finwait_profile_by *unused_profile_by __attribute__((unused));
const enum finwait_profile_group *unused_profile_group __attribute__((unused));
const struct finwait_stuck *unused_stuck __attribute__((unused));
const struct finwait_netns_file *unused_netns_file __attribute__((unused));

char LICENSE[] SEC("license") = "Dual BSD/GPL";
