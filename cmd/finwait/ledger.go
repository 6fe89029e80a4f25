package main

import (
	"fmt"
	"io"

	"github.com/finwait/finwait/tracer"
)

// account is what became of the items of a stream, as far as the tracer knows.
type account struct {
	seen, matched, emitted, lost uint64
	notes                        []note // why they were lost
}

// note is something that happened n times.
type note struct {
	n    uint64
	text string
}

// writeLedger says what became of every item. The tracer is detached.
func writeLedger[T any](w io.Writer, t *tracer.Tracer, s stream[T], p *printer[T]) error {
	l, err := t.Ledger()
	if err != nil {
		return err
	}
	a := s.account(&l)
	// Matched items went to the ring or found it full; what came out of it was
	// taken, not understood, or is still in there because of --count.
	unread := a.emitted - l.Decode - p.taken
	unwritten := p.taken - p.written
	fmt.Fprintf(w, "finwait: %d %s seen, %d matched, %d printed, %d lost\n", a.seen, s.noun, a.matched, p.written, a.lost+unwritten)
	writeNotes(w, append(a.notes,
		note{l.Decode, "lost: the record was not understood"},
		note{unwritten, "lost: could not be written"},
		note{unread, "left unread at the end"}))
	writeNotes(w, impairments(&l))
	return nil
}

func writeNotes(w io.Writer, notes []note) {
	for _, note := range notes {
		if note.n > 0 {
			fmt.Fprintf(w, "finwait:   %d %s\n", note.n, note.text)
		}
	}
}

// missed are the transitions that the tracer knows nothing of.
func missed(l *tracer.Ledger) []note {
	return []note{
		{l.Recursion, "lost: no program was run for them, since the kernel skips one that interrupts itself on one CPU"},
		{l.UnknownState, "lost: a state that this version does not know"},
	}
}

// impairments are what made the tracer know less than it could have.
func impairments(l *tracer.Ledger) []note {
	return []note{
		{l.StorageFailed, "without dwell and owner: the kernel refused memory for the socket's storage"},
		{l.Unfollowed, "times that a mini-socket could not be followed: more of them than there is room for"},
		{l.HandoffFull, "told as FIN_WAIT2→CLOSE though TIME_WAIT began: no room, or no time, to link socket and mini-socket"},
		{l.WatchFull, "told late: no room, or no time, to watch the mini-socket"},
		{l.RequestsFull, "half-open connections that could not be followed: more of them than there is room for"},
		{l.CompletedFull, "told as CLOSE→SYN_RECV though they had been half-open: no room to link the two"},
		{l.ConnsPartial, "connections without their walk and bytes: more in TIME_WAIT than there is room for"},
		{l.NetnsFull, "transitions in network namespaces that could not be counted apart: more of them than there is room for"},
		{l.StackFailed, "times that the kernel's stack could not be read, which says why a socket ended"},
		{l.Stale, "mini-sockets or half-open connections whose end was missed"},
		{l.Corrected, "sockets by which the gauges differed from the kernel's; they were put right"},
		{l.SweepFailed, "times that the kernel's sockets could not be looked at when due"},
		{l.ProfileFull, "times went into the histograms for others: there are more services, ports, cgroups or processes than there is room for"},
		{l.SYNCookies, "connections were opened by a SYN cookie, without a half-open state"},
	}
}
