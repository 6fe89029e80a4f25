/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Which transitions become events. Pure functions over constants that the
 * loader sets; all transitions are counted, whatever the filter.
 */
#ifndef FINWAIT_FILTER_H
#define FINWAIT_FILTER_H

#define FILTER_MAX 16    /* values of one filter */
#define PORT_WORDS (65536 / 64) /* a bit for each port */

/* Bit new of word old: may this transition be an event? */
const volatile __u16 filter_transition[NUM_STATES] = {};

/* AF_INET or AF_INET6; 0 for both. */
const volatile __u8 filter_family = 0;

/* Ports: a bit for each. Any of them off means every port. */
const volatile bool filter_by_port = false;
const volatile bool filter_by_lport = false;
const volatile bool filter_by_rport = false;
const volatile __u64 filter_port[PORT_WORDS] = {};
const volatile __u64 filter_lport[PORT_WORDS] = {};
const volatile __u64 filter_rport[PORT_WORDS] = {};

/* Lists, each with its length; length 0 lets everything through. */
const volatile __u32 filter_addr_len = 0;
const volatile __u32 filter_netns_len = 0;
const volatile __u32 filter_pid_len = 0;
const volatile __u32 filter_uid_len = 0;
const volatile __u32 filter_comm_len = 0;
const volatile __u32 filter_cgroup_len = 0;
const volatile struct finwait_cidr filter_addr[FILTER_MAX] = {};
const volatile __u32 filter_netns[FILTER_MAX] = {};
const volatile __u32 filter_pid[FILTER_MAX] = {};
const volatile __u32 filter_uid[FILTER_MAX] = {};
const volatile __u8 filter_comm[FILTER_MAX][COMM_LEN] = {};
const volatile __u64 filter_cgroup[FILTER_MAX] = {};

enum verdict {
	DROP,
	PASS,
	LATER, /* hangs on a port that the socket does not have yet */
};

static __always_inline bool port_in(const volatile __u64 *ports, __u16 port)
{
	return ports[port / 64] >> (port % 64) & 1;
}

static __always_inline enum verdict filter_one_port(const volatile __u64 *ports, __u16 port)
{
	if (!port)
		return LATER;
	return port_in(ports, port) ? PASS : DROP;
}

static __always_inline enum verdict filter_ports(const struct finwait_tuple *t)
{
	enum verdict verdict = PASS, one;

	if (filter_by_rport) {
		verdict = filter_one_port(filter_rport, t->rport);
		if (verdict == DROP)
			return DROP;
	}
	if (filter_by_lport) {
		one = filter_one_port(filter_lport, t->lport);
		if (one != PASS)
			verdict = one;
		if (verdict == DROP)
			return DROP;
	}
	if (filter_by_port) {
		if (port_in(filter_port, t->lport) || port_in(filter_port, t->rport))
			return verdict;
		return t->lport && t->rport ? DROP : LATER;
	}
	return verdict;
}

static __always_inline bool cidr_has(const volatile struct finwait_cidr *net, const __u8 *addr)
{
	const volatile __u32 *a = (const volatile __u32 *)net->addr;
	const volatile __u32 *m = (const volatile __u32 *)net->mask;
	const __u32 *b = (const __u32 *)addr;

	return (b[0] & m[0]) == a[0] && (b[1] & m[1]) == a[1] && (b[2] & m[2]) == a[2] &&
	       (b[3] & m[3]) == a[3];
}

static __always_inline bool filter_addrs(const struct finwait_tuple *t)
{
	for (__u32 i = 0; i < FILTER_MAX && i < filter_addr_len; i++) {
		if (cidr_has(&filter_addr[i], t->laddr) || cidr_has(&filter_addr[i], t->raddr))
			return true;
	}
	return !filter_addr_len;
}

static __always_inline bool filter_u32(const volatile __u32 *list, __u32 len, __u32 value)
{
	for (__u32 i = 0; i < FILTER_MAX && i < len; i++) {
		if (list[i] == value)
			return true;
	}
	return !len;
}

/*
 * By what never changes in a socket's life, but for ports yet to be chosen. Not
 * static, so that the verifier looks at it once: see emit_if_wanted.
 */
__noinline int filter_tuple(const struct finwait_tuple *t, __u8 family)
{
	if (!t)
		return DROP;
	if (filter_family && filter_family != family)
		return DROP;
	if (!filter_u32(filter_netns, filter_netns_len, t->netns))
		return DROP;
	if (!filter_addrs(t))
		return DROP;
	return filter_ports(t);
}

static __always_inline bool filter_comms(const struct finwait_who *who)
{
	const __u64 *a = (const __u64 *)who->comm;

	for (__u32 i = 0; i < FILTER_MAX && i < filter_comm_len; i++) {
		const volatile __u64 *b = (const volatile __u64 *)filter_comm[i];

		if (a[0] == b[0] && a[1] == b[1])
			return true;
	}
	return !filter_comm_len;
}

static __always_inline bool filter_by_who(void)
{
	return filter_pid_len || filter_uid_len || filter_comm_len || filter_cgroup_len;
}

/* By owner. One that is unknown is none of those asked for. */
static __always_inline bool filter_who(const struct finwait_who *who)
{
	if (!filter_by_who())
		return true;
	if (who->origin == ORIGIN_UNKNOWN)
		return false;
	if (filter_cgroup_len && !who->in_cgroup)
		return false;
	return filter_u32(filter_pid, filter_pid_len, who->pid) &&
	       filter_u32(filter_uid, filter_uid_len, who->uid) && filter_comms(who);
}

static __always_inline bool filter_transitions(__u32 old, __u32 new)
{
	return old < NUM_STATES && filter_transition[old] >> (new & 15) & 1;
}

#endif
