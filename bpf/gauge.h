/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * How many sockets are in each state, by network namespace: written for every
 * socket that is claimed, which is each that was born since the tracer was
 * attached, and each older one from the moment it is first seen.
 */
#ifndef FINWAIT_GAUGE_H
#define FINWAIT_GAUGE_H

/* How many rows have been made, so that Go knows when to look for some to delete. */
__u64 gauge_inserts;

#define NO_NETNS 0ULL /* the row for namespaces that found no room */

static __always_inline struct finwait_gauge *gauge_insert(__u64 net)
{
	static const struct finwait_gauge zero = {};
	struct finwait_gauge *g;

	if (!bpf_map_update_elem(&gauges, &net, &zero, BPF_NOEXIST))
		__sync_fetch_and_add(&gauge_inserts, 1);
	g = bpf_map_lookup_elem(&gauges, &net);
	if (g)
		return g;
	ledger_add(netns_full);
	net = NO_NETNS;
	return bpf_map_lookup_elem(&gauges, &net);
}

/* Global, as emit_if_wanted is: many lead here. */
__noinline int gauge_move(__u64 net, __u32 netns, __u32 old, __u32 new)
{
	struct finwait_gauge *g;

	if (counters_only)
		return 0;
	g = bpf_map_lookup_elem(&gauges, &net) ?: gauge_insert(net);
	if (!g)
		return 0;
	if (!g->netns) {
		g->netns = netns;
		g->born_ns = bpf_ktime_get_ns();
	}
	barrier_var(old);
	barrier_var(new);
	if (old != CLOSE && old < NUM_STATES)
		__sync_fetch_and_add(&g->left[old], 1);
	if (new != CLOSE &&new < NUM_STATES)
		__sync_fetch_and_add(&g->entered[new], 1);
	return 0;
}

#endif
