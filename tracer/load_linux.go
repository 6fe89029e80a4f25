//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// stateTracepoint is where states change, and statePrograms what runs there, in
// the order in which they must: see bpf/finwait.bpf.c.
const stateTracepoint = "inet_sock_set_state"

var statePrograms = []string{"set_state_softirq", "set_state", "set_state_again", "set_state_last"}

// preemptPrograms are those of statePrograms that are for kernels on which another
// process can take the CPU from a program at a tracepoint.
var preemptPrograms = []string{"set_state_again", "set_state_last"}

// ownerPrograms are those of a tier that see nothing but whose sockets are.
var ownerPrograms = []string{"sock_graft", "sock_graft_again", "retransmit_synack"}

// countProgram stands in place of all of them where transitions are counted and no
// more.
const countProgram = "count_state"

// resetProgram tells statePrograms that a reset is ending a socket (bpf/reason.h).
const resetProgram = "receive_reset"

// claimProgram goes through the sockets of a network namespace (bpf/claim.h),
// findProgram and holdersProgram through the open files of the host
// (bpf/namespaces.h, bpf/owners.h).
const (
	claimProgram   = "claim"
	findProgram    = "find_netns"
	holdersProgram = "find_holders"
)

// auditPrograms are the programs that go through a map for an audit, by name,
// each with its map.
var auditPrograms = map[string]string{"audit_minis": "minis", "audit_requests": "requests"}

// orphanSweep goes through watch for the timer tier, which cannot see all that
// happens to the mini-sockets there.
const (
	orphanSweep = "sweep_orphans"
	watchMap    = "watch"
)

const (
	defaultEventBuffer = 8 << 20
	defaultMiniSockets = 131_072
	// maxRequests is how many half-open connections are followed at a time.
	maxRequests = 65_536
	// maxNetns is how many network namespaces have gauges of their own.
	maxNetns = 1024
)

// kernel is the programs, and what they need to know of the kernel that runs, each
// read once.
type kernel struct {
	spec  *ebpf.CollectionSpec // to be copied
	types *btf.Cache           // its BTF
	// symbols waits for what kallsyms says, which the kernel takes half as long to
	// write as everything else takes.
	symbols func() (symbols, error)
	// keepsCPU tells that at tracepoints no other process takes the CPU.
	keepsCPU bool
}

func readKernel() (*kernel, error) {
	k := &kernel{types: btf.NewCache(), symbols: inBackground(readSymbols)}
	types := inBackground(k.types.Kernel)
	spec, err := loadBpf()
	_, _ = types() // who needs them asks again
	if err != nil {
		return nil, fmt.Errorf("read programs: %w", err)
	}
	k.spec = spec
	// What stands in the way of finding out, loading the programs is going to tell.
	k.keepsCPU, _ = k.tracepointsKeepCPU()
	return k, nil
}

// inBackground calls f at once, and returns what waits for its results.
func inBackground[T any](f func() (T, error)) func() (T, error) {
	once := sync.OnceValues(f)
	go func() { _, _ = once() }()
	return once
}

