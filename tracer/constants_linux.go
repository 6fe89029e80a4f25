//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"fmt"
	"runtime"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// configure sets the constants that bpf/ declares as const volatile.
func configure(spec *ebpf.CollectionSpec, opts *Options, with tier, k *kernel) error {
	jiffy, err := jiffyLength()
	if err != nil {
		return err
	}
	canStop, err := k.has("bpf_local_irq_save")
	if err != nil {
		return err
	}
	values := map[string]any{
		"no_events":            opts.NoTransitions || opts.CountersOnly,
		"counters_only":        opts.CountersOnly,
		"records_on":           opts.Conns != nil,
		"records_at_time_wait": opts.Conns != nil && opts.Conns.AtTimeWait,
		"profile_by":           opts.Profile.constant(),
		"profile_all":          opts.Profile.unfiltered(),
		"know_all":             opts.Reloadable || opts.Profile.unfiltered(),
		"jiffy_ns":             jiffy,
		"tier":                 uint8(with.evidence),
		"tracepoints_keep_cpu": k.keepsCPU,
		"call_form":            callForm(),
		"can_stop_irqs":        canStop,
	}
	for name, value := range values {
		variable, ok := spec.Variables[name]
		if !ok {
			return fmt.Errorf("set %s: no such constant", name)
		}
		if err := variable.Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// callForm returns how this machine's code calls a function: see bpf/callers.h.
func callForm() uint8 {
	switch runtime.GOARCH {
	case "amd64":
		return 1
	case "arm64":
		return 2
	}
	return 0
}

// jiffyLength returns the length of a jiffy in nanoseconds: the resolution of
// the clocks that advance by jiffies (kernel/time/posix-timers.c,
// posix_get_coarse_res).
func jiffyLength() (uint64, error) {
	var res unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &res); err != nil {
		return 0, fmt.Errorf("get the resolution of the coarse clock: %w", err)
	}
	return uint64(res.Nano()), nil
}
