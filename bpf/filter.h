/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Which transitions become events. Pure functions over what Go sets; all
 * transitions are counted, whatever the filter.
 */
#ifndef FINWAIT_FILTER_H
#define FINWAIT_FILTER_H

/*
 * The filter in use is the one that filter_now says. Go writes the other and then
 * moves that, so that nobody sees one that is half written.
 */
struct finwait_filter filters[2];
__u32 filter_now;

/*
 * What is known of a socket is kept whether or not it passes: the filter may be
 * another one day, or there is something that it is not asked for. Set by the
 * loader.
 */
const volatile bool know_all = false;

static __always_inline const volatile struct finwait_filter *the_filter(void)
{
	return &filters[*(volatile __u32 *)&filter_now & 1];
}

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

static __always_inline enum verdict filter_ports(const volatile struct finwait_filter *f,
						 const struct finwait_tuple *t)
{
	enum verdict verdict = PASS, one;

	if (f->by_rport) {
		verdict = filter_one_port(f->rport, t->rport);
		if (verdict == DROP)
			return DROP;
	}
	if (f->by_lport) {
		one = filter_one_port(f->lport, t->lport);
		if (one != PASS)
			verdict = one;
		if (verdict == DROP)
			return DROP;
	}
	if (f->by_port) {
		if (port_in(f->port, t->lport) || port_in(f->port, t->rport))
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

static __always_inline bool filter_addrs(const volatile struct finwait_filter *f,
					 const struct finwait_tuple *t)
{
	for (__u32 i = 0; i < FILTER_MAX && i < f->addr_len; i++) {
		if (cidr_has(&f->addr[i], t->laddr) || cidr_has(&f->addr[i], t->raddr))
			return true;
	}
	return !f->addr_len;
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
	const volatile struct finwait_filter *f = the_filter();

	if (!t)
		return DROP;
	if (f->family && f->family != family)
		return DROP;
	if (!filter_u32(f->netns, f->netns_len, t->netns))
		return DROP;
	if (!filter_addrs(f, t))
		return DROP;
	return filter_ports(f, t);
}

static __always_inline bool filter_comms(const volatile struct finwait_filter *f,
					 const struct finwait_who *who)
{
	const __u64 *a = (const __u64 *)who->comm;

	for (__u32 i = 0; i < FILTER_MAX && i < f->comm_len; i++) {
		const volatile __u64 *b = (const volatile __u64 *)f->comm[i];

		if (a[0] == b[0] && a[1] == b[1])
			return true;
	}
	return !f->comm_len;
}

/* By owner. One that is unknown is none of those asked for. */
static __always_inline bool filter_who(const struct finwait_who *who)
{
	const volatile struct finwait_filter *f = the_filter();

	if (!f->by_who)
		return true;
	if (who->origin == ORIGIN_UNKNOWN)
		return false;
	if (f->cgroup_len && !who->in_cgroup)
		return false;
	return filter_u32(f->pid, f->pid_len, who->pid) && filter_u32(f->uid, f->uid_len, who->uid) &&
	       filter_comms(f, who);
}

static __always_inline bool filter_transitions(__u32 old, __u32 new)
{
	return old < NUM_STATES && the_filter()->transition[old] >> (new & 15) & 1;
}

/* Are there connections of which nothing is told? */
static __always_inline bool filter_samples(void)
{
	return the_filter()->sample_below < 1ULL << 32;
}

/*
 * Is the connection one of the sample? All that is told of it has the same
 * cookie, so that it is told whole or not at all. Without a cookie it has never
 * been more than half-open (or had no room in requests), and its addresses are as
 * good.
 */
static __always_inline bool filter_sample(__u64 cookie, const struct finwait_tuple *t)
{
	const __u32 *laddr = (const __u32 *)t->laddr, *raddr = (const __u32 *)t->raddr;

	if (!cookie)
		cookie = (__u64)(laddr[3] ^ raddr[3]) << 32 | (__u32)t->lport << 16 | t->rport;
	/* Cookies follow each other; by the golden ratio they spread evenly. */
	return (cookie * 0x9e3779b97f4a7c15ULL) >> 32 < the_filter()->sample_below;
}

#endif
