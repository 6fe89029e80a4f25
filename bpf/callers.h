/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Who called: what a timer's tracepoint, or the end of an object, does not say,
 * the kernel's stack does.
 */
#ifndef FINWAIT_CALLERS_H
#define FINWAIT_CALLERS_H

/*
 * Where the functions of enum finwait_symbol lie. Set by the loader before anything
 * is attached; not constants, so that it need not have found them to load.
 */
struct finwait_range symbols[NUM_SYMBOLS];

#define FUNCTION_PADDING 16 /* at most, in bytes before a function */
#define CALLED_BY(symbol) (1U << SYMBOL_##symbol)
#define INTERRUPTED (CALLED_BY(RUN_TIMER_SOFTIRQ) | CALLED_BY(HANDLE_SOFTIRQS) | CALLED_BY(DO_SOFTIRQ))

/*
 * Without branches, of which the verifier would have to follow each combination,
 * and global, so that it follows the loop once.
 */
__noinline __u32 symbol_at(__u64 ip)
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

/* How this machine's code calls a function, set by the loader; 0 is in no way that is known. */
#define CALL_REL32 1 /* amd64: call, with a distance from the next instruction */
#define CALL_BL 2 /* arm64: bl, with a distance from itself in words */
const volatile __u8 call_form = 0;

/* What the call that returns to ip has called, if the call names it. Without branches too. */
static __always_inline __u64 call_target(__u64 ip)
{
	__s32 word = 0;
	__s64 failed;

	failed = bpf_probe_read_kernel(&word, sizeof(word), (void *)(ip - sizeof(word)));
	if (call_form == CALL_BL)
		return (ip - sizeof(word) + ((__s32)((__u32)word << 6) >> 4)) | failed >> 63;
	return (ip + word) | failed >> 63;
}

/*
 * Is the call that returns to ip one of tcp_time_wait? Its last act is a jump to
 * tcp_done, so that it has no return address of its own. The kernel may have
 * made the call go to just before it (call depth tracking, e81dc127ef69).
 */
static __always_inline __u32 time_wait_called(__u64 ip)
{
	__u64 into = call_target(ip) - symbols[SYMBOL_TCP_TIME_WAIT].start + FUNCTION_PADDING;

	return (__u32)(((into - 2 * FUNCTION_PADDING) & ~into) >> 63) << SYMBOL_TCP_TIME_WAIT;
}

/*
 * Which symbols are in the stack. A global function, which the verifier goes
 * through once and not wherever it is called from.
 */
__noinline __u32 symbols_in(const struct callstack *s, __u32 depth, bool ended)
{
	__u32 found = 0;

	if (!s)
		return 0;
	for (__u32 i = 0; i < CALLERS_DEPTH && i < depth; i++) {
		found |= symbol_at(s->ips[i]);
		if (ended)
			found |= time_wait_called(s->ips[i]);
		if (found & INTERRUPTED)
			break;
	}
	return found & ~INTERRUPTED;
}

#define STACK_UNKNOWN (1U << 31)
_Static_assert(NUM_SYMBOLS <= 31, "more symbols than bits");

/*
 * The symbols on the kernel's stack as a set of bits. What lies beyond a softirq
 * is not a caller but whoever was interrupted. ended asks for tcp_time_wait too,
 * and for STACK_UNKNOWN where there is nothing to look at.
 *
 * A program's own stack has no room for the kernel's: it is read into a place of
 * the CPU's, one for each program that was interrupted here doing the same.
 */
static __always_inline __u32 callers(void *ctx, bool ended)
{
	struct scratch *here = scratch_here();
	__u32 found = ended ? STACK_UNKNOWN : 0;
	struct callstack *s;
	long size;

	if (!here)
		return found;
	s = &here->stacks[here->nested++ % NESTING_MAX];
	size = bpf_get_stack(ctx, s, sizeof(*s), 0);
	if (size > 0)
		found = symbols_in(s, size / sizeof(s->ips[0]), ended);
	else
		ledger_add(stack_failed);
	here->nested--;
	return found;
}

#endif
