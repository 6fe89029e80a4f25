package explain

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-quicktest/qt"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/finwait/finwait/cmd/finwait/internal/prose"
	"github.com/finwait/finwait/tracer"
)

func TestEveryStateIsExplained(t *testing.T) {
	qt.Assert(t, qt.HasLen(stateTexts, len(tracer.States())))
	for _, s := range tracer.States() {
		t.Run(s.String(), func(t *testing.T) {
			got := findState(s)
			qt.Check(t, qt.Equals(got.State, s.String()))
			for name, text := range map[string]string{
				"summary": got.Summary, "meaning": got.Meaning, "side": got.Side, "pile-up": got.PileUp,
			} {
				qt.Check(t, qt.Not(qt.Equals(text, "")), qt.Commentf(name))
			}
			qt.Check(t, qt.Not(qt.HasLen(got.From, 0)))
			qt.Check(t, qt.Not(qt.HasLen(got.Next, 0)))
			qt.Check(t, qt.Not(qt.HasLen(got.Do, 0)))
		})
	}
}

func TestExactlyTheLegalTransitionsAreExplained(t *testing.T) {
	seen := make(map[tracer.Transition]bool)
	for _, tr := range tracer.LegalTransitions() {
		qt.Check(t, qt.IsFalse(seen[tr]), qt.Commentf("%s is there twice", tr))
		seen[tr] = true
		got := findTransition(tr)
		qt.Check(t, qt.IsTrue(got.Happens), qt.Commentf("%s", tr))
		for name, text := range map[string]string{"summary": got.Summary, "wire": got.Wire, "who": got.Who} {
			qt.Check(t, qt.Not(qt.Equals(text, "")), qt.Commentf("%s: %s", tr, name))
		}
	}
	for tr := range transitionTexts {
		qt.Check(t, qt.IsTrue(seen[tr]), qt.Commentf("%s is explained but not legal", tr))
	}
	for tr := range impossibleNotes {
		qt.Check(t, qt.IsFalse(seen[tr]), qt.Commentf("%s is legal and said to be impossible", tr))
	}
}

// everyPair returns each pair of states.
func everyPair() []tracer.Transition {
	var all []tracer.Transition
	for _, from := range tracer.States() {
		for _, to := range tracer.States() {
			all = append(all, tracer.Transition{Old: from, New: to})
		}
	}
	return all
}

func TestTextWidth(t *testing.T) {
	texts := map[string][]byte{"table": AppendTable(nil)}
	for _, s := range tracer.States() {
		texts[s.String()] = findState(s).AppendText(nil)
	}
	for _, tr := range everyPair() {
		texts[tr.String()] = findTransition(tr).AppendText(nil)
	}
	for name, text := range texts {
		qt.Assert(t, qt.IsTrue(strings.HasSuffix(string(text), "\n")))
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSuffix(line, "\n")
			qt.Check(t, qt.IsTrue(utf8.RuneCountInString(line) <= prose.Width), qt.Commentf("%s: %s", name, line))
			qt.Check(t, qt.Equals(strings.TrimRight(line, " \t"), line), qt.Commentf("%s", name))
			qt.Check(t, qt.IsFalse(strings.Contains(line, "\t")), qt.Commentf("%s: %s", name, line))
		}
	}
}

func TestTableHasOneLineForEach(t *testing.T) {
	table := string(AppendTable(nil))
	for _, s := range tracer.States() {
		qt.Check(t, qt.Equals(strings.Count("\n"+table, "\n"+s.String()+" "), 1), qt.Commentf("%s", s))
	}
	for _, tr := range tracer.LegalTransitions() {
		qt.Check(t, qt.Equals(strings.Count(table, "\n"+tr.String()+" "), 1), qt.Commentf("%s", tr))
	}
	const titlesAndBlank = 3
	qt.Check(t, qt.Equals(strings.Count(table, "\n"), len(tracer.States())+len(tracer.LegalTransitions())+titlesAndBlank))
}

func TestLookupSpellings(t *testing.T) {
	for _, arg := range []string{"TIME_WAIT", "time-wait", "TimeWait", " TIME_WAIT "} {
		got, err := Lookup(arg)
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(cmp.Diff(findState(tracer.StateTimeWait), got), ""), qt.Commentf(arg))
	}
	want := findTransition(tracer.Transition{Old: tracer.StateFinWait2, New: tracer.StateTimeWait})
	for _, arg := range []string{
		"FIN_WAIT2→TIME_WAIT", "FIN_WAIT2:TIME_WAIT", "FIN_WAIT2->TIME_WAIT",
		"fin-wait-2->time-wait", "FIN-WAIT-2 → TIME-WAIT", "fin_wait2 -> time_wait",
	} {
		got, err := Lookup(arg)
		qt.Assert(t, qt.IsNil(err), qt.Commentf(arg))
		qt.Check(t, qt.Equals(cmp.Diff(want, got), ""), qt.Commentf(arg))
	}
	got, err := Lookup("ESTAB:UNCONN")
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(got.(*Transition).OldState+got.(*Transition).NewState, "ESTABLISHEDCLOSE"))
}

