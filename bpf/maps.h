/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The maps, and the two counters that every path writes to. */
#ifndef FINWAIT_MAPS_H
#define FINWAIT_MAPS_H

/*
 * Every transition, old state by new state.
 * key 0; written by count(); read by Go, and by anyone with bpftool.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct finwait_matrix);
} matrix SEC(".maps");

/*
 * Every socket that has ended, by how.
 * key 0; written by count_ending(); read by Go.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct finwait_endings);
} endings SEC(".maps");

/*
 * What was emitted and what went wrong.
 * key 0; written wherever something is emitted or fails; read by Go.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct finwait_ledger);
} ledger SEC(".maps");

/*
 * Events on their way to Go. Size set by the loader.
 * Full: the event is lost and ledger.ring_full counts it; counters stay exact.
 */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
	__type(value, struct finwait_event);
} events SEC(".maps");

/*
 * How many sockets are in each state, by network namespace. Key is the
 * namespace's cookie, which is never used again; a row for key 0 is there from
 * the start, for namespaces that find no room (ledger.netns_full).
 * Inserted by gauge_insert; read by Go, which deletes the rows of namespaces that
 * are gone. Preallocated, as minis is.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct finwait_gauge);
} gauges SEC(".maps");

/* What is known of a socket beyond what the kernel keeps. */
struct conn {
	__u64 since_ns; /* when it entered the state it is in; 0 if unknown */
	__u64 mini; /* the mini-socket that is about to replace it (probe tier); 0 if there is none */
	__u64 held_ns; /* when the held transition happened; 0 if none is held */
	__u64 held_since_ns;
	struct finwait_who who;
	__u32 claimed; /* it is in gauges */
	__u8 held_old;
	__u8 held_new;
	__u16 handled; /* the last transition that was, as transition_id says it */
	__u8 state; /* that it is in since then; valid if claimed */
	__u8 side; /* enum finwait_side, as far as it is known */
	__u8 reset; /* tcp_reset is ending it */
	__u8 reason; /* enum finwait_reason, why it is closed */
	__u8 older; /* it was there before settled, and is in that state since, unless since_ns says more */
	__u8 __pad[3];
};

/*
 * Full sockets: key is the socket. Created when it is first seen, by its first
 * transition or by claim, freed by the kernel with the socket. BPF_F_CLONE
 * hands a listener's owner to the sockets it accepts.
 * Refused (option memory limit): ledger.storage_failed; dwell and owner are
 * then unknown, and the socket is not in gauges until an audit claims it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct conn);
} conns SEC(".maps");

/* What is known of a mini-socket, which cannot have socket storage. */
struct mini {
	struct finwait_tuple tuple;
	struct finwait_who who;
	__u64 net; /* its namespace's cookie */
	__u64 cookie; /* of the connection; 0 if unknown */
	__u64 tw_cookie; /* what the mini-socket itself had at first; 0 if none */
	__u64 since_ns; /* when it entered state; 0 if unknown */
	__u64 ended_ns; /* when it ended, if that was before its socket closed */
	__u32 state; /* as last told, or one of NOT_JOINED and ENDED */
	__u8 family;
	__u8 reason; /* of its end, if that is known before */
	__u8 gauged; /* it is in gauges */
	__u8 suspect; /* an audit found it gone */
	__u8 stray; /* it is in no map */
	__u8 side; /* enum finwait_side */
	__u8 older; /* as in conn */
	__u8 __pad[5];
};

/*
 * Mini-sockets (TIME_WAIT and orphan FIN_WAIT2): key is the address of the
 * inet_timewait_sock. Inserted when it is made, or by claim; deleted when it
 * ends. Preallocated, because its users run under the timer base's lock, where
 * an allocation could arm a timer. Size set by the loader.
 * Full: ledger.unfollowed; the end of that mini-socket has no dwell, no owner.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 16);
	__type(key, __u64);
	__type(value, struct mini);
} minis SEC(".maps");

/*
 * The mini-sockets that could not be put into minis when they were made: up to
 * 6.6 a map that a softirq finds locked by whom it has interrupted refuses it
 * (fixed by d35381aa73f7). Few, and so not sized by the loader.
 * Full: ledger.unfollowed, as above.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct mini);
} minis_aside SEC(".maps");

/* How many were put there, so that nobody looks when there are none. */
__u64 minis_put_aside;

/* How many there are in gauges for which there was no room at all. */
__s64 unfollowed_live;

/* What is known of a half-open connection: a request socket. */
struct request {
	struct finwait_tuple tuple;
	struct finwait_who who;
	__u64 net;
	__u64 cookie; /* 0 if nobody has asked for it yet */
	__u64 since_ns; /* when it was queued; 0 if unknown */
	__u64 moved_from; /* the address it had with another listener (probe tier) */
	__u8 family;
	__u8 told; /* its beginning is told */
	__u8 gauged;
	__u8 migrating; /* it is being moved to another listener */
	__u8 reason;
	__u8 suspect;
	__u8 __pad[2];
	__u32 taken; /* it is ended; the map may have refused to delete it */
	__u32 __pad2;
};

/*
 * Half-open connections: key is the address of the request_sock. Inserted when
 * it is queued, or by claim; deleted when the handshake is complete or given
 * up. Preallocated, as minis is. Size set by the loader.
 * Full: ledger.requests_full; told without dwell then.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 16);
	__type(key, __u64);
	__type(value, struct request);
} requests SEC(".maps");

/* A half-open connection whose handshake is complete. */
struct completed {
	__u64 child; /* address of the socket that goes on */
	__u64 since_ns;
	__u64 told;
};

