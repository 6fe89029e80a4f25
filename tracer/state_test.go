package tracer

import (
	"slices"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestParseState(t *testing.T) {
	for _, s := range States() {
		got, err := ParseState(s.String())
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.Equals(got, s))
	}
	for name, want := range map[string]State{
		"fin_wait2": StateFinWait2, "FIN-WAIT-2": StateFinWait2, " time-wait ": StateTimeWait,
		"ESTAB": StateEstablished, "UNCONN": StateClose, "syn-recv": StateSynRecv,
		"SYN-RECEIVED": StateSynRecv, "LAST-ACK": StateLastAck, "closed": StateClose,
	} {
		got, err := ParseState(name)
		qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", name))
		qt.Assert(t, qt.Equals(got, want), qt.Commentf("%s", name))
	}
	for _, name := range []string{"", "TIME", "FIN_WAIT", "FIN_WAIT3", "none"} {
		_, err := ParseState(name)
		qt.Assert(t, qt.ErrorMatches(err, `unknown TCP state ".*" \(want one of ESTABLISHED, .*NEW_SYN_RECV\)`))
	}
}

func TestParseTransition(t *testing.T) {
	want := Transition{StateFinWait2, StateTimeWait}
	for _, s := range []string{"FIN_WAIT2:TIME_WAIT", "FIN_WAIT2→TIME_WAIT", "FIN-WAIT-2->TIME-WAIT", "fin_wait2 : time_wait"} {
		got, err := ParseTransition(s)
		qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", s))
		qt.Assert(t, qt.Equals(got, want), qt.Commentf("%s", s))
	}
	for s, message := range map[string]string{
		"TIME_WAIT":     `transition "TIME_WAIT" has no arrow .*`,
		"A:B":           `transition "A:B": unknown TCP state "A".*`,
		"LISTEN:":       `transition "LISTEN:": unknown TCP state "".*`,
		"LISTEN→CLOSE→": `transition .*unknown TCP state "CLOSE→".*`,
	} {
		_, err := ParseTransition(s)
		qt.Assert(t, qt.ErrorMatches(err, message))
	}
}

// Every state but NEW_SYN_RECV's fold can be reached and left.
func TestLegalTransitions(t *testing.T) {
	legal := LegalTransitions()
	for i, tr := range legal {
		qt.Assert(t, qt.IsTrue(tr.Old.valid() && tr.New.valid() && tr.Old != tr.New), qt.Commentf("%v", tr))
		qt.Assert(t, qt.IsFalse(slices.Contains(legal[:i], tr)), qt.Commentf("%v twice", tr))
	}
	for _, s := range States() {
		qt.Assert(t, qt.IsTrue(slices.ContainsFunc(legal, func(tr Transition) bool { return tr.Old == s })), qt.Commentf("nothing leaves %v", s))
		qt.Assert(t, qt.IsTrue(slices.ContainsFunc(legal, func(tr Transition) bool { return tr.New == s })), qt.Commentf("nothing enters %v", s))
	}
}

func FuzzParseTransition(f *testing.F) {
	for _, s := range []string{"FIN_WAIT2:TIME_WAIT", "a->b", "→", "::", "SYN-SENT→ESTAB"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tr, err := ParseTransition(s)
		if err != nil {
			qt.Assert(t, qt.Equals(tr, Transition{}))
			return
		}
		again, err := ParseTransition(tr.String())
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.Equals(again, tr))
	})
}
