package match

import (
	"github.com/finwait/finwait/cmd/finwait/internal/replay"
	"github.com/finwait/finwait/tracer"
)

// maxHeld is how many transitions wait at a time. In the kernel each waits with
// its socket; a log need not have the next of all of them.
const maxHeld = 1 << 16

// Events chooses transitions, in the order in which they were told. One that
// lacks the port on which it hangs is held until the next of its socket, as in
// the kernel (hold and release in bpf/socket.h).
type Events struct {
	filter *Filter
	held   map[socket]*heldRecord
	queue  []socket // in the order in which they came; some may be gone
	forgot uint64
}

// socket is what tells one socket from another.
type socket struct {
	cookie uint64
	netns  uint32
}

// heldRecord is a record with what it refers to.
type heldRecord struct {
	replay.Record
	event tracer.Event
}

// NewEvents returns what chooses those that pass f.
func NewEvents(f *Filter) *Events { return &Events{filter: f, held: map[socket]*heldRecord{}} }

// Forgotten returns how many transitions lacked the port on which they hang, and
// are not waited for any more: too many wait.
func (e *Events) Forgotten() uint64 { return e.forgot }

// Take looks at the next transition. It returns the one that was held, if that
// passes now, with the ports that it has got; and whether the next itself passes.
func (e *Events) Take(next *replay.Record) (held *replay.Record, pass bool) {
	verdict := e.filter.Socket(next.Event)
	if len(e.held) > 0 {
		held = e.release(next.Event, verdict)
	}
	if verdict == Later && next.Event.New != tracer.StateClose {
		e.hold(next)
	}
	return held, verdict == Pass && e.filter.Transition(next.Event)
}

// release returns what was held of the socket whose next transition is ev, if it
// passes. It is held no more.
func (e *Events) release(ev *tracer.Event, verdict Verdict) *replay.Record {
	key := socket{ev.Cookie, ev.Netns}
	held, ok := e.held[key]
	if !ok {
		return nil
	}
	delete(e.held, key)
	if verdict != Pass || held.event.New != ev.Old || !e.filter.Transition(&held.event) {
		return nil
	}
	held.event.Local, held.event.Remote = ev.Local, ev.Remote
	return &held.Record
}

// hold keeps a transition until the next of its socket.
func (e *Events) hold(r *replay.Record) {
	if r.Event.Cookie == 0 { // which of the next it would be is not known
		return
	}
	if len(e.queue) >= maxHeld {
		e.forget()
	}
	held := &heldRecord{Record: *r, event: *r.Event}
	held.Event = &held.event
	key := socket{r.Event.Cookie, r.Event.Netns}
	e.held[key] = held
	e.queue = append(e.queue, key)
}

// forget makes room: those go that are held no more, and half of the others if
// that is too little.
func (e *Events) forget() {
	kept := e.queue[:0]
	for _, key := range e.queue {
		if _, ok := e.held[key]; ok {
			kept = append(kept, key)
		}
	}
	if len(kept) > maxHeld/2 {
		old := len(kept) - maxHeld/2
		for _, key := range kept[:old] {
			if _, ok := e.held[key]; ok {
				delete(e.held, key)
				e.forgot++
			}
		}
		kept = append(kept[:0], kept[old:]...)
	}
	e.queue = kept
}
