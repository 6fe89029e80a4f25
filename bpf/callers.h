/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Who called: what a timer's tracepoint, or the end of an object, does not say,
 * the kernel's stack does.
 */
#ifndef FINWAIT_CALLERS_H
#define FINWAIT_CALLERS_H

/* Where the functions of enum finwait_symbol lie, set by the loader. */
const volatile struct finwait_range symbols[NUM_SYMBOLS] = {};

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

struct stack {
	__u64 *ips;
	__u32 depth;
};

/*
 * Reads the kernel's stack, into a place of its own for each program that the
 * CPU was interrupted in while it did the same. A program's own stack has no room.
 */
static __always_inline struct stack read_stack(void *ctx, struct scratch *here)
{
	struct stack s = {.ips = here->stacks[here->nested++ % NESTING_MAX]};
	long size;

	size = bpf_get_stack(ctx, s.ips, sizeof(here->stacks[0]), 0);
	if (size > 0)
		s.depth = size / sizeof(*s.ips);
	else
		ledger_add(stack_failed);
	return s;
}

static __always_inline void leave_stack(struct scratch *here)
{
	here->nested--;
}

/*
 * The symbols on the stack as a set of bits. What lies beyond a softirq is not
 * a caller but whoever was interrupted.
 */
static __noinline __u32 callers(void *ctx)
{
	struct scratch *here = scratch_here();
	__u32 found = 0;
	struct stack s;

	if (!here)
		return 0;
	s = read_stack(ctx, here);
	for (__u32 i = 0; i < CALLERS_DEPTH && i < s.depth; i++) {
		found |= symbol_at(s.ips[i]);
		if (found & INTERRUPTED)
			break;
	}
	leave_stack(here);
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
	struct scratch *here = scratch_here();
	__u32 found = 0;
	struct stack s;

	if (!here)
		return false;
	s = read_stack(ctx, here);
	for (__u32 i = 0; i < CALLERS_DEPTH && i < s.depth; i++) {
		found |= symbol_at(s.ips[i]) | symbol_at(call_target(s.ips[i]) + FUNCTION_PADDING);
		if (found & (INTERRUPTED | CALLED_BY(TCP_TIME_WAIT)))
			break;
	}
	leave_stack(here);
	return found & CALLED_BY(TCP_TIME_WAIT);
}

#endif
