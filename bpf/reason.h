/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Why a full socket is closed, and by whom. The tracepoint says neither: the
 * socket's own fields tell some of it, and the kernel's stack the rest, which is
 * looked at only where a connection ends in another way than by its FINs.
 *
 * What is decided from those is decided by global functions: the verifier goes
 * through one once, and not for every way that leads there.
 */
#ifndef FINWAIT_REASON_H
#define FINWAIT_REASON_H

/* What is so of a socket that closes. */
enum fact {
	RESET = 1 << 0, /* tcp_reset is ending it */
	ERROR = 1 << 1, /* sk_err is set: whoever asks is going to be told */
	REFUSED = 1 << 2, /* and says connection refused */
	DEAD = 1 << 3, /* nobody owns it any more */
	GRAFTED = 1 << 4, /* a process has it, or had: it was accepted, or connected */
	USER_TIMEOUT = 1 << 5, /* TCP_USER_TIMEOUT is what a timer goes by */
	NO_LINGER = 1 << 6, /* TCP_LINGER2 is negative */
	NETNS_DYING = 1 << 7,
	NO_MEMORY = 1 << 8,
	REPAIR = 1 << 9, /* TCP_REPAIR is on */
};

#define FACT(condition, fact) ((__u32)(!!(condition)) * (fact))

/* What tcp_out_of_memory asks of a socket before it looks at all of them. */
#define SOCK_MIN_SNDBUF 4608 /* include/net/sock.h; its size depends on sk_buff's, by some bytes */

/* As tcp_out_of_memory does. */
static __always_inline bool out_of_memory(const struct sock *sk)
{
	struct proto *prot = BPF_CORE_READ(sk, __sk_common.skc_prot);
	long limit = 0;

	bpf_probe_read_kernel(&limit, sizeof(limit), BPF_CORE_READ(prot, sysctl_mem) + 2);
	return BPF_CORE_READ(sk, sk_wmem_queued) > SOCK_MIN_SNDBUF &&
	       BPF_CORE_READ(prot, memory_allocated, counter) > limit;
}

/* Is the network namespace being taken down (check_net)? */
static __always_inline bool netns_dying(const struct sock *sk)
{
	const struct net *net = BPF_CORE_READ(sk, __sk_common.skc_net.net);
	const struct ns_common___before_618 *old = (const void *)__builtin_preserve_access_index(&net->ns);

	if (bpf_core_field_exists(net->ns.__ns_ref))
		return !BPF_CORE_READ(net, ns.__ns_ref.refs.counter);
	return !BPF_CORE_READ(old, count.refs.counter);
}

/*
 * Does TCP_USER_TIMEOUT end the connection, should a timer? Where it is set,
 * nothing else does, but for the number of probes of a window that stays closed
 * (tcp_probe_timer).
 */
static __always_inline bool by_user_timeout(const struct tcp_sock *tp)
{
	__u32 timeout = BPF_CORE_READ(tp, inet_conn.icsk_user_timeout);
	__u32 probing = BPF_CORE_READ(tp, inet_conn.icsk_probes_tstamp);
	__u64 since = ((__u32)bpf_jiffies64() - probing) * jiffy_ns;

	return timeout && (!probing || since >= timeout * 1000000ULL);
}

__noinline __u32 facts_of(__u64 addr, bool reset)
{
	const struct sock *sk = (const struct sock *)addr;
	const struct tcp_sock *tp = (const struct tcp_sock *)sk;
	int err = BPF_CORE_READ(sk, sk_err);

	return FACT(reset, RESET) | FACT(err, ERROR) | FACT(err == ECONNREFUSED, REFUSED) |
	       FACT(BPF_CORE_READ(sk, __sk_common.skc_flags) & SOCK_DEAD, DEAD) |
	       FACT(BPF_CORE_READ(sk, sk_socket), GRAFTED) | FACT(by_user_timeout(tp), USER_TIMEOUT) |
	       FACT(BPF_CORE_READ_BITFIELD_PROBED(tp, repair), REPAIR) |
	       FACT(BPF_CORE_READ(tp, linger2) < 0, NO_LINGER) | FACT(netns_dying(sk), NETNS_DYING) |
	       FACT(out_of_memory(sk), NO_MEMORY);
}

/* What tcp_check_oom is called for: it counts orphans and memory. */
static __always_inline __u8 out_of_resources(__u32 facts)
{
	if (facts & NETNS_DYING)
		return REASON_NETNS_GONE;
	return facts & NO_MEMORY ? REASON_RST_SENT_MEMORY : REASON_RST_SENT_ORPHAN_LIMIT;
}

