package output

import "github.com/finwait/finwait/tracer"

// stateNames are the names of states in one of the table's spellings, by state.
type stateNames [tracer.StateNewSynRecv + 1]string

// newStateNames returns the names that tracer gives, but for those in short.
func newStateNames(short map[tracer.State]string) *stateNames {
	var names stateNames
	for _, s := range tracer.States() {
		names[s] = s.String()
		if name, ok := short[s]; ok {
			names[s] = name
		}
	}
	return &names
}

func (n *stateNames) of(s tracer.State) string {
	if int(s) < len(n) && n[s] != "" {
		return n[s]
	}
	return s.String()
}

// width returns the columns that a transition takes.
func (n *stateNames) width(tr tracer.Transition) int {
	return len(n.of(tr.Old)) + 1 + len(n.of(tr.New))
}

// The tints are the eight colors that every terminal has and every theme
// makes readable.
const (
	tintOpen     = "\x1b[32m" // green
	tintTimeWait = "\x1b[33m" // yellow
	tintBroken   = "\x1b[31m" // red
	tintClosing  = "\x1b[36m" // cyan
	tintOff      = "\x1b[0m"
)

var stateTints = [...]string{
	tracer.StateEstablished: tintOpen,
	tracer.StateFinWait1:    tintClosing,
	tracer.StateFinWait2:    tintClosing,
	tracer.StateTimeWait:    tintTimeWait,
	tracer.StateCloseWait:   tintClosing,
	tracer.StateLastAck:     tintClosing,
	tracer.StateClosing:     tintClosing,
}

// tints returns the escapes for the two states of a transition, "" for none.
func tints(tr tracer.Transition) (from, to string) {
	from, to = stateTint(tr.Old), stateTint(tr.New)
	if broken(tr) {
		to = tintBroken
	}
	return from, to
}

func stateTint(s tracer.State) string {
	if int(s) < len(stateTints) {
		return stateTints[s]
	}
	return ""
}

// broken says whether tr ends a connection otherwise than by a FIN from each
// side: a reset, a timeout, a refusal.
func broken(tr tracer.Transition) bool {
	if tr.New != tracer.StateClose {
		return false
	}
	switch tr.Old {
	case tracer.StateTimeWait, tracer.StateLastAck, tracer.StateListen, tracer.StateClose:
		return false
	}
	return true
}
