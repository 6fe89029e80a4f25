/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the kernel itself has noted of when a socket that is older than the
 * tracer entered its state. TCP's clock (tcp_clock_ns) is CLOCK_MONOTONIC, as
 * bpf_ktime_get_ns() is.
 */
#ifndef FINWAIT_STAMPS_H
#define FINWAIT_STAMPS_H

#define NSEC_PER_USEC 1000ULL
#define NSEC_PER_MSEC 1000000ULL

/* The moment that a 32-bit stamp in milliseconds speaks of; 0 is no stamp. */
static __always_inline __u64 from_msec(__u32 stamp, __u64 now)
{
	__u64 now_msec = now / NSEC_PER_MSEC;
	__u32 ago = (__u32)now_msec - stamp;

	return stamp && ago <= now_msec ? (now_msec - ago) * NSEC_PER_MSEC : 0;
}

/*
 * When a half-open connection began, to the microsecond: its first SYN-ACK is
 * sent right after it is queued (tcp_conn_request), and tcp_make_synack notes
 * the time of that one only. 0 if it is about to.
 */
static __always_inline __u64 half_open_since(__u64 addr)
{
	return BPF_CORE_READ((struct tcp_request_sock *)addr, snt_synack) * NSEC_PER_USEC;
}

/*
 * When a socket in SYN_SENT entered it, to the millisecond; 0 if that cannot be
 * told. tcp_connect notes when the first SYN is sent, and nothing changes that
 * before the handshake is over. The unit is a millisecond, unless the route asks
 * for microseconds, of which 32 bits are too few. A socket that waits for data
 * to put into the SYN (tcp_fastopen_defer_connect) has sent none, and its stamp
 * may be that of an earlier connection.
 */
static __always_inline __u64 syn_sent_since(const struct tcp_sock *tp, __u64 now)
{
	if (bpf_core_field_exists(tp->tcp_usec_ts) && BPF_CORE_READ_BITFIELD_PROBED(tp, tcp_usec_ts))
		return 0;
	if (!BPF_CORE_READ(tp, packets_out))
		return 0;
	return from_msec(BPF_CORE_READ(tp, retrans_stamp), now);
}

/*
 * When a socket was last dealt with: tcp_mstamp is set for each segment that
 * comes, before anything is done with it (tcp_rcv_established,
 * tcp_rcv_state_process), and by every timer and whatever sends. A socket that a
 * segment has brought into its state was dealt with then, or after. Unlike
 * rcv_tstamp, which tcp_ack does not set for an acknowledgement that is older
 * than another, as that of a FIN may be that was delayed on its way.
 *
 * Two do not have it, and lrcvtime instead: the child of a Fast Open SYN
 * (tcp_create_openreq_child), and what TCP_REPAIR connects (tcp_finish_connect).
 *
 * Less a tick of the kernel for lrcvtime, which is in ticks, and another for
 * what lies between the stamp and the transition.
 */
static __always_inline __u64 dealt_with(const struct tcp_sock *tp, __u64 now)
{
	__u64 segment = BPF_CORE_READ(tp, tcp_mstamp) * NSEC_PER_USEC;
	__u32 ticks = (__u32)bpf_jiffies64() - BPF_CORE_READ(tp, inet_conn.icsk_ack.lrcvtime);
	__u64 data = now - ticks * jiffy_ns + jiffy_ns;
	__u64 last = segment > data || data > now ? segment : data;

	return last + jiffy_ns;
}

/*
 * When the one SYN or FIN that the peer has not acknowledged was first repeated
 * after a timeout; 0 if it was not, or if there is more that has not been
 * acknowledged, and so it may have been that which was repeated before. An
 * acknowledgement of anything begins the count anew (tcp_ack), and the first
 * timeout of a count is noted in milliseconds (tcp_update_rto_stats); before 6.7
 * it is not, and the last timeout has to do. What the child of a Fast Open SYN
 * repeats is its SYN-ACK, which is older.
 */
static __always_inline __u64 first_repeated(const struct tcp_sock *tp, __u64 now)
{
	if (BPF_CORE_READ(tp, write_seq) - BPF_CORE_READ(tp, snd_una) != 1 || BPF_CORE_READ(tp, fastopen_rsk))
		return 0;
	if (!BPF_CORE_READ(tp, inet_conn.icsk_retransmits))
		return 0;
	if (bpf_core_field_exists(tp->rto_stamp) && BPF_CORE_READ(tp, rto_stamp))
		return from_msec(BPF_CORE_READ(tp, rto_stamp), now);
	return BPF_CORE_READ(tp, tcp_mstamp) * NSEC_PER_USEC;
}

/*
 * A moment at which the socket was in its state already, as early as the kernel
 * can say; 0 if it cannot.
 *
 *	SYN_SENT		its SYN was repeated
 *	ESTABLISHED		the last segment of the handshake, or any since
 *	CLOSE_WAIT		the peer's FIN, or what filled the gap before it
 *	FIN_WAIT2		the acknowledgement of its FIN
 *	CLOSING			the peer's FIN
 *	FIN_WAIT1, LAST_ACK	a process closed it, which leaves no stamp of its
 *				own: tcp_send_fin does not even send where memory
 *				is short. But its FIN was repeated
 *	SYN_RECV		nothing: a Fast Open child has not been dealt with
 *	LISTEN			nothing: a process made it
 */
static __always_inline __u64 in_state_by(const struct tcp_sock *tp, __u32 state, __u64 now)
{
	switch (state) {
	case ESTABLISHED:
	case CLOSE_WAIT:
	case FIN_WAIT2:
	case CLOSING:
		return dealt_with(tp, now);
	case SYN_SENT:
	case FIN_WAIT1:
	case LAST_ACK:
		return first_repeated(tp, now);
	}
	return 0;
}

#endif
