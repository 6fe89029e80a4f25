//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// stateTracepoint is where states change, and statePrograms what runs there, in
// the order in which they must: see bpf/finwait.bpf.c.
const stateTracepoint = "inet_sock_set_state"

var statePrograms = []string{"set_state_softirq", "set_state"}

// sweeps are the programs that go through a map, by the map.
var sweeps = map[string]string{"watch": "sweep_orphans", "cancels": "sweep_cancelled"}

const (
	defaultEventBuffer = 16 << 20
	defaultMiniSockets = 131_072
)

// A tier is a set of programs that see mini-sockets begin, move on and end.
// Each is one file in bpf/.
type tier struct {
	evidence Evidence
	programs []string
}

// tiers stand in order of preference. The first that loads is taken. Programs
// stand in the order in which they are attached: a start that follows a cancel
// is an arming anew, and looks like a birth to one who has not seen the cancel.
var tiers = []tier{
	{EvidenceTimer, []string{"timer_expire_entry", "timer_cancel", "timer_start"}},
}

// load returns the programs and maps, configured and in the kernel, with the
// best tier that the kernel takes. The error is that of the last tier tried.
func load(opts *Options) (*ebpf.Collection, tier, error) {
	var last error
	for _, tier := range tiers {
		coll, err := loadTier(opts, tier)
		if err == nil {
			return coll, tier, nil
		}
		last = err
	}
	return nil, tier{}, last
}

func loadTier(opts *Options, with tier) (*ebpf.Collection, error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, fmt.Errorf("read programs: %w", err)
	}
	for _, other := range tiers {
		if other.evidence != with.evidence {
			for _, name := range other.programs {
				delete(spec.Programs, name)
			}
		}
	}
	if err := size(spec, opts); err != nil {
		return nil, err
	}
	if err := configure(spec, opts); err != nil {
		return nil, err
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("load programs: %w", err)
	}
	return coll, nil
}

func size(spec *ebpf.CollectionSpec, opts *Options) error {
	spec.Maps["events"].MaxEntries = defaultEventBuffer
	if opts.EventBuffer > 0 {
		spec.Maps["events"].MaxEntries = uint32(opts.EventBuffer)
	}
	minis := opts.MiniSockets
	if minis == 0 {
		minis = sysctlInt("net/ipv4/tcp_max_tw_buckets", defaultMiniSockets)
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count CPUs: %w", err)
	}
	// Each CPU may have one whose end is not settled yet.
	spec.Maps["minis"].MaxEntries = uint32(min(max(minis, 1), maxMiniSockets) + cpus)
	spec.Maps["watch"].MaxEntries = spec.Maps["minis"].MaxEntries
	spec.Maps["cancels"].MaxEntries = uint32(cpus)
	return nil
}

// sysctlInt returns the value of a setting, or fallback if there is none.
func sysctlInt(name string, fallback int) int {
	text, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return fallback
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fallback
	}
	return n
}

// configure sets the constants that bpf/ declares as const volatile.
func configure(spec *ebpf.CollectionSpec, opts *Options) error {
	jiffy, err := jiffyLength()
	if err != nil {
		return err
	}
	values := opts.Filter.constants()
	values["jiffy_ns"] = jiffy
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
