package main

import (
	"maps"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

func TestParseOver(t *testing.T) {
	all := func(d time.Duration) map[tracer.State]time.Duration {
		over := tracer.DefaultStuckOver()
		for state := range over {
			over[state] = d
		}
		return over
	}
	but := func(over map[tracer.State]time.Duration, state tracer.State, d time.Duration) map[tracer.State]time.Duration {
		over = maps.Clone(over)
		over[state] = d
		return over
	}
	for _, tt := range []struct {
		words []string
		want  map[tracer.State]time.Duration
	}{
		{nil, nil},
		{[]string{"90s"}, all(90 * time.Second)},
		{[]string{"CLOSE_WAIT:5m"}, map[tracer.State]time.Duration{tracer.StateCloseWait: 5 * time.Minute}},
		{[]string{"close-wait:5m", "ESTAB:1h"}, map[tracer.State]time.Duration{tracer.StateCloseWait: 5 * time.Minute, tracer.StateEstablished: time.Hour}},
		{[]string{"10s", "CLOSE_WAIT:5m"}, but(all(10*time.Second), tracer.StateCloseWait, 5*time.Minute)},
		{[]string{"CLOSE_WAIT:5m", "10s"}, but(all(10*time.Second), tracer.StateCloseWait, 5*time.Minute)},
		{[]string{"TIME_WAIT:61s", "10s"}, but(all(10*time.Second), tracer.StateTimeWait, 61*time.Second)},
	} {
		got, err := parseOver(tt.words)
		qt.Check(t, qt.IsNil(err))
		qt.Check(t, qt.DeepEquals(got, tt.want), qt.Commentf("%q", tt.words))
	}
}

func TestMaybeStuck(t *testing.T) {
	qt.Check(t, qt.Equals(maybeStuck(&tracer.StateCounts{}), ""))
	counts := tracer.StateCounts{tracer.StateFinWait1: 2, tracer.StateLastAck: 1}
	qt.Check(t, qt.Matches(maybeStuck(&counts), "finwait: others may be stuck, 2 in FIN_WAIT1, 1 in LAST_ACK: .*\n"))
}
