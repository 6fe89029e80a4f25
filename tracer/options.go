package tracer

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"os"
	"slices"
	"time"
)

// Options configures a [Tracer]. The zero value, like nil, traces every TCP
// socket of the host.
type Options struct {
	// Filter chooses the transitions that become events. Everything is
	// counted, whatever the filter.
	Filter Filter

	// EventBuffer is the size in bytes of the ring buffer between the kernel
	// and Events, a power of two and at least a page. An event takes 120
	// bytes. It is mapped twice over, into the process that reads it. Default 8 MiB.
	EventBuffer int

	// MiniSockets is the number of TIME_WAIT and orphan FIN_WAIT2 sockets
	// that can be followed at a time; the kernel sets aside about 200 bytes
	// for each. The end of one above that number has no dwell and no owner.
	// At most 262,144. Default net.ipv4.tcp_max_tw_buckets, up to that.
	MiniSockets int

	// Evidence is what is to show mini-sockets and half-open connections:
	// EvidenceProbe or EvidenceTimer. Default the best that the kernel takes.
	Evidence Evidence

	// PinPath is a folder on a BPF file system, such as /sys/fs/bpf/finwait, in which
	// the counters are pinned: Counters, Endings and Profile go on there with the next
	// tracer that has the same PinPath; [PinnedGauges] reads the gauges from another
	// process, and [PinnedCounts] the counters. The Ledger is each tracer's own. The
	// folder is made if it is not there. Default none.
	//
	// What happens while there is no tracer is not counted. Counters that another
	// version has left, with which this one cannot go on, begin at 0:
	// [Tracer.Inherited] says so. What is pinned stays after the tracer; remove the
	// folder to be rid of it. There is one tracer at a time: see [PinHeldError].
	PinPath string

	// Reloadable lets [Tracer.SetFilter] change the filter. What is known of a
	// socket is kept then whether or not it passes, so that one that the filter
	// excludes costs more than its counting.
	Reloadable bool

	// NoTransitions switches the events off: Events yields none. Everything is
	// counted all the same, and Profile kept.
	NoTransitions bool

	// CountersOnly has the tracer keep Counters and nothing else, at the least
	// that they can be had for. There are no events and no gauges: Events yields
	// none, and Gauges, Audit and Stuck return an error; Filter and AuditInterval
	// are of no effect. A transition that interrupts the counting of another on
	// the same CPU is missed (Ledger.Recursion), and if it is the birth of an
	// accepted socket, its half-open connection may count as given up. Of
	// mini-sockets and half-open connections that are older than the tracer, not
	// every transition is counted; Ledger.SYNCookies never is. Not with Conns or
	// Profile.
	CountersOnly bool

	// Conns has the tracer tell of connections when they have ended (see
	// [Tracer.Conns]). It takes about 130 bytes more of kernel memory for each
	// socket, and sets aside 256 for each of MiniSockets. Default nil: it does
	// not.
	Conns *ConnOptions

	// AuditInterval is how often the gauges are compared with the kernel's
	// own totals, and put right where they differ (see [Tracer.Audit]).
	// Default 30 seconds; a negative value means never.
	AuditInterval time.Duration

	// Profile asks for histograms of how long sockets stay in each state, see
	// [Tracer.Profile]. Default nil, for none: they take 5 MiB of the kernel's
	// memory, and some time at each transition.
	Profile *ProfileOptions
}

// Filter chooses transitions. Every field that is set must match; a field
// matches if any of its values does. The kernel applies it. A socket that
// Addrs, Family, Netns or the ports exclude costs no more than its counting.
type Filter struct {
	// States lets through transitions out of or into one of these states.
	States []State
	// Transitions lets through these transitions alone.
	Transitions []Transition

	// Ports, LocalPorts and RemotePorts match either end's port, the
	// socket's own and its peer's. CLOSE→SYN_SENT comes before the kernel has
	// chosen the local port; where that decides, it is given with the next.
	Ports, LocalPorts, RemotePorts []PortRange

	// Addrs matches either end's address. An IPv4 prefix matches IPv4 that is
	// carried by an IPv6 socket too. At most 16.
	Addrs []netip.Prefix
	// Family is FamilyIPv4 or FamilyIPv6; 0 matches both. It is the family of
	// the socket, as for ss -4 and ss -6.
	Family Family
	// Netns matches the inode number of the network namespace. At most 16.
	Netns []uint32

	// PIDs, UIDs and Comms match the socket's owner. A socket whose owner is
	// not known does not match. At most 16 each. Comms are compared whole,
	// up to the 15 bytes that the kernel keeps.
	PIDs  []uint32
	UIDs  []uint32
	Comms []string
	// Cgroups matches an owner that was in one of these version 2 cgroups, or
	// anywhere below one, when it called connect or listen. At most 16.
	Cgroups []uint64

	// Sample is the share of connections that pass, more than 0 and at most 1:
	// each is told whole or not at all, in Events and in Conns, by its cookie, which
	// has nothing to do with what it is. Default 0, for all.
	Sample float64
}

// PortRange is the ports from First to Last, both included.
type PortRange struct {
	First, Last uint16
}

