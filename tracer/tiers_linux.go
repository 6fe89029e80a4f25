//go:build linux && (amd64 || arm64 || loong64 || ppc64le || riscv64)

package tracer

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

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
