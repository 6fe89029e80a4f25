/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the kernel side and Go share: the event record, the counters, and the
 * numbers in them. bpf2go turns these types into Go; tracer/abi_linux_test.go holds
 * both sides to the same numbers.
 */
#ifndef FINWAIT_H
#define FINWAIT_H

/*
 * TCP states, as in include/net/tcp_states.h, where they are user-space ABI.
 * CLOSE also stands for "does not exist": a socket is born out of it.
 */
enum finwait_state {
	ESTABLISHED = 1,
	SYN_SENT,
	SYN_RECV,
	FIN_WAIT1,
	FIN_WAIT2,
	TIME_WAIT,
	CLOSE,
	CLOSE_WAIT,
	LAST_ACK,
	LISTEN,
	CLOSING,
	NEW_SYN_RECV,
	NUM_STATES,
};

/* What showed that a transition happened. */
enum finwait_evidence {
	EVIDENCE_KERNEL, /* inet_sock_set_state said so */
	EVIDENCE_TIMER, /* the timer of a mini-socket or request socket was armed, cancelled or expired */
	EVIDENCE_PROBE, /* the kernel function that does it was called */
};

/* Why a connection, or a mini-socket, is gone. tracer/event.go says more of each. */
enum finwait_reason {
	REASON_UNKNOWN,
	REASON_FIN,
	REASON_RST_RECEIVED,
	REASON_REFUSED,
	REASON_RST_SENT_UNREAD_DATA,
	REASON_RST_SENT_LINGER,
	REASON_RST_SENT_ABORT,
	REASON_RST_SENT_UNACCEPTED,
	REASON_RST_SENT_LATE_DATA,
	REASON_RST_SENT_ORPHAN_LIMIT,
	REASON_RST_SENT_MEMORY,
	REASON_TIMEOUT_HANDSHAKE,
	REASON_TIMEOUT_RETRANSMIT,
	REASON_TIMEOUT_KEEPALIVE,
	REASON_TIMEOUT_USER,
	REASON_UNREACHABLE,
	REASON_KILLED,
	REASON_CLOSED,
	REASON_LOCAL_ERROR,
	REASON_HANDSHAKE_FAILED,
	REASON_LISTENER_GONE,
	REASON_QUEUE_FULL,
	REASON_TIME_WAIT_REFUSED,
	REASON_EXPIRED,
	REASON_REUSED,
	REASON_NETNS_GONE,
	NUM_REASONS,
};

/* Who closed a connection first. */
enum finwait_side {
	SIDE_UNKNOWN, /* or nobody: it timed out */
	SIDE_LOCAL,
	SIDE_PEER,
	SIDE_BOTH, /* at once: each sent its FIN before the other's came */
	NUM_SIDES,
};

/* How the owner of a socket was learnt. */
enum finwait_origin {
	ORIGIN_UNKNOWN,
	ORIGIN_CONNECT,
	ORIGIN_LISTEN,
	ORIGIN_ACCEPT,
	ORIGIN_SNAPSHOT, /* it had the socket open when the tracer began */
};

enum finwait_role {
	ROLE_UNKNOWN,
	ROLE_CLIENT,
	ROLE_SERVER,
};

/* Bits of finwait_event.flags. */
enum finwait_event_flags {
	EVENT_DWELL_KNOWN = 1, /* dwell_ns is valid */
};

#define COMM_LEN 16

/*
 * Addresses and ports of a socket. IPv4 stands as IPv4-mapped IPv6. Ports are
 * in host order, 0 while unknown. Also the key of the handoff map, so it has no
 * padding.
 */
struct finwait_tuple {
	__u8 laddr[16];
	__u8 raddr[16];
	__u32 netns; /* inode number */
	__u16 lport;
	__u16 rport;
};
_Static_assert(sizeof(struct finwait_tuple) == 40, "tuple has padding");