func TestLookupUnknownNamesTheStates(t *testing.T) {
	for _, arg := range []string{"FOO", "", "TIME_WAIT:FOO", "FOO→CLOSE", "->", "A:B:C"} {
		_, err := Lookup(arg)
		qt.Assert(t, qt.IsNotNil(err), qt.Commentf(arg))
		for _, s := range tracer.States() {
			qt.Check(t, qt.StringContains(err.Error(), s.String()), qt.Commentf(arg))
		}
	}
}

func TestImpossibleTransition(t *testing.T) {
	got, err := Lookup("CLOSING:LISTEN")
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(string(got.AppendText(nil)), `CLOSING→LISTEN does not happen in Linux.

From CLOSING Linux goes:
  CLOSING→TIME_WAIT       our FIN was acknowledged too: TIME_WAIT begins
  CLOSING→CLOSE           ended without TIME_WAIT: RST, timeout or limit
`))
	for _, tr := range everyPair() {
		if tr.Old == tr.New {
			qt.Check(t, qt.HasLen(findTransition(tr).Notes, 1), qt.Commentf("%s", tr))
		}
	}
}

func TestJSON(t *testing.T) {
	for _, entry := range All() {
		line, err := entry.AppendJSON([]byte("before"))
		qt.Assert(t, qt.IsNil(err))
		text := strings.TrimPrefix(string(line), "before")
		qt.Check(t, qt.Equals(strings.IndexByte(text, '\n'), len(text)-1))
		for _, raw := range []string{`\n`, `\t`, "  "} {
			qt.Check(t, qt.IsFalse(strings.Contains(text, raw)), qt.Commentf("%s", text))
		}

		var back Entry = new(Transition)
		if _, ok := entry.(*State); ok {
			back = new(State)
		}
		dec := json.NewDecoder(strings.NewReader(text))
		dec.DisallowUnknownFields()
		qt.Assert(t, qt.IsNil(dec.Decode(back)))
		qt.Check(t, qt.Equals(cmp.Diff(entry, back, cmpopts.EquateEmpty()), ""))
	}
}

func TestJSONKeys(t *testing.T) {
	keys := func(arg string) []string {
		entry, err := Lookup(arg)
		qt.Assert(t, qt.IsNil(err))
		line, err := entry.AppendJSON(nil)
		qt.Assert(t, qt.IsNil(err))
		var m map[string]any
		qt.Assert(t, qt.IsNil(json.Unmarshal(line, &m)))
		var names []string
		for name := range m {
			names = append(names, name)
		}
		return names
	}
	qt.Check(t, qt.ContentEquals(keys("TIME_WAIT"), []string{
		"state", "summary", "meaning", "side", "from", "next", "bounds", "pile_up", "do", "does_not_help",
	}))
	qt.Check(t, qt.ContentEquals(keys("FIN_WAIT2:TIME_WAIT"), []string{
		"old_state", "new_state", "happens", "summary", "what", "who", "next", "notes",
	}))
	qt.Check(t, qt.ContentEquals(keys("CLOSING:LISTEN"), []string{
		"old_state", "new_state", "happens", "summary", "next",
	}))
}

// The facts that people get wrong most often must not change by an edit.
func TestFacts(t *testing.T) {
	tests := []struct{ arg, want string }{
		{"TIME_WAIT", "TCP_TIMEWAIT_LEN = 60 s"},
		{"TIME_WAIT", "tcp_tw_recycle: removed in 4.12"},
		{"TIME_WAIT", "tcp_fin_timeout: it bounds orphans in FIN_WAIT2"},
		{"TIME_WAIT", "net.ipv4.tcp_tw_reuse = 2, loopback only (0 before 4.19)"},
		{"FIN_WAIT2", "net.ipv4.tcp_fin_timeout = 60 s"},
		{"CLOSE_WAIT", "no timer"},
		{"SYN_SENT", "connect fails after 131 s"},
		{"SYN_SENT", "ETIMEDOUT after 127 s"},
		{"NEW_SYN_RECV", "63 s"},
		{"LAST_ACK", "net.ipv4.tcp_orphan_retries = 0, which stands for 8 retries"},
		{"ESTABLISHED", "net.ipv4.tcp_keepalive_time = 7200 s"},
		{"LISTEN", "4096 connections"},
		{"FIN_WAIT2:TIME_WAIT", "The kernel's tracepoint never says this."},
		{"LISTEN:SYN_RECV", "does not happen in Linux"},
		{"LISTEN:SYN_RECV", "The listener has not left LISTEN"},
	}
	for _, tt := range tests {
		entry, err := Lookup(tt.arg)
		qt.Assert(t, qt.IsNil(err))
		text := prose.Line(string(entry.AppendText(nil)))
		qt.Check(t, qt.StringContains(text, tt.want), qt.Commentf(tt.arg))
	}
}
