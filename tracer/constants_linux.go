//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"fmt"
	"maps"
	"net/netip"
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
	values := opts.Filter.constants()
	maps.Copy(values, opts.Conns.constants())
	values["no_events"] = opts.NoTransitions || opts.CountersOnly
	values["counters_only"] = opts.CountersOnly
	values["jiffy_ns"] = jiffy
	values["tier"] = uint8(with.evidence)
	values["tracepoints_keep_cpu"] = k.keepsCPU
	values["profile_by"] = opts.Profile.constant()
	values["call_form"] = callForm()
	if values["can_stop_irqs"], err = k.has("bpf_local_irq_save"); err != nil {
		return err
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

// constants returns the filter as the values of the constants in bpf/filter.h.
func (f *Filter) constants() map[string]any {
	return map[string]any{
		"filter_transition": f.transitionMasks(),
		"filter_family":     uint8(f.Family),
		"filter_by_port":    len(f.Ports) > 0,
		"filter_by_lport":   len(f.LocalPorts) > 0,
		"filter_by_rport":   len(f.RemotePorts) > 0,
		"filter_port":       portBits(f.Ports),
		"filter_lport":      portBits(f.LocalPorts),
		"filter_rport":      portBits(f.RemotePorts),
		"filter_addr_len":   uint32(len(f.Addrs)),
		"filter_addr":       padded(f.Addrs, cidr),
		"filter_netns_len":  uint32(len(f.Netns)),
		"filter_netns":      padded(f.Netns, same[uint32]),
		"filter_pid_len":    uint32(len(f.PIDs)),
		"filter_pid":        padded(f.PIDs, same[uint32]),
		"filter_uid_len":    uint32(len(f.UIDs)),
		"filter_uid":        padded(f.UIDs, same[uint32]),
		"filter_comm_len":   uint32(len(f.Comms)),
		"filter_comm":       padded(f.Comms, comm),
		"filter_cgroup_len": uint32(len(f.Cgroups)),
		"filter_cgroup":     padded(f.Cgroups, same[uint64]),
	}
}

func (f *Filter) transitionMasks() (masks [numStates]uint16) {
	for _, from := range States() {
		for _, to := range States() {
			if f.passes(Transition{from, to}) {
				masks[from] |= 1 << to
			}
		}
	}
	return masks
}

func portBits(ranges []PortRange) (bits [65536 / 64]uint64) {
	for _, r := range ranges {
		for port := int(r.First); port <= int(r.Last); port++ {
			bits[port/64] |= 1 << (port % 64)
		}
	}
	return bits
}

func padded[T, U any](values []T, convert func(T) U) (out [filterMax]U) {
	for i, v := range values {
		out[i] = convert(v)
	}
	return out
}

func same[T any](v T) T { return v }

func comm(name string) (c [16]byte) {
	copy(c[:commMax], name)
	return c
}

// cidr returns the prefix over IPv4-mapped IPv6, the one form in which the
// kernel side has addresses.
func cidr(p netip.Prefix) (c bpfFinwaitCidr) {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	for i := range bits {
		c.Mask[i/8] |= 0x80 >> (i % 8)
	}
	addr := p.Addr().As16()
	for i := range addr {
		c.Addr[i] = addr[i] & c.Mask[i]
	}
	return c
}
