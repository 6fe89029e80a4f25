// Package explain knows what each TCP state and each transition means on
// Linux: what brings a socket there, what takes it away, which timers and
// sysctls bound it, and what a pile-up of it says.
//
// Times and defaults are those of current kernels, with the version where a
// default changed.
package explain

import (
	"fmt"
	"strings"

	"github.com/finwait/finwait/tracer"
)

// Entry is the explanation of one thing: a *State or a *Transition.
type Entry interface {
	// AppendText appends the explanation as text for people, in lines of less
	// than 80 columns.
	AppendText(dst []byte) []byte
	// AppendJSON appends it as one JSON object and a line end.
	AppendJSON(dst []byte) ([]byte, error)
}

// Lookup explains a state ("TIME_WAIT") or a transition
// ("FIN_WAIT2→TIME_WAIT"), in any of the spellings that tracer.ParseState and
// tracer.ParseTransition take. A transition that Linux does not make is
// explained too, as one that does not happen.
func Lookup(arg string) (Entry, error) {
	if !strings.ContainsAny(arg, ":→>") {
		s, err := tracer.ParseState(arg)
		if err != nil {
			return nil, err
		}
		return findState(s), nil
	}
	tr, err := tracer.ParseTransition(arg)
	if err != nil {
		return nil, err
	}
	return findTransition(tr), nil
}

// All returns every state and every legal transition.
func All() []Entry {
	var all []Entry
	for _, s := range tracer.States() {
		all = append(all, findState(s))
	}
	for _, tr := range tracer.LegalTransitions() {
		all = append(all, findTransition(tr))
	}
	return all
}

// AppendTable appends one line for each state and each legal transition.
func AppendTable(dst []byte) []byte {
	dst = append(dst, "STATE         MEANING\n"...)
	for _, s := range tracer.States() {
		dst = fmt.Appendf(dst, "%-13s %s\n", s, stateTexts[s].Summary)
	}
	dst = append(dst, "\nTRANSITION              WHAT HAPPENED\n"...)
	for _, tr := range tracer.LegalTransitions() {
		dst = fmt.Appendf(dst, "%-23s %s\n", tr, transitionTexts[tr].Summary)
	}
	return dst
}

// State explains one state.
type State struct {
	State   string  `json:"state"`
	Summary string  `json:"summary"`
	Meaning string  `json:"meaning"`
	Side    string  `json:"side"`
	From    []Arrow `json:"from"`
	Next    []Arrow `json:"next"`
	Bounds  []Bound `json:"bounds,omitempty"`
	PileUp  string  `json:"pile_up"`
	// Do is what helps against a pile-up, Dont what is often tried and does not.
	Do   []string `json:"do,omitempty"`
	Dont []string `json:"does_not_help,omitempty"`
}

// Transition explains one transition.
type Transition struct {
	OldState string `json:"old_state"`
	NewState string `json:"new_state"`
	// Happens is false for a transition that Linux does not make.
	Happens bool   `json:"happens"`
	Summary string `json:"summary"`
	// Wire is what happened on the wire or which call was made.
	Wire string `json:"what,omitempty"`
	Who  string `json:"who,omitempty"`
	// Next is what may follow in the new state; if the transition does not
	// happen, what may happen in the old one.
	Next  []Arrow  `json:"next"`
	Notes []string `json:"notes,omitempty"`
}

// Arrow is a transition in one line.
type Arrow struct {
	OldState string `json:"old_state"`
	NewState string `json:"new_state"`
	Summary  string `json:"summary"`
}

// Bound is something that limits the time in a state or the number of sockets
// in it: a sysctl, a socket option or a constant of the kernel.
type Bound struct {
	Name string `json:"name"`
	// Default is the value with its unit.
	Default string `json:"default,omitempty"`
	Effect  string `json:"effect"`
}

func findState(s tracer.State) *State {
	text := stateTexts[s].unwrapped()
	text.State = s.String()
	text.From = arrows(func(tr tracer.Transition) bool { return tr.New == s })
	text.Next = arrowsFrom(s)
	return &text
}

func findTransition(tr tracer.Transition) *Transition {
	text, ok := transitionTexts[tr]
	from := tr.New
	if !ok {
		text = impossible(tr)
		from = tr.Old
	}
	text = text.unwrapped()
	text.OldState, text.NewState = tr.Old.String(), tr.New.String()
	text.Happens = ok
	text.Next = arrowsFrom(from)
	if ok && tr.New == tracer.StateClose {
		text.Next = []Arrow{} // the end; what leaves CLOSE is another connection
	}
	return &text
}

// impossible explains a transition that does not happen.
func impossible(tr tracer.Transition) Transition {
	text := Transition{Summary: "does not happen in Linux"}
	if note, ok := impossibleNotes[tr]; ok {
		text.Notes = []string{note}
	} else if tr.Old == tr.New {
		text.Notes = []string{selfLoopNote}
	}
	return text
}

func arrowsFrom(s tracer.State) []Arrow {
	return arrows(func(tr tracer.Transition) bool { return tr.Old == s })
}

func arrows(want func(tracer.Transition) bool) []Arrow {
	all := []Arrow{}
	for _, tr := range tracer.LegalTransitions() {
		if want(tr) {
			all = append(all, Arrow{tr.Old.String(), tr.New.String(), transitionTexts[tr].Summary})
		}
	}
	return all
}