// has tells whether the kernel's BTF has the function.
func (k *kernel) has(function string) (bool, error) {
	types, err := k.types.Kernel()
	if err != nil {
		return false, fmt.Errorf("read the kernel's BTF: %w", err)
	}
	var found *btf.Func
	err = types.TypeByName(function, &found)
	if errors.Is(err, btf.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// A tier is a set of programs that see mini-sockets and half-open connections
// begin, move on and end. Each is one file in bpf/.
type tier struct {
	evidence Evidence
	programs []string // in the order in which they are attached
	optional []string // of those, the ones whose kernel function may be missing
	// try loads the least program that needs what the tier needs.
	try func(*kernel) error
	// symbols are what the tier cannot do without of what kallsyms says.
	symbols func(*symbols) error
}

// tiers stand in order of preference: a probe costs nothing where its function
// is not called, a timer tracepoint is passed by every timer of the host.
var tiers = []tier{
	{
		evidence: EvidenceProbe,
		programs: []string{
			"twsk_destructor", "tw_timer", "twsk_deschedule", "twsk_schedule", "twsk_alloc", "twsk_alloc_again",
			"reqsk_destructor4", "reqsk_destructor4_again", "reqsk_destructor6", "reqsk_destructor6_again",
			"complete_hashdance", "migrate_sock", "reqsk_timer", "reqsk_hash_add", "sock_graft", "sock_graft_again",
		},
		// Missing before 5.14; static, and so may be called otherwise in a
		// kernel to come; in a module where IPv6 is one; only there with
		// CONFIG_SECURITY_NETWORK.
		optional: []string{
			"migrate_sock", "tw_timer", "reqsk_timer", "reqsk_destructor6", "reqsk_destructor6_again",
			"sock_graft", "sock_graft_again",
		},
		try:     tryProbe,
		symbols: func(*symbols) error { return nil }, // without them, some reasons are unknown
	},
	{
		evidence: EvidenceTimer,
		programs: []string{"timer_expire_exit", "timer_expire_entry", "timer_cancel", "retransmit_synack", "timer_start"},
		try:      func(*kernel) error { return nil },
		symbols:  (*symbols).complete,
	},
}

// tryProbe tells whether the kernel takes a program at a kernel function.
func tryProbe(k *kernel) error {
	const name = "probe"
	coll, err := ebpf.NewCollectionWithOptions(&ebpf.CollectionSpec{Programs: map[string]*ebpf.ProgramSpec{name: {
		Type:         ebpf.Tracing,
		AttachType:   ebpf.AttachTraceFEntry,
		AttachTo:     "tcp_twsk_destructor",
		License:      "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.LoadImm(asm.R0, 0, asm.DWord), asm.Return()},
	}}}, ebpf.CollectionOptions{Cache: k.types})
	if errors.Is(err, unix.EPERM) && mayTrace() {
		// cilium/ebpf would blame RLIMIT_MEMLOCK.
		return fmt.Errorf("the kernel refuses programs at its functions (fentry): %w", unix.EPERM)
	}
	if err != nil {
		return fmt.Errorf("load a probe: %w", err)
	}
	defer coll.Close()
	l, err := link.AttachTracing(link.TracingOptions{Program: coll.Programs[name]})
	if err != nil {
		return fmt.Errorf("attach a probe: %w", err)
	}
	return l.Close()
}

// usableTiers returns the tiers that this kernel takes, best first, and why it
// does not take the others. want is the only one that is asked for, or 0.
func usableTiers(want Evidence, k *kernel) (usable []tier, refused error) {
	for _, tier := range tiers {
		if want != 0 && want != tier.evidence {
			continue
		}
		if err := tier.try(k); err == nil {
			usable = append(usable, tier)
		} else {
			refused = andAlso(refused, fmt.Errorf("evidence by %v: %w", tier.evidence, err))
		}
	}
	return usable, refused
}

// andAlso joins errors in one line.
func andAlso(err, another error) error {
	if err == nil {
		return another
	}
	return fmt.Errorf("%w; %w", err, another)
}

// load returns the programs and maps of a tier, configured and in the kernel.
// Programs keep the CPU where they can (bpf/preempt.h); some kernels that have the
// functions for it (6.10 to about 6.14) do not let a program call a global function
// meanwhile.
func load(opts *Options, with tier, k *kernel) (*ebpf.Collection, error) {
	keep, err := k.has("bpf_preempt_disable")
	if err != nil {
		return nil, err
	}
	coll, err := loadKeeping(keep, opts, with, k)
	if keep && errors.Is(err, unix.EINVAL) {
		return loadKeeping(false, opts, with, k)
	}
	return coll, err
}

func loadKeeping(cpu bool, opts *Options, with tier, k *kernel) (*ebpf.Collection, error) {
	spec := k.spec.Copy()
	if err := choose(spec, opts, with, k); err != nil {
		return nil, err
	}
	if err := size(spec, opts); err != nil {
		return nil, err
	}
	if err := configure(spec, opts, with, k); err != nil {
		return nil, err
	}
	if err := spec.Variables["can_keep_cpu"].Set(cpu); err != nil {
		return nil, fmt.Errorf("set can_keep_cpu: %w", err)
	}
	coll, err := loadInParts(spec, k)
	if err != nil {
		return nil, fmt.Errorf("load programs: %w", err)
	}
	if err := with.tellSymbols(coll, k); err != nil {
		coll.Close()
		return nil, err
	}
	return coll, nil
}

// loadInParts loads the maps, and then the programs in two parts at once: to verify
// those at stateTracepoint takes as long as all others.
func loadInParts(spec *ebpf.CollectionSpec, k *kernel) (*ebpf.Collection, error) {
	others := spec.Programs
	spec.Programs = nil
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Cache: k.types})
	if err != nil {
		return nil, err
	}
	states := map[string]*ebpf.ProgramSpec{}
	maps.Copy(states, others)
	maps.DeleteFunc(states, func(_ string, p *ebpf.ProgramSpec) bool { return p.AttachTo != stateTracepoint })
	maps.DeleteFunc(others, func(_ string, p *ebpf.ProgramSpec) bool { return p.AttachTo == stateTracepoint })
	load := func(programs map[string]*ebpf.ProgramSpec) func() (*ebpf.Collection, error) {
		return inBackground(func() (*ebpf.Collection, error) {
			part := &ebpf.CollectionSpec{Maps: spec.Maps, Programs: programs, Types: spec.Types, ByteOrder: spec.ByteOrder}
			return ebpf.NewCollectionWithOptions(part, ebpf.CollectionOptions{Cache: k.types, MapReplacements: coll.Maps})
		})
	}
	for _, part := range []func() (*ebpf.Collection, error){load(states), load(others)} {
		loaded, loadErr := part()
		if loadErr != nil {
			err = andAlso(err, loadErr)
			continue
		}
		for name := range loaded.Programs {
			coll.Programs[name] = loaded.DetachProgram(name)
		}
		loaded.Close() // its own descriptors of the maps
	}
	if err != nil {
		coll.Close()
		return nil, err
	}
	return coll, nil
}