/* A timer has given the connection up: tcp_write_err, or an orphan that asks too much. */
static __always_inline __u8 timer_gave_up(__u32 facts, __u32 by, __u32 old)
{
	bool keepalive = by & CALLED_BY(TCP_KEEPALIVE_TIMER);

	/* Of one that has an owner, who may have taken the error away already (up to 6.9). */
	if (facts & DEAD && !(facts & ERROR)) {
		if (!keepalive)
			return out_of_resources(facts);
		/* an orphan in FIN_WAIT2 */
		return facts & NO_LINGER ? REASON_RST_SENT_LINGER : REASON_EXPIRED;
	}
	if (old == SYN_SENT || old == SYN_RECV)
		return REASON_TIMEOUT_HANDSHAKE;
	if (facts & USER_TIMEOUT)
		return REASON_TIMEOUT_USER;
	return keepalive ? REASON_TIMEOUT_KEEPALIVE : REASON_TIMEOUT_RETRANSMIT;
}

/* A segment has ended it that was not a reset (tcp_rcv_state_process). */
static __always_inline __u8 segment_ended(__u32 facts, __u32 old)
{
	if (old == LAST_ACK)
		return REASON_FIN;
	if (old == FIN_WAIT2)
		return facts & NO_LINGER ? REASON_RST_SENT_LINGER : REASON_RST_SENT_LATE_DATA;
	return old == SYN_RECV ? REASON_HANDSHAKE_FAILED : REASON_UNKNOWN;
}

/* A process has ended it: close, shutdown, connect. */
static __always_inline __u8 process_ended(__u32 facts, __u32 by, __u32 old)
{
	bool close = by & CALLED_BY(TCP_CLOSE), disconnect = by & CALLED_BY(TCP_DISCONNECT);

	if (old == SYN_SENT && facts & REFUSED)
		return REASON_REFUSED;
	if (old == SYN_SENT)
		return close || disconnect ? REASON_CLOSED : REASON_LOCAL_ERROR;
	if (old == LISTEN) /* closed by its own protocol, if MPTCP is above it */
		return by & CALLED_BY(LISTEN_START) ? REASON_LOCAL_ERROR : REASON_CLOSED;
	if (disconnect) {
		if (facts & REPAIR) /* the peer is told nothing */
			return REASON_CLOSED;
		if (!(facts & GRAFTED)) /* inet_csk_listen_stop */
			return REASON_RST_SENT_UNACCEPTED;
		return close ? REASON_RST_SENT_LINGER : REASON_RST_SENT_ABORT;
	}
	if (!close)
		return old == SYN_RECV ? REASON_HANDSHAKE_FAILED : REASON_UNKNOWN;
	if (!(facts & DEAD))
		return REASON_RST_SENT_UNREAD_DATA;
	if (old == FIN_WAIT2 && facts & NO_LINGER)
		return REASON_RST_SENT_LINGER;
	return out_of_resources(facts);
}

/*
 * A reset for data that came after close is a call of tcp_reset too, as if one
 * had come (tcp_rcv_state_process); one that did come went through
 * tcp_validate_incoming.
 */
static __always_inline __u8 reset_ended(__u32 by)
{
	if (!symbols[SYMBOL_TCP_VALIDATE_INCOMING].start || by & CALLED_BY(TCP_VALIDATE_INCOMING))
		return REASON_RST_RECEIVED;
	return REASON_RST_SENT_LATE_DATA;
}

/* Without the kernel's symbols nobody is known to have called. */
static __always_inline bool nobody_known(__u32 by)
{
	return by & STACK_UNKNOWN || !symbols[SYMBOL_TCP_CLOSE].start;
}

/* Why a socket goes from old to CLOSE, by what is so of it and who called. */
__noinline __u32 reason_by(__u32 facts, __u32 by, __u32 old)
{
	if (nobody_known(by))
		return REASON_UNKNOWN;
	if (facts & RESET)
		return reset_ended(by);
	if (by & (CALLED_BY(TCP_ABORT) | CALLED_BY(DIAG_DESTROY)))
		return REASON_KILLED;
	if (by & (CALLED_BY(TCP_V4_ERR) | CALLED_BY(TCP_V6_ERR)))
		return REASON_UNREACHABLE;
	if (by & CALLED_BY(TCP_TIME_WAIT))
		return REASON_TIME_WAIT_REFUSED;
	/* A timer that found the socket locked runs when it is released. */
	if (by & (CALLED_BY(TCP_KEEPALIVE_TIMER) | CALLED_BY(TCP_WRITE_TIMER) |
		  CALLED_BY(TCP_WRITE_TIMER_HANDLER) | CALLED_BY(TCP_RELEASE_CB)))
		return timer_gave_up(facts, by, old);
	if (by & CALLED_BY(TCP_RCV_STATE_PROCESS))
		return segment_ended(facts, old);
	return process_ended(facts, by, old);
}

