package traffic

import "github.com/finwait/finwait/tracer"

// Short names, so that a walk fits on a line.
const (
	estab   = tracer.StateEstablished
	synSent = tracer.StateSynSent
	synRecv = tracer.StateSynRecv
	fin1    = tracer.StateFinWait1
	fin2    = tracer.StateFinWait2
	tw      = tracer.StateTimeWait
	closed  = tracer.StateClose
	cw      = tracer.StateCloseWait
	lastAck = tracer.StateLastAck
	listen  = tracer.StateListen
	newSyn  = tracer.StateNewSynRecv
	closing = tracer.StateClosing
)

// Walk is the way of one socket through the states.
type Walk struct {
	// Raw is the way in the words of the tracepoint sock:inet_sock_set_state.
	Raw []tracer.Transition
	// EndsInTimeWait says that the last of Raw, FIN_WAIT2→CLOSE or
	// CLOSING→CLOSE, is really the beginning of TIME_WAIT. Its end,
	// TIME_WAIT→CLOSE, comes 60 seconds later (and up to 2 seconds more) and
	// is in no list.
	EndsInTimeWait bool
	// Orphan says that when the last of Raw happened the socket was replaced
	// by a mini-socket that is still in FIN_WAIT2. What Want says instead of
	// the last of Raw happens later: with EndsInTimeWait when the peer closes,
	// without it when the mini-socket's time is up. Where the peer closes at
	// once Orphan is false, and whether there was an orphan for some
	// microseconds is left to how the kernel delays its acknowledgements.
	Orphan bool
	// Direct says that an accepted socket was never half-open: its SYN carried
	// data, or was answered with a cookie.
	Direct bool
}

// Want is the way in finwait's words: TIME_WAIT is called so, an accepted
// socket was half-open before and did not leave LISTEN, and to stay in a state
// is no transition.
func (w Walk) Want() []tracer.Transition {
	var want []tracer.Transition
	for _, t := range w.Raw {
		switch {
		case t.Old == t.New:
			continue
		case t.Old == listen && t.New == synRecv && w.Direct:
			t.Old = closed
		case t.Old == listen && t.New == synRecv:
			want = append(want, tracer.Transition{Old: closed, New: newSyn})
			t.Old = newSyn
		}
		want = append(want, t)
	}
	if w.EndsInTimeWait {
		want[len(want)-1].New = tw
	}
	return want
}

// raw is a walk from state to state.
func raw(states ...tracer.State) Walk {
	var w Walk
	for i := 1; i < len(states); i++ {
		w.Raw = append(w.Raw, tracer.Transition{Old: states[i-1], New: states[i]})
	}
	return w
}

// client is the walk of a socket that connects, and then goes on from
// ESTABLISHED.
func client(then ...tracer.State) Walk {
	return raw(append([]tracer.State{closed, synSent, estab}, then...)...)
}

// server is the walk of a socket that comes out of a listener, and then goes
// on from ESTABLISHED.
func server(then ...tracer.State) Walk {
	return raw(append([]tracer.State{listen, synRecv, estab}, then...)...)
}

// listener is the walk of every listener.
func listener() Walk { return raw(closed, listen, closed) }

func (w Walk) timeWait() Walk {
	w.EndsInTimeWait = true
	return w
}

func (w Walk) direct() Walk {
	w.Direct = true
	return w
}

func (w Walk) orphan() Walk {
	w.Orphan = true
	return w
}
