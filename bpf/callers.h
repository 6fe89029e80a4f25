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
#define FUNCTION_PADDING 16 /* at most, in bytes before a function */
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

/* Reads the kernel's stack into ips and returns how deep it is. */
static __always_inline __u32 read_stack(void *ctx, __u64 ips[CALLERS_DEPTH])
{
	long size;

	size = bpf_get_stack(ctx, ips, CALLERS_DEPTH * sizeof(ips[0]), 0);
	if (size > 0)
		return size / sizeof(ips[0]);
	ledger_add(stack_failed);
	return 0;
}

/*
 * The symbols on the stack as a set of bits. What lies beyond a softirq is not
 * a caller but whoever was interrupted.
 */
static __noinline __u32 callers(void *ctx)
{
	__u64 ips[CALLERS_DEPTH] = {}; /* up to 6.2 the helper wants it written */
	__u32 depth = read_stack(ctx, ips), found = 0;

	for (__u32 i = 0; i < CALLERS_DEPTH && i < depth; i++) {
		found |= symbol_at(ips[i]);
		if (found & INTERRUPTED)
			break;
	}
	return found & ~INTERRUPTED;
}

/*
 * What the call that returns to ip has called: call rel32 on amd64, bl on arm64,
 * where what the one reads as the other leads far out of the kernel's text. On
 * other machines it leads nowhere.
 */
static __always_inline __u64 call_target(__u64 ip)
{
	__s32 word = 0;

	if (bpf_probe_read_kernel(&word, sizeof(word), (void *)(ip - sizeof(word))))
		return 0;
	if ((__u32)word >> 26 == 0x25)
		return ip - sizeof(word) + ((__s32)((__u32)word << 6) >> 4);
	return ip + word;
}

/*
 * Is tcp_time_wait being executed? Its last act is a jump to tcp_done, which
 * leaves no return address of its own; but the call that led to it has. The
 * kernel may have made that call go to just before the function (call depth
 * tracking, e81dc127ef69).
 */
static __noinline bool in_time_wait(void *ctx)
{
	__u64 ips[CALLERS_DEPTH] = {};
	__u32 depth = read_stack(ctx, ips), found = 0;

	for (__u32 i = 0; i < CALLERS_DEPTH && i < depth; i++) {
		found |= symbol_at(ips[i]) | symbol_at(call_target(ips[i]) + FUNCTION_PADDING);
		if (found & (INTERRUPTED | CALLED_BY(TCP_TIME_WAIT)))
			break;
	}
	return found & CALLED_BY(TCP_TIME_WAIT);
}

#endif
