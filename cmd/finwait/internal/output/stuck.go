package output

import (
	"math"
	"strconv"
	"time"

	"github.com/finwait/finwait/tracer"
)

// StuckEncoder appends stuck sockets, or the processes that own them, in one
// format. What is in a record of a transition too has the same name and form.
// One goroutine at a time may use it.
type StuckEncoder struct {
	lines     *lineEncoder // nil for table
	byProcess bool
	color     bool
	room      int // columns that a row of the table may take
}

// NewStuck returns the encoder of that format, one of Formats.
func NewStuck(format string, byProcess bool, opts Options) (*StuckEncoder, error) {
	e := &StuckEncoder{byProcess: byProcess, color: opts.Color, room: max(opts.Width, defaultWidth) - 1}
	if format == "table" {
		return e, nil
	}
	s, err := syntaxOf(format)
	if err != nil {
		return nil, err
	}
	fields := &socketFields
	if byProcess {
		fields, opts.Cgroup = &groupFields, nil // no field of theirs needs it
	}
	e.lines = newLines(s, fields, opts)
	return e, nil
}

// AppendHeader appends the column names of table and csv, nothing for the others.
func (e *StuckEncoder) AppendHeader(dst []byte) []byte {
	switch {
	case e.lines != nil:
		return e.lines.AppendHeader(dst)
	case e.byProcess:
		return append(dst, "SOCKETS STATE        OLDEST OWNER\n"...)
	}
	return append(dst, "   AGE STATE        LOCAL           REMOTE          OWNER\n"...)
}

// AppendStuck appends a line for each socket, or for each process and state.
func (e *StuckEncoder) AppendStuck(dst []byte, s *tracer.Stuck) []byte {
	if e.byProcess {
		for _, g := range s.ByProcess() {
			dst = e.append(dst, groupEvent(s.Time, &g))
		}
		return dst
	}
	for i := range s.Sockets {
		dst = e.append(dst, socketEvent(s.Time, &s.Sockets[i]))
	}
	return dst
}

func (e *StuckEncoder) append(dst []byte, s *stuckEvent) []byte {
	switch {
	case e.lines != nil:
		return e.lines.appendStuck(dst, s)
	case e.byProcess:
		return e.appendGroupRow(dst, s)
	}
	return e.appendSocketRow(dst, s)
}

// stuckEvent is one line. As an event it is one out of the state that it is in,
// and its dwell is the age.
type stuckEvent struct {
	tracer.Event
	atLeast bool
	sockets int
}

func socketEvent(at time.Time, s *tracer.StuckSocket) *stuckEvent {
	return &stuckEvent{atLeast: s.AtLeast, Event: tracer.Event{
		Time:       at,
		Transition: tracer.Transition{Old: s.State},
		Dwell:      s.Age,
		DwellKnown: true,
		Cookie:     s.Cookie,
		Netns:      s.Netns,
		Family:     s.Family,
		Local:      s.Local,
		Remote:     s.Remote,
		Owner:      s.Owner,
		Role:       s.Role,
	}}
}

func groupEvent(at time.Time, g *tracer.StuckGroup) *stuckEvent {
	return &stuckEvent{atLeast: g.OldestAtLeast, sockets: g.Sockets, Event: tracer.Event{
		Time:       at,
		Transition: tracer.Transition{Old: g.State},
		Dwell:      g.Oldest,
		DwellKnown: true,
		Owner:      g.Owner,
	}}
}

var (
	fieldState         = renamed(fieldOldState, "state")
	fieldAge           = renamed(fieldDwell, "age_ns")
	fieldAgeAtLeast    = &field{"age_at_least", number, appendAtLeast}
	fieldOldest        = renamed(fieldDwell, "oldest_ns")
	fieldOldestAtLeast = renamed(fieldAgeAtLeast, "oldest_at_least")
	fieldSockets       = &field{"sockets", number, appendSockets}
)

func renamed(f *field, name string) *field { return &field{name, f.kind, f.append} }

func appendAtLeast(dst []byte, r *record) []byte { return strconv.AppendBool(dst, r.stuck.atLeast) }

func appendSockets(dst []byte, r *record) []byte {
	return strconv.AppendInt(dst, int64(r.stuck.sockets), 10)
}

var socketFields = fieldSet{
	before: []*field{
		fieldTime, fieldState, fieldAge, fieldAgeAtLeast, fieldCookie, fieldNetns, fieldFamily,
		fieldLocalAddr, fieldLocalPort, fieldRemoteAddr, fieldRemotePort,
	},
	owner: ownerFields,
	after: []*field{fieldRole},
}

var groupFields = fieldSet{
	before: []*field{fieldTime, fieldState, fieldSockets, fieldOldest, fieldOldestAtLeast},
	owner:  []*field{fieldPID, fieldComm, fieldUID},
}

// The stops of the table's columns. They and the owner are as in the table of
// transitions.
const (
	stuckAgeWidth = 1 + dwellWidth // with the sign of a lower bound
	stuckState    = 7
	stuckLocal    = 20
	stuckRemote   = 36
	stuckOwner    = 52

	groupCountWidth = 7
	groupState      = 8
	groupAge        = 21
	groupOwner      = 28
)

func (e *StuckEncoder) appendSocketRow(dst []byte, s *stuckEvent) []byte {
	line := row{buf: dst}
	line.age(s)
	line.to(stuckState)
	line.state(s.Old.String(), stateTint(s.Old), e.color)
	line.to(stuckLocal)
	line.addrPort(s.Local)
	line.to(stuckRemote)
	if hasRemote(&s.Event) {
		line.addrPort(s.Remote)
	}
	return e.appendOwner(&line, stuckOwner, s)
}

func (e *StuckEncoder) appendGroupRow(dst []byte, s *stuckEvent) []byte {
	line := row{buf: dst}
	line.right(groupCountWidth, strconv.AppendInt(nil, int64(s.sockets), 10))
	line.to(groupState)
	line.state(s.Old.String(), stateTint(s.Old), e.color)
	line.to(groupAge)
	line.age(s)
	return e.appendOwner(&line, groupOwner, s)
}

// appendOwner ends the row with its owner, a dash if it is not known. A row that
// is too long loses the pid and then the end of the process name, but for a row
// of IPv6 that leaves no room for either.
func (e *StuckEncoder) appendOwner(line *row, stop int, s *stuckEvent) []byte {
	var scratch [128]byte
	owner, commWidth := appendOwner(scratch[:0], &s.Event)
	line.to(stop)
	if len(owner) == 0 {
		line.text(censusUnknown)
		return append(line.buf, '\n')
	}
	room := e.room - line.col
	if room < minOwner {
		room = math.MaxInt
	}
	line.owner(owner, commWidth, room)
	return append(line.buf, '\n')
}

// age appends how long the socket is in its state, or has been at least.
func (r *row) age(s *stuckEvent) {
	var scratch [24]byte
	text := scratch[:0]
	if s.atLeast {
		text = append(text, "≥"...)
	}
	r.right(stuckAgeWidth, AppendDuration(text, s.Dwell))
}
