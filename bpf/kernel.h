/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The few kernel types and fields that finwait reads. Offsets are not taken
 * from here: preserve_access_index has the loader look each field up in the
 * running kernel's BTF, so only names and types must be right.
 */
#ifndef FINWAIT_KERNEL_H
#define FINWAIT_KERNEL_H

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define SOCK_STREAM 1

/* include/uapi/linux/magic.h */
#define NSFS_MAGIC 0x6e736673

/* enum sock_flags of include/net/sock.h, as bits. */
#define SOCK_DEAD (1 << 0)
#define SOCK_DONE (1 << 1)

/* TCP_TIMEWAIT_LEN of include/net/tcp.h, in seconds. */
#define TIMEWAIT_SECONDS 60

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* include/linux/types.h */
struct hlist_node {
	struct hlist_node *next, **pprev;
};

/* include/linux/timer_types.h; include/linux/timer.h up to 6.10 */
struct timer_list {
	struct hlist_node entry;
	unsigned long expires;
	void (*function)(struct timer_list *);
};

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	long counter;
} atomic_long_t;

/* include/linux/refcount.h */
typedef struct {
	atomic_t refs;
} refcount_t;

/* include/linux/ns_common.h */
struct ns_common {
	unsigned int inum;
	refcount_t __ns_ref;
};

/* Up to 6.17 (024596a4e228). */
struct ns_common___before_618 {
	refcount_t count;
};

/* include/net/netns/ipv4.h */
struct netns_ipv4 {
	unsigned char sysctl_tcp_synack_retries; /* an int up to 5.12 */
	unsigned char sysctl_tcp_abort_on_overflow; /* an int up to 5.12 */
};

/* include/net/net_namespace.h */
struct net {
	__u64 net_cookie;
	struct ns_common ns;
	struct netns_ipv4 ipv4;
};

typedef struct {
	struct net *net;
} possible_net_t;

/* include/uapi/linux/in6.h */
struct in6_addr {
	union {
		__u8 u6_addr8[16];
	} in6_u;
};

typedef struct {
	__s64 counter;
} atomic64_t;

struct sock;

/* include/net/sock.h: the head that all kinds of sockets have in common */
struct sock_common {
	union {
		struct {
			__be32 skc_daddr;
			__be32 skc_rcv_saddr;
		};
	};
	union {
		struct {
			__be16 skc_dport;
			__u16 skc_num;
		};
	};
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
	union {
		struct sock *skc_listener; /* of a request socket */
	};
	union {
		struct hlist_node skc_node;
	};
	refcount_t skc_refcnt;
	unsigned long skc_flags;
	struct proto *skc_prot;
};

/* include/net/sock.h */
struct proto {
	atomic_long_t *memory_allocated;
	long *sysctl_mem;
};

typedef struct {
	int owned;
} socket_lock_t;

struct sock {
	struct sock_common __sk_common;
	socket_lock_t sk_lock;
	__u16 sk_type;
	__u16 sk_protocol;
	int sk_err;
	int sk_wmem_queued;
	struct socket *sk_socket;
	__u32 sk_ack_backlog;
	__u32 sk_max_ack_backlog;
};

/* include/net/inet_sock.h */
struct inet_sock {
	struct sock sk;
	__be16 inet_sport;
};

/* include/net/request_sock.h */
struct request_sock_queue {
	atomic_t qlen;
};

struct request_sock {
	struct sock_common __req_common;
	__u8 num_timeout : 7;
	struct timer_list rsk_timer;
};

/* include/net/inet_connection_sock.h */
struct inet_connection_sock {
	struct inet_sock icsk_inet;
	struct request_sock_queue icsk_accept_queue;
	__u8 icsk_syn_retries;
	__u32 icsk_user_timeout;
	__u8 icsk_retransmits;
	struct {
		__u32 lrcvtime;
	} icsk_ack;
	__u32 icsk_probes_tstamp;
};

/* include/linux/tcp.h */
struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 snd_una;
	__u32 write_seq;
	int linger2;
	__u64 bytes_sent;
	__u64 bytes_retrans;
	__u64 bytes_received;
	__u32 segs_out;
	__u32 segs_in;
	__u32 total_retrans;
	__u32 srtt_us;
	__u8 repair : 1;
	__u8 syn_data_acked : 1;
	__u8 tcp_usec_ts : 1; /* since 6.7 */
	__u32 packets_out;
	__u32 retrans_stamp;
	__u32 rto_stamp; /* since 6.7 */
	__u64 tcp_mstamp;
	struct request_sock *fastopen_rsk;
};

/* include/net/inet_sock.h, include/linux/tcp.h */
struct inet_request_sock {
	struct request_sock req;
};

struct tcp_request_sock {
	struct inet_request_sock req;
	__u64 snt_synack;
};

struct tcp_timewait_sock;

/* include/net/inet_timewait_sock.h */
struct inet_timewait_sock {
	struct sock_common __tw_common;
	unsigned char tw_substate;
	__be16 tw_sport;
	struct timer_list tw_timer;
};

/* include/linux/kernfs.h, include/linux/cgroup-defs.h */
struct kernfs_node {
	__u64 id;
};

struct cgroup_subsys_state {
	struct cgroup_subsys_state *parent;
};

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

/* include/linux/uidgid_types.h, include/linux/cred.h */
typedef struct {
	__u32 val;
} kuid_t;

struct cred {
	kuid_t uid;
};

/* include/linux/sched.h */
struct task_struct {
	int tgid;
	unsigned short migration_disabled; /* not in all kernels before 5.15, nor without CONFIG_SMP */
	__u64 start_time;
	struct task_struct *group_leader;
	const struct cred *cred;
	struct css_set *cgroups;
	char comm[COMM_LEN];
};

/* include/linux/fs.h, include/linux/net.h */
struct super_block {
	unsigned long s_magic;
};

struct inode {
	struct super_block *i_sb;
	void *i_private;
};

struct cred;

struct file {
	struct inode *f_inode;
	const struct cred *f_cred;
};

struct socket {
	struct sock *sk;
	struct file *file;
};

/* include/linux/bpf.h */
struct bpf_iter_meta {
	struct seq_file *seq;
};

/* net/ipv4/tcp_ipv4.c */
struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
};

/* kernel/bpf/task_iter.c */
struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};

/* include/linux/bpf.h, kernel/bpf/map_iter.c */
struct bpf_iter__bpf_map_elem {
	void *key;
	void *value;
};

#pragma clang attribute pop

/* A pointer as a number, which a global function takes, unlike a pointer that the verifier knows. */
static __always_inline __u64 address_of(const void *pointer)
{
	__u64 addr = 0;

	bpf_probe_read_kernel(&addr, sizeof(addr), &pointer);
	return addr;
}

#endif