/* Whose a socket is. All but role is zero if origin is ORIGIN_UNKNOWN. */
struct finwait_who {
	__u64 cgroup_id;
	__u32 pid; /* thread group id, initial PID namespace */
	__u32 uid; /* initial user namespace */
	__u8 comm[COMM_LEN];
	__u8 origin; /* enum finwait_origin */
	__u8 role; /* enum finwait_role */
	__u8 in_cgroup; /* the owner is in one of finwait_filter.cgroup, or below it */
	__u8 __pad[5];
};
_Static_assert(sizeof(struct finwait_who) == 40, "who has padding");

/* One transition, as it stands in the ring buffer. */
struct finwait_event {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u64 dwell_ns;
	__u64 cookie; /* 0 if unknown */
	struct finwait_who who;
	struct finwait_tuple tuple;
	__u8 family; /* AF_INET or AF_INET6 */
	__u8 old_state; /* enum finwait_state */
	__u8 new_state; /* enum finwait_state */
	__u8 evidence; /* enum finwait_evidence */
	__u8 flags; /* enum finwait_event_flags */
	__u8 reason; /* enum finwait_reason */
	__u8 side; /* enum finwait_side; on the last transition */
	__u8 __pad[1];
};
_Static_assert(sizeof(struct finwait_event) == 112, "event has padding");

/* The states that a connection has been in, each at most once. */
struct finwait_walk {
	__u64 start_ns; /* when its first began; 0 if that was not seen */
	__u64 dwell_ns[NUM_STATES];
	__u16 visited; /* a bit for each state that it has entered */
	__u16 known; /* and for each whose dwell is known */
	__u8 slow; /* it was in one for longer than it should (finwait_filter.slow_ns) */
	__u8 __pad[3];
};

/* A connection that has ended, as it stands in the ring buffer. */
struct finwait_conn {
	__u64 end_ns; /* CLOCK_MONOTONIC */
	__u64 cookie; /* 0 if unknown */
	__u64 bytes_sent; /* each once, however often it was sent */
	__u64 bytes_received;
	struct finwait_walk walk;
	struct finwait_who who;
	struct finwait_tuple tuple;
	__u32 segments_sent;
	__u32 segments_received;
	__u32 retransmits;
	__u32 srtt_us;
	__u8 family; /* AF_INET or AF_INET6 */
	__u8 side; /* enum finwait_side */
	__u8 reason; /* enum finwait_reason */
	__u8 time_wait_reason; /* the same, of the end of TIME_WAIT */
	__u8 counted; /* bytes, segments, retransmits and srtt are known */
	__u8 __pad[3];
};
_Static_assert(sizeof(struct finwait_conn) == 256, "conn has padding");

/*
 * Transitions out of one state. The fields stand in the order of enum
 * finwait_state, so that the row can be indexed by it.
 */
struct finwait_row {
	__u64 none;
	__u64 to_ESTABLISHED;
	__u64 to_SYN_SENT;
	__u64 to_SYN_RECV;
	__u64 to_FIN_WAIT1;
	__u64 to_FIN_WAIT2;
	__u64 to_TIME_WAIT;
	__u64 to_CLOSE;
	__u64 to_CLOSE_WAIT;
	__u64 to_LAST_ACK;
	__u64 to_LISTEN;
	__u64 to_CLOSING;
	__u64 to_NEW_SYN_RECV;
};

/*
 * Every transition of every TCP socket since start, old by new. Named fields
 * rather than an array, so that bpftool map dump reads as what it is.
 */
struct finwait_matrix {
	struct finwait_row none;
	struct finwait_row from_ESTABLISHED;
	struct finwait_row from_SYN_SENT;
	struct finwait_row from_SYN_RECV;
	struct finwait_row from_FIN_WAIT1;
	struct finwait_row from_FIN_WAIT2;
	struct finwait_row from_TIME_WAIT;
	struct finwait_row from_CLOSE;
	struct finwait_row from_CLOSE_WAIT;
	struct finwait_row from_LAST_ACK;
	struct finwait_row from_LISTEN;
	struct finwait_row from_CLOSING;
	struct finwait_row from_NEW_SYN_RECV;
};
_Static_assert(sizeof(struct finwait_matrix) == NUM_STATES * NUM_STATES * 8, "matrix misses a state");

