package tracer

import "time"

// DetectOptions configures [Detect].
type DetectOptions struct {
	// Visit, if not nil, is called with a tracer of each tier that can be
	// used, while it traces; Detect closes it afterwards. What that costs can
	// be seen there without loading everything once more.
	Visit func(*Tracer)
}

// Features says what a host offers for tracing: whether finwait works there,
// how, by which evidence, and what is missing. It is a plain value. See
// [Detect].
//
// What could not be found out is empty, AnswerUnknown, or has a field that says
// so; it is never guessed. Texts that come from the kernel are as it wrote
// them.
type Features struct {
	// Release is the kernel's release, as uname -r prints it.
	Release string
	// Machine is the architecture, as uname -m prints it.
	Machine string

	// BTF tells whether the kernel describes its own types
	// (/sys/kernel/btf/vmlinux), without which no program can be loaded, and
	// BTFSize is the size of that in bytes.
	BTF     bool
	BTFSize int64
	// SocketCookie tells whether tracing programs may ask for a socket's
	// cookie, which Linux 5.12 is the first to allow. AnswerUnknown where the
	// caller may not load programs.
	SocketCookie Answer
	// Lockdown is the mode of kernel lockdown: none, integrity, or
	// confidentiality, which forbids tracing. Empty if the kernel does not
	// say: it has no lockdown, or securityfs is not mounted.
	Lockdown string

	// KptrRestrict is the setting kernel.kptr_restrict. Valid only if
	// KptrRestrictKnown.
	KptrRestrict      int
	KptrRestrictKnown bool
	// Symbols tells whether /proc/kallsyms shows the caller where the kernel's
	// functions lie. The timer tracepoints need that; with probes, some
	// reasons are not known without it.
	Symbols Answer

	// InitialUserNS tells whether the caller is in the initial user namespace.
	// Capabilities in another do not count for loading programs.
	InitialUserNS Answer
	// Capabilities are those that finwait can make use of.
	Capabilities []Capability

	// Tiers are the ways to see mini-sockets and half-open connections, in
	// order of preference, each with what came of trying it.
	Tiers []TierFeatures
	// TracingErr is the error that [New] returns here, nil if it traces.
	TracingErr error
	// CensusErr says why [TakeCensus] cannot count the sockets of the caller's
	// network namespace, nil if it can. It wraps [ErrNotSupported] if the
	// kernel has no tcp_diag.
	CensusErr error
}

// Chosen returns the tier that [New] takes if it is not asked for another, nil
// if it can take none.
func (f *Features) Chosen() *TierFeatures {
	for i := range f.Tiers {
		if f.Tiers[i].Err == nil {
			return &f.Tiers[i]
		}
	}
	return nil
}

// TierFeatures says whether one tier can be used.
type TierFeatures struct {
	// Evidence is what the tier gives: EvidenceProbe or EvidenceTimer.
	Evidence Evidence
	// Err is why it cannot be used, nil if it has been loaded and attached.
	Err error
	// Start is how long it took to load and attach. Valid only if Err is nil.
	Start time.Duration
	// Missing are the programs that it does without on this kernel. Not known,
	// and empty, if Err is set.
	Missing []MissingProgram
}

// MissingProgram is a program that cannot be attached because the kernel does
// not have the function.
type MissingProgram struct {
	// Name is the program's name.
	Name string
	// Function is the kernel function that is not in the kernel's BTF.
	Function string
}

// Capability is one of the caller's capabilities.
type Capability struct {
	// Name is as in capabilities(7), such as CAP_BPF.
	Name string
	// Effective tells whether the calling thread has it in effect.
	Effective bool
	// Purpose says what finwait needs it for.
	Purpose string
}

// Answer is what came of a question to the kernel.
type Answer uint8

// The answers.
const (
	// AnswerUnknown means that it could not be found out.
	AnswerUnknown Answer = iota
	// AnswerNo means that it is not so.
	AnswerNo
	// AnswerYes means that it is so.
	AnswerYes
)

var answerNames = [...]string{"unknown", "no", "yes"}

// String returns "unknown", "no" or "yes".
func (a Answer) String() string { return nameOf(answerNames[:], uint8(a)) }

// answer returns AnswerYes or AnswerNo.
func answer(yes bool) Answer {
	if yes {
		return AnswerYes
	}
	return AnswerNo
}

// Stats is what a tracer's programs and maps cost. It is a plain value. See
// [Tracer.Stats].
type Stats struct {
	// Programs are those that are loaded, in the order of their names.
	Programs []ProgramStats
	// Maps are those that are there, in the order of their names.
	Maps []MapStats
	// Rings are the ring buffers that are used: of transitions unless
	// Options.NoTransitions or Options.CountersOnly, and of connections if
	// Options.Conns.
	Rings []RingStats
}

// MapMemory returns the kernel memory of all maps in bytes. known is false if
// the kernel does not say it of one of them.
func (s *Stats) MapMemory() (bytes uint64, known bool) {
	for i := range s.Maps {
		if !s.Maps[i].MemoryKnown {
			return 0, false
		}
		bytes += s.Maps[i].Memory
	}
	return bytes, len(s.Maps) > 0
}

// ProgramStats is what one program has cost since it was loaded. The kernel
// counts runs and their time only while statistics are on: sysctl
// kernel.bpf_stats_enabled, or BPF_ENABLE_STATS of bpf(2). The time includes
// most of what it takes to read the clock twice for each run.
type ProgramStats struct {
	// Name is the program's name, and AttachedTo where it runs: the kind of
	// attachment and its place, such as tp_btf/inet_sock_set_state.
	Name, AttachedTo string
	// Runs is how often it has run, on all CPUs.
	Runs uint64
	// RunTime is how long that took in all.
	RunTime time.Duration
	// RecursionMisses is how often the kernel skipped it, because it had
	// interrupted itself. It is counted always.
	RecursionMisses uint64
}

// MapStats is what one map costs.
type MapStats struct {
	// Name is the map's name.
	Name string
	// Memory is how much kernel memory it takes in bytes. Valid only if
	// MemoryKnown: before Linux 6.4 the kernel does not tell it of every kind.
	Memory      uint64
	MemoryKnown bool
}

// RingStats says how full a ring buffer has been. The kernel loses what finds
// no room; the ledger counts it.
type RingStats struct {
	// Name is events for that of [Tracer.Events] and conns for that of
	// [Tracer.Conns].
	Name string
	// Size is how many bytes there is room for.
	Size uint64
	// HighWater is the most bytes that waited to be read at a time, the
	// headers of the records included, as the reader saw it: it looks
	// whenever it reads a record, and [Tracer.Stats] does when it is called.
	// Records that come while the reader is asleep count when it wakes.
	HighWater uint64
}
