/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Keeping the CPU: a program that another process interrupts, and that this one
 * would run too, is skipped there. It is all the rarer the less of a program can
 * be interrupted.
 */
#ifndef FINWAIT_PREEMPT_H
#define FINWAIT_PREEMPT_H

/* The kernel has the two functions (since 6.10), set by the loader. */
const volatile bool can_keep_cpu = false;

extern void bpf_preempt_disable(void) __weak __ksym;
extern void bpf_preempt_enable(void) __weak __ksym;

static __always_inline void keep_cpu(void)
{
	if (can_keep_cpu)
		bpf_preempt_disable();
}

static __always_inline void leave_cpu(void)
{
	if (can_keep_cpu)
		bpf_preempt_enable();
}

#endif