const (
	filterMax      = 16 // FILTER_MAX in bpf/filter.h
	commMax        = 15
	maxEventBuffer = 1 << 30
	maxMiniSockets = 262_144
)

// An OptionsError says what is wrong with the options given to [New]: a value
// out of its range, too many of one kind, or a filter that nothing can pass.
type OptionsError struct{ err error }

// Error implements error.
func (e *OptionsError) Error() string { return e.err.Error() }

// Unwrap returns the mistakes, joined if there are several.
func (e *OptionsError) Unwrap() error { return e.err }

// contradiction returns the error for a filter that nothing can pass.
func contradiction(format string, args ...any) error {
	return fmt.Errorf("filter lets nothing through: "+format, args...)
}

func (o *Options) validate() error {
	if err := validateBuffer("event buffer", o.EventBuffer); err != nil {
		return err
	}
	if o.MiniSockets < 0 || o.MiniSockets > maxMiniSockets {
		return fmt.Errorf("number of mini-sockets %d is not between 0 and %d", o.MiniSockets, maxMiniSockets)
	}
	if o.Evidence > EvidenceProbe {
		return fmt.Errorf("unknown evidence %d", o.Evidence)
	}
	if o.Profile != nil && o.Profile.By >= numProfileDimensions {
		return fmt.Errorf("unknown profile dimension %d", o.Profile.By)
	}
	if o.CountersOnly && o.PinPath != "" {
		return errors.New("counters only, and pinned gauges too")
	}
	if o.CountersOnly && (o.Conns != nil || o.Profile != nil) {
		return errors.New("counters only, and connections or a profile too")
	}
	return errors.Join(o.Filter.validate(), o.Conns.validate())
}

func validateBuffer(what string, n int) error {
	page := os.Getpagesize()
	if n != 0 && (n < page || n > maxEventBuffer || bits.OnesCount(uint(n)) != 1) {
		return fmt.Errorf("%s of %d bytes is not a power of two between %d and %d", what, n, page, maxEventBuffer)
	}
	return nil
}

func (f *Filter) validate() error {
	lengths := []struct {
		what string
		n    int
	}{
		{"addresses", len(f.Addrs)}, {"network namespaces", len(f.Netns)}, {"process ids", len(f.PIDs)},
		{"user ids", len(f.UIDs)}, {"process names", len(f.Comms)}, {"cgroups", len(f.Cgroups)},
	}
	for _, l := range lengths {
		if l.n > filterMax {
			return fmt.Errorf("filter has %d %s, at most %d fit", l.n, l.what, filterMax)
		}
	}
	for _, c := range f.Comms {
		if c == "" || len(c) > commMax {
			return fmt.Errorf("process name %q has %d bytes; the kernel keeps 1 to %d", c, len(c), commMax)
		}
	}
	if f.Sample < 0 || f.Sample > 1 || f.Sample != f.Sample {
		return fmt.Errorf("sample of %v is not a share of all connections, such as 0.01", f.Sample)
	}
	return errors.Join(f.validatePorts(), f.validateFamily(), f.validateTransitions())
}

func (f *Filter) validatePorts() error {
	for _, r := range slices.Concat(f.Ports, f.LocalPorts, f.RemotePorts) {
		if r.First == 0 || r.First > r.Last {
			return fmt.Errorf("port range %d-%d is empty or starts at 0", r.First, r.Last)
		}
	}
	return nil
}

func (f *Filter) validateFamily() error {
	switch f.Family {
	case 0, FamilyIPv4, FamilyIPv6:
	default:
		return fmt.Errorf("unknown address family %d", f.Family)
	}
	for _, p := range f.Addrs {
		if !p.IsValid() {
			return errors.New("filter has an invalid address prefix")
		}
	}
	ipv6Only := func(p netip.Prefix) bool { return p.Addr().Is6() && !p.Addr().Is4In6() && p.Bits() > 0 }
	if f.Family == FamilyIPv4 && len(f.Addrs) > 0 && !slices.ContainsFunc(f.Addrs, func(p netip.Prefix) bool { return !ipv6Only(p) }) {
		return contradiction("it asks for IPv4 sockets with IPv6 addresses")
	}
	return nil
}

func (f *Filter) validateTransitions() error {
	for _, t := range f.Transitions {
		if !slices.Contains(LegalTransitions(), t) {
			return contradiction("%v does not happen in Linux%s", t, hintFor(t))
		}
	}
	for _, t := range LegalTransitions() {
		if f.passes(t) {
			return nil
		}
	}
	return contradiction("no transition in %v is out of or into %v", f.Transitions, f.States)
}

// hintFor helps those who know the transition by the tracepoint's words.
func hintFor(t Transition) string {
	if t.Old == StateListen && t.New == StateSynRecv {
		return " (an accepted socket comes by NEW_SYN_RECV:SYN_RECV, or CLOSE:SYN_RECV; its listener stays in LISTEN)"
	}
	return ""
}

func (f *Filter) passes(t Transition) bool {
	byState := len(f.States) == 0 || slices.Contains(f.States, t.Old) || slices.Contains(f.States, t.New)
	return byState && (len(f.Transitions) == 0 || slices.Contains(f.Transitions, t))
}
