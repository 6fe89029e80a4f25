package observe

import (
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

// Handshake has the times in SYN_SENT of those connections alone that came to be, whether
// transitions are added or records of connections.
func TestHandshake(t *testing.T) {
	const established, failed, unknown = 3 * time.Second, 23 * time.Second, 0
	add := map[string]func(*Flows, tracer.State, time.Duration){
		"events": func(f *Flows, to tracer.State, d time.Duration) {
			f.AddEvent(&tracer.Event{
				Transition: tracer.Transition{Old: tracer.StateSynSent, New: to}, Role: tracer.RoleClient, Dwell: d, DwellKnown: d != unknown,
			}, 0)
		},
		"connections": func(f *Flows, to tracer.State, d time.Duration) {
			walk := []tracer.Visit{{State: tracer.StateSynSent, Dwell: d, DwellKnown: d != unknown}}
			if to == tracer.StateEstablished {
				walk = append(walk, tracer.Visit{State: to, Dwell: time.Minute, DwellKnown: true})
			}
			c := &tracer.Conn{Role: tracer.RoleClient}
			c.SetWalk(walk...)
			f.AddConn(c, 0)
		},
	}
	for name, add := range add {
		t.Run(name, func(t *testing.T) {
			f := NewFlows(SourceLog)
			add(f, tracer.StateEstablished, established)
			add(f, tracer.StateEstablished, unknown)
			add(f, tracer.StateClose, failed)
			flows := f.Traffic().Flows
			qt.Assert(t, qt.HasLen(flows, 1))
			qt.Check(t, qt.Equals(flows[0].Opened, 2))
			qt.Check(t, qt.Equals(flows[0].SynSent.Count(), 2))
			qt.Check(t, qt.Equals(flows[0].Handshake.Count(), 1))
			qt.Check(t, qt.Equals(flows[0].Handshake.Unknown, 1))
			qt.Check(t, qt.Equals(flows[0].Handshake.Max, established))
		})
	}
}
