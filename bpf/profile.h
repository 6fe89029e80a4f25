/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * How long sockets stay in each state: a histogram for each state and service,
 * or whatever else is asked for. It has the transitions that pass the filter,
 * but those out of CLOSE, in which no socket stays. Off, it costs nothing: the
 * verifier takes out what a constant makes unreachable.
 */
#ifndef FINWAIT_PROFILE_H
#define FINWAIT_PROFILE_H

/* What there is a row for: enum finwait_profile_by. Set by the loader. */
const volatile __u8 profile_by = PROFILE_OFF;

/*
 * The histograms. Inserted by profile_row, but for the rows of GROUP_OTHERS,
 * which Go makes before all others; read by Go; never deleted. Preallocated, as
 * minis is. Size set by the loader.
 * Full: the row of GROUP_OTHERS takes it, and ledger.profile_full counts it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct finwait_profile_key);
	__type(value, struct finwait_profile_row);
} profiles SEC(".maps");

/* It is full, and stays so: nobody need try to insert. */
bool profiles_full;

/*
 * Bucket i is of 2^(i-30) seconds up to twice that, and the first of 0 on: powers of
 * two of a second are what Prometheus and OpenTelemetry count by. That is the number
 * of the highest bit of the nanoseconds, or one more from 10^9 / 2^29 times that bit
 * on, which are 10^9 * 2^34 where the bit is the 64th.
 */
static __always_inline __u32 profile_bucket(__u64 ns)
{
	__u64 all = ns;
	__u32 bucket = 0; /* less than the last: a dwell has 63 bits */

	for (__u32 shift = PROFILE_BUCKETS / 2; shift; shift /= 2) {
		if (ns >> shift) {
			ns >>= shift;
			bucket += shift;
		}
	}
	return bucket + (all << (63 - bucket) >= 1000000000ULL << 34);
}

/* One port, if this side is the one whose port means something. */
static __always_inline void profile_port(struct finwait_profile_key *key, const struct finwait_who *who,
					 __u8 role, __u16 port)
{
	if (who->role == ROLE_UNKNOWN)
		key->group = GROUP_UNKNOWN;
	else if (who->role != role)
		key->group = role == ROLE_SERVER ? GROUP_CLIENTS : GROUP_SERVERS;
	else if (!port)
		key->group = GROUP_UNKNOWN;
	else
		key->value = port;
}

static __always_inline void profile_owner(struct finwait_profile_key *key, const struct finwait_who *who,
					  __u64 value)
{
	if (who->origin == ORIGIN_UNKNOWN)
		key->group = GROUP_UNKNOWN;
	else
		key->value = value;
}

static __always_inline void profile_key(struct finwait_profile_key *key, const struct transition *t,
					const struct finwait_who *who)
{
	key->value = 0;
	key->state = t->old;
	key->group = GROUP_ONE;
	switch (profile_by) {
	case PROFILE_BY_SERVICE:
		profile_port(key, who, ROLE_SERVER, t->tuple.lport);
		break;
	case PROFILE_BY_REMOTE_PORT:
		profile_port(key, who, ROLE_CLIENT, t->tuple.rport);
		break;
	case PROFILE_BY_CGROUP:
		profile_owner(key, who, who->cgroup_id);
		break;
	case PROFILE_BY_PROCESS:
		profile_owner(key, who, who->pid);
		break;
	}
}

static __always_inline struct finwait_profile_row *profile_insert(const struct finwait_profile_key *key)
{
	static const struct finwait_profile_row zero = {};

	if (profiles_full)
		return NULL;
	if (bpf_map_update_elem(&profiles, key, &zero, BPF_NOEXIST) == -E2BIG)
		profiles_full = true;
	return bpf_map_lookup_elem(&profiles, key);
}

static __always_inline struct finwait_profile_row *profile_row(struct finwait_profile_key *key)
{
	struct finwait_profile_row *row;

	row = bpf_map_lookup_elem(&profiles, key) ?: profile_insert(key);
	if (row)
		return row;
	ledger_add(profile_full);
	key->value = 0;
	key->group = GROUP_OTHERS;
	return bpf_map_lookup_elem(&profiles, key);
}

/* Whoever comes in between has raised it. As often as this that does not happen. */
#define RAISE_TRIES 8

static __always_inline void raise_to(__u64 *max, __u64 value)
{
	__u64 was = *max, seen;

	for (int i = 0; i < RAISE_TRIES && was < value; i++) {
		seen = __sync_val_compare_and_swap(max, was, value);
		if (seen == was)
			return;
		was = seen;
	}
}

/* 60 s of TIME_WAIT, ten thousand times a second, do not fit into 64 bits for a day. */
static __always_inline void profile_sum(struct finwait_profile_row *row, __u64 ns)
{
	__u64 was = __sync_fetch_and_add(&row->sum_ns, ns);

	if (was + ns < was)
		__sync_fetch_and_add(&row->sum_carry, 1);
}

static __always_inline void profile_add(struct finwait_profile_row *row, __u64 ns)
{
	__u32 bucket = profile_bucket(ns);

	barrier_var(bucket);
	__sync_fetch_and_add(&row->buckets[bucket & (PROFILE_BUCKETS - 1)], 1);
	profile_sum(row, ns);
	raise_to(&row->max_ns, ns);
}

static __always_inline void profile_measure(const struct transition *t, const struct finwait_who *who)
{
	struct finwait_profile_key key;
	struct finwait_profile_row *row;

	profile_key(&key, t, who);
	row = profile_row(&key);
	if (!row)
		return;
	if (profile_by == PROFILE_BY_PROCESS && key.group == GROUP_ONE && !row->comm[0])
		__builtin_memcpy(row->comm, who->comm, sizeof(row->comm));
	if (t->since_ns && t->time_ns >= t->since_ns)
		profile_add(row, t->time_ns - t->since_ns);
	else
		__sync_fetch_and_add(&row->unknown, 1);
}

static __always_inline void profile(const struct transition *t, const struct finwait_who *who)
{
	if (profile_by != PROFILE_OFF && t->old != CLOSE)
		profile_measure(t, who);
}

#endif