/* Every socket that has ended: the state it was in, why, and who closed first. */
struct finwait_endings {
	__u64 n[NUM_STATES][NUM_REASONS][NUM_SIDES];
};

/*
 * How many sockets have entered and left each state, in one network namespace.
 * The difference is how many are in it. Those that are older than the tracer
 * enter when they are claimed. A full socket and the mini-socket that replaces
 * it are two here, and so are a request socket and its child. CLOSE is not
 * counted: a socket in CLOSE is not there.
 */
struct finwait_gauge {
	__u64 entered[NUM_STATES];
	__u64 left[NUM_STATES];
	__u64 born_ns; /* when this CPU first wrote; 0 if it has not */
	__u32 netns; /* inode number; 0 if it has not */
	__u32 __pad;
};

/*
 * Kernel functions that tell what is going on when they are found on the
 * stack. In tracer/symbols_linux.go stand their names, in the same order.
 */
enum finwait_symbol {
	SYMBOL_TW_TIMER_HANDLER,
	SYMBOL_REQSK_TIMER_HANDLER,
	SYMBOL_TWSK_DESCHEDULE,
	SYMBOL_TWSK_PURGE,
	SYMBOL_TIMEWAIT_PROCESS,
	SYMBOL_TCP_V4_RCV,
	SYMBOL_TCP_V6_RCV,
	SYMBOL_TCP_V4_ERR,
	SYMBOL_TCP_V6_ERR,
	SYMBOL_TCP_ABORT,
	SYMBOL_DIAG_DESTROY,
	SYMBOL_TWSK_SCHEDULE,
	SYMBOL_TCP_TIME_WAIT,
	SYMBOL_TCP_RCV_STATE_PROCESS,
	SYMBOL_TCP_VALIDATE_INCOMING,
	SYMBOL_TCP_KEEPALIVE_TIMER,
	SYMBOL_TCP_WRITE_TIMER,
	SYMBOL_TCP_WRITE_TIMER_HANDLER,
	SYMBOL_TCP_RELEASE_CB,
	SYMBOL_TCP_CLOSE,
	SYMBOL_TCP_DISCONNECT,
	SYMBOL_LISTEN_START,
	/* Beyond these the stack is that of whoever was interrupted. */
	SYMBOL_RUN_TIMER_SOFTIRQ,
	SYMBOL_HANDLE_SOFTIRQS,
	SYMBOL_DO_SOFTIRQ,
	NUM_SYMBOLS,
};

/* Where a function lies; both 0 if this kernel has none of that name. */
struct finwait_range {
	__u64 start;
	__u64 end;
};

/* What became of events, and everything that went wrong. */
struct finwait_ledger {
	__u64 emitted; /* events given to the ring */
	__u64 ring_full; /* events lost because the ring was full */
	__u64 not_held; /* events lost because there was no storage to hold them in */
	__u64 storage_failed; /* socket storage refused: dwell and owner unknown */
	__u64 unfollowed; /* times that a mini-socket found no room in minis */
	__u64 handoff_full; /* mini-socket not linked: its start reads FIN_WAIT2 to CLOSE */
	__u64 watch_full; /* mini-socket not watched: its next transition comes late */
	__u64 unknown_state; /* transitions with a state number that no kernel has had so far */
	__u64 taken_over; /* transitions that a program on the tracepoint was skipped for, and the next took
			   */
	__u64 missed; /* transitions that all of them were skipped for, as the socket's next shows */
	__u64 requests_full; /* half-open connections that found no room in requests */
	__u64 completed_full; /* half-open connections not linked to their socket */
	__u64 netns_full; /* transitions whose network namespace found no room in gauges */
	__u64 stack_failed; /* times that the kernel's stack could not be read */
	__u64 stale; /* mini-sockets and half-open connections whose end was missed, found by an audit */
	__u64 records_made; /* connections that have ended */
	__u64 records_told; /* records given to their ring */
	__u64 records_lost; /* records lost because that was full */
	__u64 records_full; /* records that lack what the full socket knew, for want of room in records */
	__u64 syn_cookies; /* connections that a SYN cookie opened, without a half-open state */
	__u64 profile_full; /* dwell times that found no room in profiles, but in its row for others */
};

