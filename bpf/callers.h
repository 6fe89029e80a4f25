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

/* Not static: the verifier then looks at it once, and not for each frame of each caller. */
__noinline __u32 symbol_at(__u64 ip)
{
	for (__u32 i = 0; i < NUM_SYMBOLS; i++) {
		if (ip >= symbols[i].start && ip < symbols[i].end)
			return 1U << i;
	}
	return 0;
}

/*
 * The symbols on the stack as a set of bits. What lies beyond a softirq is not
 * a caller but whoever was interrupted.
 */
static __noinline __u32 callers(void *ctx)
{
	__u64 ips[CALLERS_DEPTH];
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
