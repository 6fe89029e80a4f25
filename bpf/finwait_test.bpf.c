// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The pure functions behind programs that BPF_PROG_RUN can call, for
 * tracer/bpf_linux_test.go. Never part of the command.
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
#include "transition.h"
#include "profile.h"

/* Arguments and results of the programs below. */
struct test_filter {
	struct finwait_tuple tuple;
	struct finwait_who who;
	__u8 family;
	__u8 old_state;
	__u8 new_state;
	__u8 by_tuple; /* result: enum verdict */
	__u8 by_who;
	__u8 by_transition;
	__u8 __pad[2];
};

struct test_emit {
	struct finwait_tuple tuple;
	struct finwait_who who;
	__u64 time_ns;
	__u64 since_ns;
	__u64 cookie;
	__u8 family;
	__u8 old_state;
	__u8 new_state;
	__u8 evidence;
	__u32 times;
};

SEC("syscall")
int run_filter(struct test_filter *t)
{
	struct finwait_tuple tuple = t->tuple;
	struct finwait_who who = t->who;

	t->by_tuple = filter_tuple(&tuple, t->family);
	t->by_who = filter_who(&who);
	t->by_transition = filter_transitions(t->old_state, t->new_state);
	return 0;
}

struct emission {
	struct transition t;
	struct finwait_who who;
};

static long emit_once(__u32 i, struct emission *e)
{
	count(e->t.old, e->t.new);
	emit_if_wanted(&e->t, &e->who, true);
	return 0;
}

/* Counts and emits one transition as often as asked. */
SEC("syscall")
int run_emit(struct test_emit *in)
{
	struct emission e = {};

	e.who = in->who;
	e.t.tuple = in->tuple;
	e.t.time_ns = in->time_ns;
	e.t.since_ns = in->since_ns;
	e.t.cookie = in->cookie;
	e.t.family = in->family;
	e.t.old = in->old_state;
	e.t.new = in->new_state;
	e.t.evidence = in->evidence;
	bpf_loop(in->times, emit_once, &e, 0);
	return 0;
}

/* bpf2go finds the types that no map mentions through these. */
const struct finwait_filter *unused_filter __attribute__((unused));
const struct test_filter *unused_test_filter __attribute__((unused));
const struct test_emit *unused_emit __attribute__((unused));

char LICENSE[] SEC("license") = "Dual BSD/GPL";
