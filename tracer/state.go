package tracer

import (
	"fmt"
	"strings"
)

// State is a TCP connection state. The numbers are the kernel's own (enum in
// include/net/tcp_states.h), which are part of its user-space ABI.
type State uint8

// The states a socket can be in. StateNewSynRecv is a half-open connection
// that is still a request socket; per-state summaries fold it into
// StateSynRecv, as ss and netstat do.
const (
	StateEstablished State = 1
	StateSynSent     State = 2
	StateSynRecv     State = 3
	StateFinWait1    State = 4
	StateFinWait2    State = 5
	StateTimeWait    State = 6
	StateClose       State = 7
	StateCloseWait   State = 8
	StateLastAck     State = 9
	StateListen      State = 10
	StateClosing     State = 11
	StateNewSynRecv  State = 12

	numStates = 13
)

var stateNames = [numStates]string{
	StateEstablished: "ESTABLISHED",
	StateSynSent:     "SYN_SENT",
	StateSynRecv:     "SYN_RECV",
	StateFinWait1:    "FIN_WAIT1",
	StateFinWait2:    "FIN_WAIT2",
	StateTimeWait:    "TIME_WAIT",
	StateClose:       "CLOSE",
	StateCloseWait:   "CLOSE_WAIT",
	StateLastAck:     "LAST_ACK",
	StateListen:      "LISTEN",
	StateClosing:     "CLOSING",
	StateNewSynRecv:  "NEW_SYN_RECV",
}

// String returns the state's name as netstat prints it, such as "FIN_WAIT2".
// It does not allocate for a state the kernel has.
func (s State) String() string {
	if s.valid() {
		return stateNames[s]
	}
	return fmt.Sprintf("STATE_%d", uint8(s))
}

func (s State) valid() bool { return s >= StateEstablished && s < numStates }

// States returns every state in the kernel's order.
func States() []State {
	all := make([]State, 0, numStates-1)
	for s := StateEstablished; s < numStates; s++ {
		all = append(all, s)
	}
	return all
}

// stateAliases are the spellings of other tools that ParseState takes too: ss
// (ESTAB, UNCONN, FIN-WAIT-2 after separators are dropped) and RFC 9293
// (SYN-RECEIVED, CLOSED).
var stateAliases = map[string]State{
	"ESTAB":       StateEstablished,
	"SYNRECEIVED": StateSynRecv,
	"CLOSED":      StateClose,
	"UNCONN":      StateClose,
}

// ParseState returns the state of that name. Case, hyphens and underscores do
// not matter, so "FIN-WAIT-2" and "fin_wait2" are both StateFinWait2.
func ParseState(name string) (State, error) {
	key := foldStateName(name)
	for s, n := range stateNames {
		if n != "" && foldStateName(n) == key {
			return State(s), nil
		}
	}
	if s, ok := stateAliases[key]; ok {
		return s, nil
	}
	return 0, fmt.Errorf("unknown TCP state %q (want one of %s)", name, strings.Join(stateNames[1:], ", "))
}

func foldStateName(s string) string {
	return strings.NewReplacer("-", "", "_", "").Replace(strings.ToUpper(strings.TrimSpace(s)))
}

// Transition is a move of one socket from one state to another. A socket that
// comes into being is said to leave StateClose, and one that is gone to enter
// it.
type Transition struct {
	Old, New State
}

// String returns the transition as "FIN_WAIT2→TIME_WAIT".
func (t Transition) String() string { return t.Old.String() + "→" + t.New.String() }

// transitionArrows are the ways to write a transition; the first is the one
// that needs no quoting in a shell.
var transitionArrows = []string{":", "→", "->"}

// ParseTransition parses "FIN_WAIT2:TIME_WAIT". An arrow, "→" or "->", may
// stand for the colon.
func ParseTransition(s string) (Transition, error) {
	for _, arrow := range transitionArrows {
		before, after, found := strings.Cut(s, arrow)
		if !found {
			continue
		}
		from, err := ParseState(before)
		if err != nil {
			return Transition{}, fmt.Errorf("transition %q: %w", s, err)
		}
		to, err := ParseState(after)
		if err != nil {
			return Transition{}, fmt.Errorf("transition %q: %w", s, err)
		}
		return Transition{from, to}, nil
	}
	return Transition{}, fmt.Errorf("transition %q has no arrow (write it as FIN_WAIT2:TIME_WAIT)", s)
}
