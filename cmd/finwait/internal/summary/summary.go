// Package summary sums up what was recorded: transitions and connections, each for
// themselves, since a log may have both of one connection.
//
// Memory is bounded, whatever the records say: states, reasons and ports are few,
// times go into histograms, and of process names the frequent ones are kept.
package summary

import (
	"slices"
	"time"

	"github.com/finwait/finwait/tracer"
)

// numStates is one more than the largest state.
const numStates = int(tracer.StateNewSynRecv) + 1

// Report is the sum of records.
type Report struct {
	// First and Last are the times of the earliest and the latest record; the zero
	// time if there is none.
	First, Last time.Time
	// Files is how many were read, Damaged how many of their lines are no records,
	// and Broken how many files could not be read, or not to their end.
	Files           int
	Damaged, Broken uint64
	// Transitions and Conns are about records of one kind alone.
	Transitions, Conns Kind

	matrix        [numStates][numStates]uint64
	timeWaitEnded map[tracer.Reason]uint64
}

// Kind is the sum of the records of one kind.
type Kind struct {
	Records  uint64
	Sampling Sampling
	// Services counts records by the local port of servers, Remotes by the remote
	// port of clients. Unplaced are the records that are in neither: which side
	// the socket is on is not known, or the port.
	Services, Remotes Top[uint16]
	Unplaced          uint64
	// Owners counts records by the name of the owner.
	Owners Owners

	dwells [numStates]*Dwell
	ends   map[End]uint64
}

// End is how a socket or a connection has ended.
type End struct {
	Reason tracer.Reason
	Side   tracer.Side
}

// New returns an empty report.
func New() *Report {
	return &Report{Transitions: newKind(), Conns: newKind(), timeWaitEnded: map[tracer.Reason]uint64{}}
}

func newKind() Kind {
	const everyPort = 1 << 16
	return Kind{
		Services: newTop[uint16](everyPort), Remotes: newTop[uint16](everyPort), Owners: newOwners(maxOwners),
		ends: map[End]uint64{},
	}
}

// AddEvent adds a transition. ratio is the share of connections that were
// recorded, 0 if that is all.
func (r *Report) AddEvent(ev *tracer.Event, ratio float64) {
	r.span(ev.Time)
	k := &r.Transitions
	k.add(ev.Role, ev.Local.Port(), ev.Remote.Port(), &ev.Owner, ratio)
	if int(ev.Old) < numStates && int(ev.New) < numStates {
		r.matrix[ev.Old][ev.New]++
	}
	if ev.Old != tracer.StateClose { // who leaves it was not there
		k.dwell(ev.Old, ev.Dwell, ev.DwellKnown)
	}
	if ev.New == tracer.StateClose {
		k.ends[End{ev.Reason, ev.Side}]++
	}
}

// AddConn adds a connection.
func (r *Report) AddConn(c *tracer.Conn, ratio float64) {
	r.span(c.End)
	k := &r.Conns
	k.add(c.Role, c.Local.Port(), c.Remote.Port(), &c.Owner, ratio)
	for _, v := range c.Walk() {
		k.dwell(v.State, v.Dwell, v.DwellKnown)
	}
	k.ends[End{c.Reason, c.Side}]++
	if c.TimeWaitReason != tracer.ReasonUnknown {
		r.timeWaitEnded[c.TimeWaitReason]++
	}
}

func (r *Report) span(t time.Time) {
	if r.First.IsZero() || t.Before(r.First) {
		r.First = t
	}
	if t.After(r.Last) {
		r.Last = t
	}
}

// Count returns how many records are of that transition.
func (r *Report) Count(t tracer.Transition) uint64 {
	if int(t.Old) >= numStates || int(t.New) >= numStates {
		return 0
	}
	return r.matrix[t.Old][t.New]
}

// Happened returns the transitions of which there are records: the legal ones in
// the order of a connection's life, and then what else a log may say.
func (r *Report) Happened() (all []tracer.Transition) {
	legal := tracer.LegalTransitions()
	for _, t := range legal {
		if r.Count(t) > 0 {
			all = append(all, t)
		}
	}
	for _, from := range tracer.States() {
		for _, to := range tracer.States() {
			t := tracer.Transition{Old: from, New: to}
			if r.Count(t) > 0 && !slices.Contains(legal, t) {
				all = append(all, t)
			}
		}
	}
	return all
}

// TimeWaitEnded returns how many connections have left TIME_WAIT for that reason.
func (r *Report) TimeWaitEnded(reason tracer.Reason) uint64 { return r.timeWaitEnded[reason] }

func (k *Kind) add(role tracer.Role, local, remote uint16, owner *tracer.Owner, ratio float64) {
	k.Records++
	k.Sampling.add(ratio)
	switch {
	case role == tracer.RoleServer && local != 0:
		k.Services.add(local)
	case role == tracer.RoleClient && remote != 0:
		k.Remotes.add(remote)
	default:
		k.Unplaced++
	}
	k.Owners.add(owner)
}

func (k *Kind) dwell(s tracer.State, d time.Duration, known bool) {
	if int(s) >= numStates {
		return
	}
	if k.dwells[s] == nil {
		k.dwells[s] = &Dwell{}
	}
	if known {
		k.dwells[s].add(d)
	} else {
		k.dwells[s].Unknown++
	}
}

// Dwell returns the times in that state, nil if no record is about them.
func (k *Kind) Dwell(s tracer.State) *Dwell {
	if int(s) >= numStates {
		return nil
	}
	return k.dwells[s]
}

// Ended returns how many have ended that way.
func (k *Kind) Ended(way End) uint64 { return k.ends[way] }

// Ends returns the reasons for which something has ended, in the order of their
// numbers.
func (k *Kind) Ends() (reasons []tracer.Reason) {
	for _, reason := range tracer.Reasons() {
		for _, side := range Sides {
			if k.ends[End{reason, side}] > 0 {
				reasons = append(reasons, reason)
				break
			}
		}
	}
	return reasons
}

// Sides are those that there can be in an End.
var Sides = []tracer.Side{tracer.SideLocal, tracer.SidePeer, tracer.SideBoth, tracer.SideUnknown}

// maxRatios is how many ratios are told apart.
const maxRatios = 8

// Sampling says which share of connections was recorded.
type Sampling struct {
	// All is the number of records that say nothing: every connection was
	// recorded, or a version wrote them that did not say.
	All uint64
	// Ratios is the number of records by the ratio that they say, of the first
	// few ratios. Others are those of more.
	Ratios map[float64]uint64
	Others uint64
	// Estimate is how many records there would have been of all connections.
	Estimate float64
}

func (s *Sampling) add(ratio float64) {
	if ratio <= 0 || ratio >= 1 {
		s.All++
		s.Estimate++
		return
	}
	s.Estimate += 1 / ratio
	if s.Ratios == nil {
		s.Ratios = map[float64]uint64{}
	}
	if _, known := s.Ratios[ratio]; !known && len(s.Ratios) >= maxRatios {
		s.Others++
		return
	}
	s.Ratios[ratio]++
}
