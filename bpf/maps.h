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

/* What is known of a socket beyond what the kernel keeps. */
struct conn {
	__u64 since_ns; /* when it entered the state it is in; 0 if unknown */
	__u64 held_ns; /* when the held transition happened; 0 if none is held */
	__u64 held_since_ns;
	struct finwait_who who;
	__u8 held_old;
	__u8 held_new;
	__u8 __pad[6];
};

/*
 * Full sockets: key is the socket. Created at the first transition seen, freed
 * by the kernel with the socket. BPF_F_CLONE hands a listener's owner to the
 * sockets it accepts.
 * Refused (option memory limit): ledger.storage_failed; dwell and owner are
 * then unknown.
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
	__u64 cookie; /* of the connection; 0 if unknown */
	__u64 tw_cookie; /* what the mini-socket itself had at first; 0 if none */
	__u64 since_ns; /* when it entered state; 0 if unknown */
	__u64 cancelled_ns; /* when its timer was cancelled; 0 if it is armed */
	__u64 moved_ns; /* when it moved to TIME_WAIT, if its cancel is the first to show it */
	__u32 state; /* as last told; NUM_STATES until its socket has closed */
	__u8 family;
	__u8 substate; /* as last read */
	__u8 __pad[2];
};

/*
 * Mini-sockets (TIME_WAIT and orphan FIN_WAIT2): key is the address of the
 * inet_timewait_sock. Inserted when its timer is armed first, deleted when it
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
 * From the arming of a mini-socket's timer to the FIN_WAIT2 to CLOSE of the
 * socket it replaces, a few microseconds: key is the tuple, which both have,
 * value the address of the mini-socket. Inserted by the first, deleted by the
 * second.
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

/* A mini-socket whose timer was cancelled, perhaps to be armed anew. */
struct cancelled {
	__u64 addr; /* 0 if there is none */
	__u64 time_ns;
	__u64 tw_cookie; /* tells it from another that gets its address */
};

/*
 * The last timer that each CPU cancelled, until what follows says whether that
 * was a mini-socket's end. Key is the CPU. Written by the timer tier on that
 * CPU, emptied there or by sweep_cancelled. One is enough: an arming anew
 * follows its cancel before that CPU can do anything else.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* the loader knows how many CPUs there are */
	__type(key, __u32);
	__type(value, struct cancelled);
} cancels SEC(".maps");

/* What the programs of one CPU tell each other. */
struct scratch {
	__u64 mark; /* what set_state_softirq handled last: the socket's address plus its new state */
	__u64 woke_ns; /* when Go was last woken from here */
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