/* Is all that was sent acknowledged, the FIN too? */
static __always_inline bool all_acked(const struct sock *sk)
{
	const struct tcp_sock *tp = (const struct tcp_sock *)sk;

	return BPF_CORE_READ(tp, snd_una) == BPF_CORE_READ(tp, write_seq);
}

/*
 * Is it a reset? tcp_reset alone sets these errors, should its tracepoint have
 * been missed, in all states but those of a socket's next life: what a connection
 * before has left behind stays until connect (tcp_disconnect).
 */
static __always_inline bool is_reset(const struct sock *sk, __u32 old, bool told)
{
	return told ||
	       (old != SYN_SENT && old != LISTEN && (sk->sk_err == ECONNRESET || sk->sk_err == EPIPE));
}

/*
 * Can a reset be for data that came too late? In these states segments are
 * taken that begin before the end of what the peer has sent, and go beyond.
 */
static __always_inline bool may_be_late(__u32 old)
{
	return old != ESTABLISHED && old != SYN_SENT && old != SYN_RECV;
}

/* Why the socket goes from old to CLOSE; no mini-socket takes its place. */
static __always_inline __u32 end_reason(void *ctx, struct sock *sk, __u32 old, bool reset)
{
	reset = is_reset(sk, old, reset);
	if (reset && !may_be_late(old))
		return old == SYN_SENT ? REASON_REFUSED : REASON_RST_RECEIVED;
	if (old == LAST_ACK && !sk->sk_err && all_acked(sk))
		return REASON_FIN;
	return reason_by(facts_of(address_of(sk), reset), callers(ctx, true), old);
}

/*
 * A reset has come, or has to be answered with as if it had. What it does to the
 * socket follows at once.
 */
SEC("tp_btf/tcp_receive_reset")
int BPF_PROG(receive_reset, struct sock *sk)
{
	struct conn *c;

	if (!attached || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	c = bpf_sk_storage_get(&conns, sk, NULL, 0);
	if (c)
		c->reset = 1;
	return 0;
}

#define REASON_BIT(reason) (1U << REASON_##reason)

/* The reasons that say who ended a connection of which neither end had closed. */
#define ENDED_BY_PEER (REASON_BIT(RST_RECEIVED) | REASON_BIT(REFUSED))
#define ENDED_HERE                                                                                     \
	(REASON_BIT(RST_SENT_UNREAD_DATA) | REASON_BIT(RST_SENT_LINGER) | REASON_BIT(RST_SENT_ABORT) | \
	 REASON_BIT(RST_SENT_UNACCEPTED) | REASON_BIT(RST_SENT_MEMORY) | REASON_BIT(CLOSED) |          \
	 REASON_BIT(KILLED) | REASON_BIT(LOCAL_ERROR))

/*
 * Who closed first, of a socket of which that was known to be side, and which
 * goes from old to new.
 */
__noinline __u32 side_by(__u32 side, __u32 old, __u32 new, __u32 reason)
{
	__u32 bit = 1U << (reason & 31);

	if (old == CLOSE || old == LISTEN)
		return SIDE_UNKNOWN;
	if (new == FIN_WAIT1)
		return SIDE_LOCAL;
	if (new == CLOSE_WAIT)
		return SIDE_PEER;
	if (new == CLOSING)
		return SIDE_BOTH;
	if (new != CLOSE || side != SIDE_UNKNOWN)
		return side;
	if (bit & ENDED_BY_PEER)
		return SIDE_PEER;
	return bit & ENDED_HERE ? SIDE_LOCAL : SIDE_UNKNOWN;
}

/* Notes why the socket closes, if it does, and who closed first. */
static __always_inline void note_end(void *ctx, struct sock *sk, struct conn *c, __u32 old, __u32 new)
{
	if (old == CLOSE)
		c->reset = 0;
	c->reason = new == CLOSE ? end_reason(ctx, sk, old, c->reset) : REASON_UNKNOWN;
	c->side = side_by(c->side, old, new, c->reason);
}

#endif
