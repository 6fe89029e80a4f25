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
	__u32 ago = (__u32)(now / NSEC_PER_MSEC) - stamp;

	return stamp ? now - now % NSEC_PER_MSEC - ago * NSEC_PER_MSEC : 0;
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

#endif
