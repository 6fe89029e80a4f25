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
		{l.Recursion, "lost: the kernel skips a program that interrupts itself on one CPU"},
		{l.Decode, "lost: the record was not understood"},
		{l.UnknownState, "lost: a state that this version does not know"},
		{unwritten, "lost: could not be written"},
		{unread, "left unread at the end"},
		{l.StorageFailed, "without dwell and owner: the kernel refused memory for the socket's storage"},
		{l.Unfollowed, "times that a mini-socket could not be followed: more of them than there is room for"},
		{l.HandoffFull, "told as FIN_WAIT2→CLOSE though TIME_WAIT began: no room, or no time, to link socket and mini-socket"},
		{l.WatchFull, "told late: no room, or no time, to watch the mini-socket"},
		{l.SweepFailed, "times that orphans in FIN_WAIT2 could not be looked at when due"},
	}
	for _, note := range notes {
		if note.n > 0 {
			fmt.Fprintf(w, "finwait:   %d %s\n", note.n, note.text)
		}
	}
	return nil
}
