/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Who called: what a timer's tracepoint, or the end of an object, does not say,
 * the kernel's stack does.
 */
#ifndef FINWAIT_CALLERS_H
#define FINWAIT_CALLERS_H

/* Where the functions of enum finwait_symbol lie, set by the loader. */
const volatile struct finwait_range symbols[NUM_SYMBOLS] = {};

#define CALLERS_DEPTH 16
#define CALLED_BY(symbol) (1U << SYMBOL_##symbol)
#define INTERRUPTED (CALLED_BY(RUN_TIMER_SOFTIRQ) | CALLED_BY(HANDLE_SOFTIRQS) | CALLED_BY(DO_SOFTIRQ))

/* Without branches, of which the verifier would have to follow each combination. */
static __always_inline __u32 symbol_at(__u64 ip)
{
	__u32 found = 0;

	for (__u32 i = 0; i < NUM_SYMBOLS; i++) {
		__u64 into = ip - symbols[i].start; /* the top bit is set if ip lies before */
		__u64 left =
			into - (symbols[i].end - symbols[i].start); /* and here, if it does not lie beyond */

		found |= (__u32)((left & ~into) >> 63) << i;
	}
	return found;
}

/*
 * The symbols on the stack as a set of bits. What lies beyond a softirq is not
 * a caller but whoever was interrupted.
 */
static __noinline __u32 callers(void *ctx)
{
	__u64 ips[CALLERS_DEPTH] = {}; /* up to 6.2 the helper wants it written */
	__u32 found = 0;
	long size;

	size = bpf_get_stack(ctx, ips, sizeof(ips), 0);
	if (size <= 0) {
		ledger_add(stack_failed);
		return 0;
	}
	for (__u32 i = 0; i < CALLERS_DEPTH && i < size / sizeof(ips[0]); i++) {
		found |= symbol_at(ips[i]);
		if (found & INTERRUPTED)
			break;
	}
	return found & ~INTERRUPTED;
}

#endif
