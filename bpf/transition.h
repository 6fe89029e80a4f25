/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The one path that every transition takes, whatever saw it: count, filter,
 * emit.
 */
#ifndef FINWAIT_TRANSITION_H
#define FINWAIT_TRANSITION_H

/* The tier of evidence that runs: EVIDENCE_TIMER or EVIDENCE_PROBE. Set by the loader. */
const volatile __u8 tier = EVIDENCE_TIMER;

/* Nobody wants events. Set by the loader. */
const volatile bool no_events = false;

/* The histograms have all transitions, whatever the filter. Set by the loader. */
const volatile bool profile_all = false;

struct transition {
	struct finwait_tuple tuple;
	__u64 net; /* the namespace's cookie */
	__u64 time_ns;
	__u64 since_ns; /* when old began; 0 if unknown */
	__u64 cookie;
	__u8 family;
	__u8 old;
	__u8 new;
	__u8 evidence;
	__u8 reason;
	__u8 side;
	__u8 __pad[2];
};

/*
 * To wake Go costs more than all the rest, so each CPU does it once in a while;
 * Go looks again after some more time than that before it goes to sleep (see
 * Events in tracer/tracer_linux.go). To be asked once there is room in the ring:
 * what has that before Go looks is seen, and whoever finds that Go was woken a
 * moment ago may rely on it.
 */
#define WAKE_EVERY_NS 10000000ULL

static __always_inline __u64 wake_flags(enum wake what)
{
	struct scratch *here = scratch_here();
	__u64 now = bpf_ktime_get_ns();

	if (!here || now - here->woke_ns[what] < WAKE_EVERY_NS)
		return BPF_RB_NO_WAKEUP;
	here->woke_ns[what] = now;
	return BPF_RB_FORCE_WAKEUP;
}

/* Every byte of the record is written: ring memory holds what was there before. */
static __always_inline void emit(const struct transition *t, const struct finwait_who *who)
{
	struct finwait_event *e;

	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		ledger_add(ring_full);
		return;
	}
	e->time_ns = t->time_ns;
	e->cookie = t->cookie;
	e->who = *who;
	e->tuple = t->tuple;
	e->family = t->family;
	e->old_state = t->old;
	e->new_state = t->new;
	e->evidence = t->evidence;
	e->reason = t->reason;
	e->side = t->new == CLOSE ? t->side : SIDE_UNKNOWN;
	e->dwell_ns = 0;
	e->flags = 0;
	if (t->since_ns && t->time_ns >= t->since_ns) {
		e->dwell_ns = t->time_ns - t->since_ns;
		e->flags = EVENT_DWELL_KNOWN;
	}
	__builtin_memset(e->__pad, 0, sizeof(e->__pad));
	bpf_ringbuf_submit(e, wake_flags(WAKE_EVENTS));
	ledger_add(emitted);
}

static __always_inline void profile(const struct transition *t, const struct finwait_who *who);

/*
 * Tells a transition that has passed by its tuple, or has not. Not static, so that
 * the verifier looks at it once, and not wherever a program comes by with another
 * state: together they are near its limit of a million instructions. It takes it
 * that such a function may write to what it is given.
 */
__noinline int emit_if_wanted(const struct transition *t, const struct finwait_who *who, bool passed)
{
	if (!t || !who)
		return 0;
	passed = passed && filter_transitions(t->old, t->new) && filter_who(who);
	if (passed || profile_all)
		profile(t, who);
	if (passed && !no_events && filter_sample(t->cookie, &t->tuple))
		emit(t, who);
	return 0;
}

/* The same, where most has not passed. */
static __always_inline void offer(const struct transition *t, const struct finwait_who *who, bool passed)
{
	if (passed || profile_all)
		emit_if_wanted(t, who, passed);
}

#endif
