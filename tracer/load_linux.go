//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
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
	if err := errors.Join(with.tellSymbols(coll, k), setFilter(coll.Variables, kernelFilter(&opts.Filter, opts.Conns))); err != nil {
		coll.Close()
		return nil, err
	}
	return coll, nil
}

// loadInParts loads the maps, and then the programs in two parts at once: to verify
// those at stateTracepoint takes as long as all others.
func loadInParts(spec *ebpf.CollectionSpec, k *kernel) (*ebpf.Collection, error) {
	states, others := map[string]*ebpf.ProgramSpec{}, spec.Programs
	spec.Programs = nil
	for name, program := range others {
		if program.AttachTo == stateTracepoint {
			states[name] = program
			delete(others, name)
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Cache: k.types})
	if err != nil {
		return nil, err
	}
	loadPart := func(programs map[string]*ebpf.ProgramSpec) func() (*ebpf.Collection, error) {
		part := &ebpf.CollectionSpec{Maps: spec.Maps, Programs: programs, Types: spec.Types, ByteOrder: spec.ByteOrder}
		return inBackground(func() (*ebpf.Collection, error) {
			return ebpf.NewCollectionWithOptions(part, ebpf.CollectionOptions{Cache: k.types, MapReplacements: coll.Maps})
		})
	}
	parts := []func() (*ebpf.Collection, error){loadPart(states), loadPart(others)}
	for _, await := range parts {
		part, partErr := await()
		if partErr != nil {
			err = andAlso(err, partErr)
			continue
		}
		for name := range part.Programs {
			coll.Programs[name] = part.DetachProgram(name)
		}
		part.Close() // its own descriptors of the maps
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
	if err := coll.Variables["symbols"].Set(syms); err != nil {
		return fmt.Errorf("set symbols: %w", err)
	}
	return nil
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
