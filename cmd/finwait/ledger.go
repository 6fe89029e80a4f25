package main

import (
	"fmt"
	"io"

	"github.com/finwait/finwait/tracer"
)

// writeLedger says what became of every transition. The tracer is detached.
func writeLedger(w io.Writer, t *tracer.Tracer, p *printer) error {
	l, err := t.Ledger()
	if err != nil {
		return err
	}
	// Matched transitions went to the ring or found it full; what came out of
	// it was taken, not understood, or is still in there because of --count.
	unread := l.Emitted - l.Decode - p.taken
	unwritten := p.taken - p.written
	fmt.Fprintf(w, "finwait: %d transitions seen, %d matched, %d printed, %d lost\n",
		l.Seen, l.Emitted+l.RingFull+l.NotHeld, p.written, l.Lost()+unwritten)
	notes := []struct {
		n    uint64
		text string
	}{
		{l.RingFull, "lost: the buffer was full (give it more with --buffer); they are counted all the same"},
		{l.NotHeld, "lost: the kernel refused memory to hold them until the socket has its addresses"},
		{l.Recursion, "lost: no program was run for them, since the kernel skips one that interrupts itself on one CPU"},
		{l.Decode, "lost: the record was not understood"},
		{l.UnknownState, "lost: a state that this version does not know"},
		{unwritten, "lost: could not be written"},
		{unread, "left unread at the end"},
		{l.StorageFailed, "without dwell and owner: the kernel refused memory for the socket's storage"},
		{l.Unfollowed, "times that a mini-socket could not be followed: more of them than there is room for"},
		{l.HandoffFull, "told as FIN_WAIT2→CLOSE though TIME_WAIT began: no room, or no time, to link socket and mini-socket"},
		{l.WatchFull, "told late: no room, or no time, to watch the mini-socket"},
		{l.RequestsFull, "half-open connections that could not be followed: more of them than there is room for"},
		{l.CompletedFull, "told as CLOSE→SYN_RECV though they had been half-open: no room to link the two"},
		{l.NetnsFull, "transitions in network namespaces that could not be counted apart: more of them than there is room for"},
		{l.StackFailed, "times that the kernel's stack could not be read, which says why a socket ended"},
		{l.Stale, "mini-sockets or half-open connections whose end was missed"},
		{l.Corrected, "sockets by which the gauges differed from the kernel's; they were put right"},
		{l.SweepFailed, "times that the kernel's sockets could not be looked at when due"},
		{l.SYNCookies, "connections were opened by a SYN cookie, without a half-open state"},
	}
	for _, note := range notes {
		if note.n > 0 {
			fmt.Fprintf(w, "finwait:   %d %s\n", note.n, note.text)
		}
	}
	return nil
}
