package oracle

import (
	"net/netip"
	"slices"

	"github.com/finwait/finwait/tracer"
)

// About returns the lines of TCP sockets that have addr at either end.
func About(lines []Line, addr netip.Addr) []Line {
	return filter(lines, func(l *Line) bool {
		return l.IsTCP() && (l.Local().Addr() == addr || l.Remote().Addr() == addr)
	})
}

// OnPorts returns the lines that have one of the ports at either end.
func OnPorts(lines []Line, ports ...uint16) []Line {
	return filter(lines, func(l *Line) bool {
		return slices.Contains(ports, l.SPort) || slices.Contains(ports, l.DPort)
	})
}

func filter(lines []Line, keep func(*Line) bool) []Line {
	var kept []Line
	for i := range lines {
		if keep(&lines[i]) {
			kept = append(kept, lines[i])
		}
	}
	return kept
}

// Tuple names a socket by its own end and the other.
type Tuple struct{ Local, Remote netip.AddrPort }

// Sequences returns the transitions of each socket in their order. Lines tell
// sockets apart by their addresses alone, so sockets that have the same tuple,
// one after the other or as failing listeners do, come out as one.
//
// When a socket starts to connect the kernel has not chosen its port yet, and
// says 0 or, for a socket that was connected before, its old port. Such a line
// is given to the next socket that leaves SYN_SENT for the same remote end.
func Sequences(lines []Line) map[Tuple][]tracer.Transition {
	sequences := map[Tuple][]tracer.Transition{}
	connecting := map[netip.AddrPort][]*Line{}
	add := func(l *Line, tuple Tuple) {
		sequences[tuple] = append(sequences[tuple], l.Transition)
	}
	for i := range lines {
		l := &lines[i]
		tuple := Tuple{l.Local(), l.Remote()}
		if l.New == tracer.StateSynSent {
			connecting[tuple.Remote] = append(connecting[tuple.Remote], l)
			continue
		}
		if queue := connecting[tuple.Remote]; l.Old == tracer.StateSynSent && len(queue) > 0 {
			add(queue[0], tuple)
			connecting[tuple.Remote] = queue[1:]
		}
		add(l, tuple)
	}
	for _, queue := range connecting {
		for _, l := range queue {
			add(l, Tuple{l.Local(), l.Remote()})
		}
	}
	return sequences
}
