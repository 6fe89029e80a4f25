package main

import (
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

// Whoever asks for the time in a state asks for transitions out of it.
func TestOnlyLeaving(t *testing.T) {
	const closeWait, lastAck, closed = tracer.StateCloseWait, tracer.StateLastAck, tracer.StateClose
	ended := tracer.Transition{Old: closeWait, New: lastAck}
	broken := tracer.Transition{Old: closeWait, New: closed}
	begun := tracer.Transition{Old: closed, New: tracer.StateListen}
	for _, test := range []struct {
		states            []tracer.State
		transitions, want []tracer.Transition
	}{
		{nil, nil, nil},
		{[]tracer.State{closeWait}, nil, []tracer.Transition{ended, broken}},
		{[]tracer.State{closeWait}, []tracer.Transition{begun, ended}, []tracer.Transition{ended}},
		{nil, []tracer.Transition{begun, broken}, []tracer.Transition{broken}},
	} {
		got, err := onlyLeaving(tracer.Filter{States: test.states, Transitions: test.transitions})
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.HasLen(got.States, 0))
		qt.Check(t, qt.DeepEquals(got.Transitions, test.want))
	}
	for _, nothing := range []tracer.Filter{
		{States: []tracer.State{closed}},
		{Transitions: []tracer.Transition{begun}},
		{States: []tracer.State{lastAck}, Transitions: []tracer.Transition{ended}},
	} {
		_, err := onlyLeaving(nothing)
		qt.Check(t, qt.ErrorMatches(err, "nothing to measure: .*"))
	}
}
