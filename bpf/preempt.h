/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Keeping the CPU: a program that another process interrupts, and that this one
 * would run too, is skipped there. It is all the rarer the less of a program can
 * be interrupted.
 */
#ifndef FINWAIT_PREEMPT_H
#define FINWAIT_PREEMPT_H

/* The kernel has the first two functions (since 6.10), and the others (6.14); set by the loader. */
const volatile bool can_keep_cpu = false;
const volatile bool can_stop_irqs = false;

/*
 * A tracepoint lets no other process take the CPU from its programs: up to 6.19
 * it disables preemption, since 7.0 it may not. Set by the loader, which has
 * measure_cpu find out.
 */
const volatile bool tracepoints_keep_cpu = false;

extern void bpf_preempt_disable(void) __weak __ksym;
extern void bpf_preempt_enable(void) __weak __ksym;
extern void bpf_local_irq_save(unsigned long *flags) __weak __ksym;
extern void bpf_local_irq_restore(unsigned long *flags) __weak __ksym;

static __always_inline void keep_cpu(void)
{
	if (can_keep_cpu)
		bpf_preempt_disable();
}

/*
 * Where many processes wait for the CPU, preempt_enable() is where one of them
 * takes it: always in a program that the kernel still counts as running, and so
 * one program after the other would be lost to them. With interrupts off it does
 * not ask who waits (preempt_schedule), and local_irq_restore() does not either:
 * the next who asks is the kernel, after the program.
 */
static __always_inline void leave_cpu(void)
{
	unsigned long flags;

	if (!can_keep_cpu)
		return;
	if (!can_stop_irqs) {
		bpf_preempt_enable();
		return;
	}
	bpf_local_irq_save(&flags);
	bpf_preempt_enable();
	bpf_local_irq_restore(&flags);
}

/* How often measure_cpu was run, and how often of those another process could have taken the CPU. */
__u64 cpu_measured;
__u64 cpu_open;

/*
 * No program may move to another CPU while it runs. Where preemption is not what
 * holds it, the task is marked (rcu_read_lock_dont_migrate in __bpf_trace_run).
 */
SEC("tp_btf/consume_skb")
int measure_cpu(void *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();

	__sync_fetch_and_add(&cpu_measured, 1);
	if (!bpf_core_field_exists(task->migration_disabled) || task->migration_disabled)
		__sync_fetch_and_add(&cpu_open, 1);
	return 0;
}

#endif