/* What each histogram of dwell times is about. */
enum finwait_profile_by {
	PROFILE_OFF,
	PROFILE_BY_SERVICE,
	PROFILE_BY_REMOTE_PORT,
	PROFILE_BY_CGROUP,
	PROFILE_BY_PROCESS,
	PROFILE_BY_STATE,
};

/* Whose dwell times are in a histogram. */
enum finwait_profile_group {
	GROUP_ONE, /* of the port, cgroup or process in value; of all, if by state */
	GROUP_CLIENTS, /* of sockets whose local port is not a service's */
	GROUP_SERVERS, /* of sockets whose remote port is not a service's */
	GROUP_UNKNOWN, /* of sockets of which it is not known */
	GROUP_OTHERS, /* of those that found no room */
};

struct finwait_profile_key {
	__u64 value; /* a port, cgroup id or process id; 0 if group is not GROUP_ONE */
	__u32 state; /* enum finwait_state */
	__u32 group; /* enum finwait_profile_group */
};
_Static_assert(sizeof(struct finwait_profile_key) == 16, "profile key has padding");

#define PROFILE_BUCKETS 64

/* How long sockets have stayed in a state, as they left it. */
struct finwait_profile_row {
	__u64 buckets[PROFILE_BUCKETS]; /* by powers of two of a second: see profile_bucket */
	__u64 sum_ns;
	__u64 sum_carry; /* how often sum_ns has gone over */
	__u64 max_ns;
	__u64 unknown; /* transitions of which the dwell is not known; they are nowhere above */
	__u8 comm[COMM_LEN]; /* by process: its name */
};

/* A socket that has been in its state for too long. */
struct finwait_stuck {
	__u64 cookie;
	__u64 age_ns;
	struct finwait_who who;
	struct finwait_tuple tuple;
	__u8 family; /* AF_INET or AF_INET6 */
	__u8 state; /* enum finwait_state */
	__u8 at_least; /* it may have been there longer than age_ns */
	__u8 __pad[5];
};
_Static_assert(sizeof(struct finwait_stuck) == 24 + sizeof(struct finwait_who) + sizeof(struct finwait_tuple),
	       "stuck has padding");

/* A file that keeps a namespace. */
struct finwait_netns_file {
	__u32 netns; /* inode number */
	__u32 pid;
	__u32 fd;
	__u32 socket; /* it is a socket there, and not the namespace itself */
};

/* One network in finwait_filter.addr. */
struct finwait_cidr {
	__u8 addr[16];
	__u8 mask[16];
};

#define FILTER_MAX 16 /* values of one list */
#define PORT_WORDS (65536 / 64) /* a bit for each port */

/*
 * Which transitions become events, and which connections records. Everything
 * that is set must match.
 */
struct finwait_filter {
	__u64 sample_below; /* share of all connections, of 2^32 */
	__u64 slow_ns[NUM_STATES]; /* records: as long as that in a state; 0 is never */
	__u32 reasons; /* or ended for one of these, a bit for each */
	__u8 all_records; /* neither of the two is asked for */
	__u8 family; /* AF_INET or AF_INET6; 0 for both */
	__u16 transition[NUM_STATES]; /* bit new of word old */
	__u8 by_port; /* is the list of ports in use? */
	__u8 by_lport;
	__u8 by_rport;
	__u8 by_who; /* is any of those of the owner? */
	__u8 __pad[2];
	/* Lists, each with its length; length 0 lets everything through. */
	__u32 addr_len;
	__u32 netns_len;
	__u32 pid_len;
	__u32 uid_len;
	__u32 comm_len;
	__u32 cgroup_len;
	struct finwait_cidr addr[FILTER_MAX];
	__u64 cgroup[FILTER_MAX];
	__u32 netns[FILTER_MAX];
	__u32 pid[FILTER_MAX];
	__u32 uid[FILTER_MAX];
	__u8 comm[FILTER_MAX][COMM_LEN];
	__u64 port[PORT_WORDS];
	__u64 lport[PORT_WORDS];
	__u64 rport[PORT_WORDS];
};

#endif