/*
 * From a handshake's completion to the next transition of the child, which
 * follows in the same softirq: key is the tuple, which both have. Inserted by
 * request_complete, deleted by request_join.
 * Full: ledger.completed_full; the child then seems to come out of nothing.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct finwait_tuple);
	__type(value, struct completed);
} completed SEC(".maps");

/*
 * Half-open connections that another listener has taken over, of which the new
 * request socket is not known yet (probe tier). Key is the tuple. Inserted by
 * request_leave, deleted by request_arrive.
 * Full: ledger.requests_full.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct finwait_tuple);
	__type(value, struct request);
} migrated SEC(".maps");

/* How many are in migrated, so that nobody looks when there are none. */
__s64 migrations;

/*
 * From the making of a mini-socket to the FIN_WAIT2 to CLOSE of the socket it
 * replaces, a few microseconds (timer tier; the probe tier has the socket, and
 * uses conn.mini): key is the tuple, which both have, value the
 * address of the mini-socket. Inserted by the first, deleted by the second.
 * Full: ledger.handoff_full.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct finwait_tuple);
	__type(value, __u64);
} handoff SEC(".maps");

/*
 * The mini-sockets in FIN_WAIT2, which sweep_orphans must look at, because no
 * tracepoint tells when they move to TIME_WAIT. Key is the address of the
 * mini-socket, the value says nothing. As large as minis.
 * Full: ledger.watch_full; the transition is then told when the next is.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 16);
	__type(key, __u64);
	__type(value, __u8);
} watch SEC(".maps");

/* How many are in watch, so that Go need not sweep when there are none. */
__s64 watching;

/*
 * Nothing is kept of sockets, and nobody told: transitions are counted, and what
 * that takes is done. Set by the loader.
 */
const volatile bool counters_only = false;

/*
 * All programs are attached. Before, those on the tracepoint do nothing: a
 * socket of which some see one transition, and none the next, would be lost.
 * Set by Go.
 */
bool attached;

/*
 * All that was there when the tracer was attached has been claimed: what is not
 * known to minis or requests now is there for want of room. Set by Go.
 */
bool settled;
__u64 settled_ns; /* when that was */

/* What Go is woken for. */
enum wake {
	WAKE_EVENTS,
	WAKE_RECORDS,
	WAKE_KINDS,
};

#define CALLERS_DEPTH 16
#define NESTING_MAX 4 /* a process, a softirq, an interrupt, an NMI */

/* Where kernel functions return to, the innermost first. */
struct callstack {
	__u64 ips[CALLERS_DEPTH];
};

/* What the programs of one CPU tell each other. */
struct scratch {
	__u64 mark; /* what set_state_softirq handled last: the socket's address plus its new state */
	__u64 woke_ns[WAKE_KINDS]; /* when Go was last woken from here */
	__u64 child; /* the socket that came out of a listener last, if its handshake's end is not seen */
	__u64 rearming; /* the mini-socket whose timer is about to be armed anew */
	__u64 expiring; /* the request socket whose timer runs */
	__u64 migrating; /* the request socket that is being moved to another listener */
	__u64 ending; /* the mini-socket that ends here, if minis does not have it */
	__u64 ending_reason; /* and why */
	struct request stray; /* what expiring is, if requests does not have it */
	__u64 nested; /* how many programs are looking at a stack, each but the last interrupted */
	struct callstack stacks[NESTING_MAX];
};

/* Key 0. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratch SEC(".maps");

static __always_inline struct finwait_ledger *ledger_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&ledger, &zero);
}

/* An increment in an interrupted program can be lost without an atomic one. */
#define ledger_add(field)                                    \
	do {                                                 \
		struct finwait_ledger *l_ = ledger_here();   \
		if (l_)                                      \
			__sync_fetch_and_add(&l_->field, 1); \
	} while (0)

static __always_inline void count(__u32 old, __u32 new)
{
	__u64 cell = old * NUM_STATES + new;
	struct finwait_matrix *m;
	__u32 zero = 0;

	m = bpf_map_lookup_elem(&matrix, &zero);
	/* The verifier of 6.1 does not see what clang knows of old and new. */
	barrier_var(cell);
	if (m && cell < NUM_STATES * NUM_STATES)
		__sync_fetch_and_add((__u64 *)m + cell, 1);
}

/* Goes with count(old, CLOSE). Global, as emit_if_wanted is. */
__noinline int count_ending(__u32 old, __u32 reason, __u32 side)
{
	__u64 cell = (old * NUM_REASONS + reason) * NUM_SIDES + side;
	struct finwait_endings *e;
	__u32 zero = 0;

	e = bpf_map_lookup_elem(&endings, &zero);
	barrier_var(cell);
	if (e && cell < NUM_STATES * NUM_REASONS * NUM_SIDES)
		__sync_fetch_and_add((__u64 *)e + cell, 1);
	return 0;
}

/* Takes back a transition that was counted on this CPU as another than it turns out to be. */
static __always_inline void recount(__u32 old, __u32 now_old, __u32 new)
{
	struct finwait_matrix *m;
	__u32 zero = 0;

	m = bpf_map_lookup_elem(&matrix, &zero);
	if (!m)
		return;
	__sync_fetch_and_add((__u64 *)m + now_old * NUM_STATES + new, 1);
	__sync_fetch_and_add((__u64 *)m + old * NUM_STATES + new, -1ULL);
}

static __always_inline struct scratch *scratch_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
}

/* A socket lies at a multiple of 64, so that no two marks are the same. */
static __always_inline void mark(const struct sock *sk, __u32 new)
{
	struct scratch *here = scratch_here();

	if (here)
		here->mark = (__u64)sk + new;
}

static __always_inline bool marked(const struct sock *sk, __u32 new)
{
	struct scratch *here = scratch_here();

	return here && here->mark == (__u64)sk + new;
}

#endif