// tellSymbols tells the programs where functions lie, if that is enough for them.
func (t *tier) tellSymbols(coll *ebpf.Collection, k *kernel) error {
	syms, err := k.symbols()
	if err != nil {
		return fmt.Errorf("read symbols: %w", err)
	}
	if err := t.symbols(&syms); err != nil {
		return err
	}
	return coll.Variables["symbols"].Set(syms)
}

// choose removes the programs of other tiers, and those that have nothing to
// be attached to.
func choose(spec *ebpf.CollectionSpec, opts *Options, with tier, k *kernel) error {
	unwanted := notFor(opts, with, k)
	for _, name := range with.optional {
		there, err := k.has(spec.Programs[name].AttachTo)
		if err != nil {
			return err
		}
		if !there {
			unwanted = append(unwanted, name)
		}
	}
	for _, name := range unwanted {
		delete(spec.Programs, name)
	}
	return nil
}

// notFor returns the programs that there is no need for.
func notFor(opts *Options, with tier, k *kernel) []string {
	names := []string{measureProgram}
	for _, other := range tiers {
		if other.evidence != with.evidence {
			names = append(names, other.programs...)
		}
	}
	if with.evidence != EvidenceTimer {
		names = append(names, orphanSweep)
	}
	if k.keepsCPU {
		names = append(names, preemptPrograms...)
	}
	if !opts.CountersOnly {
		return append(names, countProgram)
	}
	names = append(names, statePrograms...)
	names = append(names, ownerPrograms...)
	names = append(names, resetProgram, claimProgram, findProgram, holdersProgram, stuckProgram)
	return slices.AppendSeq(names, maps.Keys(auditPrograms))
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
	// A free element may wait on the list of another CPU.
	spec.Maps["minis"].MaxEntries = uint32(min(max(minis, 1), maxMiniSockets) + cpus)
	spec.Maps["watch"].MaxEntries = spec.Maps["minis"].MaxEntries
	spec.Maps["requests"].MaxEntries = uint32(maxRequests + cpus)
	spec.Maps["gauges"].MaxEntries = maxNetns
	opts.Conns.size(spec)
	if opts.NoTransitions || opts.CountersOnly {
		spec.Maps["events"].MaxEntries = uint32(os.Getpagesize())
	}
	spec.Maps[profileMap].MaxEntries = opts.Profile.size(cpus)
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
