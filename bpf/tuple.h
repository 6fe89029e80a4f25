/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Addresses, ports and namespace of sockets of every kind. */
#ifndef FINWAIT_TUPLE_H
#define FINWAIT_TUPLE_H

static __always_inline void map_ipv4(__u8 *addr, __be32 ipv4)
{
	__u32 *words = (__u32 *)addr;

	words[0] = 0;
	words[1] = 0;
	words[2] = bpf_htonl(0xffff);
	words[3] = ipv4;
}

/*
 * What the head of a mini-socket or request socket says; all but the local
 * port, which each of them keeps elsewhere. Returns the namespace's cookie.
 */
static __always_inline __u64 read_head(struct finwait_tuple *t, __u8 *family, const struct sock_common *skc)
{
	struct net *net = BPF_CORE_READ(skc, skc_net.net);

	*family = BPF_CORE_READ(skc, skc_family);
	if (*family == AF_INET) {
		map_ipv4(t->laddr, BPF_CORE_READ(skc, skc_rcv_saddr));
		map_ipv4(t->raddr, BPF_CORE_READ(skc, skc_daddr));
	} else {
		bpf_core_read(t->laddr, 16, &skc->skc_v6_rcv_saddr);
		bpf_core_read(t->raddr, 16, &skc->skc_v6_daddr);
	}
	t->rport = bpf_ntohs(BPF_CORE_READ(skc, skc_dport));
	t->netns = BPF_CORE_READ(net, ns.inum);
	return BPF_CORE_READ(net, net_cookie);
}

/*
 * The same of a full socket that the verifier trusts. It searches all of the
 * kernel's types for each pointer that is followed.
 */
static __always_inline __u64 read_sock(struct finwait_tuple *t, const struct sock *sk)
{
	const struct net *net = sk->__sk_common.skc_net.net;

	if (sk->__sk_common.skc_family == AF_INET) {
		map_ipv4(t->laddr, sk->__sk_common.skc_rcv_saddr);
		map_ipv4(t->raddr, sk->__sk_common.skc_daddr);
	} else {
		bpf_core_read(t->laddr, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_core_read(t->raddr, 16, &sk->__sk_common.skc_v6_daddr);
	}
	t->netns = net->ns.inum;
	t->rport = bpf_ntohs(sk->__sk_common.skc_dport);
	return net->net_cookie;
}

static __always_inline __u16 source_port(const struct sock *sk)
{
	__be16 port = 0;

	bpf_core_read(&port, sizeof(port), &((const struct inet_sock *)sk)->inet_sport);
	return bpf_ntohs(port);
}

/*
 * inet_num is 0 once a socket is closed, while inet_sport is left from an
 * earlier connection when a socket connects or listens once more and the port
 * is yet to be chosen (inet_hash_connect, inet_csk_get_port). So each is right
 * where the other is wrong.
 */
static __always_inline __u16 local_port(const struct sock *sk, __u8 old)
{
	return old == CLOSE ? BPF_CORE_READ(sk, __sk_common.skc_num) : source_port(sk);
}

static __always_inline bool same_tuple(const struct finwait_tuple *a, const struct finwait_tuple *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	for (__u32 i = 0; i < sizeof(*a) / sizeof(*x); i++) {
		if (x[i] != y[i])
			return false;
	}
	return true;
}

#endif
