package output

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/finwait/finwait/tracer"
)

// StuckEncoder appends stuck sockets, or the processes that own them, in one
// format. What is in a record of a transition too has the same name and form.
type StuckEncoder struct {
	format    string
	byProcess bool
	color     bool
	room      int // columns that a row of the table may take
	cgroups   cgroupLookup
}

// NewStuck returns the encoder of that format, one of Formats.
func NewStuck(format string, byProcess bool, opts Options) (*StuckEncoder, error) {
	for _, known := range Formats {
		if format == known {
			return &StuckEncoder{format, byProcess, opts.Color, max(opts.Width, defaultWidth) - 1, opts.Cgroup}, nil
		}
	}
	return nil, fmt.Errorf("unknown format %q (want one of %s)", format, strings.Join(Formats, ", "))
}

// AppendHeader appends the column names of table and csv, nothing for the others.
func (e *StuckEncoder) AppendHeader(dst []byte) []byte {
	switch {
	case e.format == "csv":
		for i, f := range e.fields() {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(dst, f.name...)
		}
		return append(dst, '\n')
	case e.format != "table":
		return dst
	case e.byProcess:
		return append(dst, "SOCKETS STATE        OLDEST OWNER\n"...)
	}
	return append(dst, "   AGE STATE        LOCAL           REMOTE          OWNER\n"...)
}

// AppendStuck appends a line for each socket, or for each process and state.
func (e *StuckEncoder) AppendStuck(dst []byte, s *tracer.Stuck) []byte {
	if e.byProcess {
		for _, g := range s.ByProcess() {
			dst = e.append(dst, groupRecord(s.Time, &g))
		}
		return dst
	}
	for i := range s.Sockets {
		dst = e.append(dst, e.socketRecord(s.Time, &s.Sockets[i]))
	}
	return dst
}

func (e *StuckEncoder) append(dst []byte, r *stuckRecord) []byte {
	switch e.format {
	case "json":
		return r.appendJSON(dst, e.fields())
	case "csv":
		return r.appendCSV(dst, e.fields())
	case "logfmt":
		return r.appendLogfmt(dst, e.fields())
	}
	if e.byProcess {
		return e.appendGroupRow(dst, r)
	}
	return e.appendSocketRow(dst, r)
}

// stuckRecord is one line. As an event it is one out of the state that it is in,
// and its dwell is the age.
type stuckRecord struct {
	record
	atLeast bool
	sockets int
}

func (e *StuckEncoder) socketRecord(at time.Time, s *tracer.StuckSocket) *stuckRecord {
	return &stuckRecord{atLeast: s.AtLeast, record: e.cgroups.record(&tracer.Event{
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
	})}
}

func groupRecord(at time.Time, g *tracer.StuckGroup) *stuckRecord {
	return &stuckRecord{atLeast: g.OldestAtLeast, sockets: g.Sockets, record: record{Event: &tracer.Event{
		Time:       at,
		Transition: tracer.Transition{Old: g.State},
		Dwell:      g.Oldest,
		DwellKnown: true,
		Owner:      g.Owner,
	}}}
}

// stuckField is a field of the record that json, csv and logfmt share: one that
// a transition has too, or one of its own, a number or true or false.
type stuckField struct {
	name  string
	field field
	own   func(dst []byte, r *stuckRecord) []byte
}

func shared(f field) stuckField { return stuckField{name: fieldNames[f], field: f} }

func appendAtLeast(dst []byte, r *stuckRecord) []byte { return strconv.AppendBool(dst, r.atLeast) }

func appendSockets(dst []byte, r *stuckRecord) []byte {
	return strconv.AppendInt(dst, int64(r.sockets), 10)
}

var socketFields = []stuckField{
	shared(fieldTime),
	{name: "state", field: fieldOldState},
	{name: "age_ns", field: fieldDwell},
	{name: "age_at_least", own: appendAtLeast},
	shared(fieldCookie),
	shared(fieldNetns),
	shared(fieldFamily),
	shared(fieldLocalAddr),
	shared(fieldLocalPort),
	shared(fieldRemoteAddr),
	shared(fieldRemotePort),
	shared(fieldPID),
	shared(fieldComm),
	shared(fieldUID),
	shared(fieldCgroupID),
	shared(fieldContainerID),
	shared(fieldPodUID),
	shared(fieldOwner),
	shared(fieldRole),
}

var groupFields = []stuckField{
	shared(fieldTime),
	{name: "state", field: fieldOldState},
	{name: "sockets", own: appendSockets},
	{name: "oldest_ns", field: fieldDwell},
	{name: "oldest_at_least", own: appendAtLeast},
	shared(fieldPID),
	shared(fieldComm),
	shared(fieldUID),
}

func (e *StuckEncoder) fields() []stuckField {
	if e.byProcess {
		return groupFields
	}
	return socketFields
}

func (r *stuckRecord) known(f *stuckField) bool { return f.own != nil || f.field.known(&r.record) }

func (r *stuckRecord) appendJSON(dst []byte, fields []stuckField) []byte {
	sep := byte('{')
	for i := range fields {
		f := &fields[i]
		if !r.known(f) {
			continue
		}
		dst = append(dst, sep, '"')
		dst = append(dst, f.name...)
		dst = append(dst, '"', ':')
		if f.own != nil {
			dst = f.own(dst, r)
		} else {
			dst = appendJSONValue(dst, f.field, &r.record)
		}
		sep = ','
	}
	return append(dst, '}', '\n')
}

func (r *stuckRecord) appendCSV(dst []byte, fields []stuckField) []byte {
	for i := range fields {
		f := &fields[i]
		if i > 0 {
			dst = append(dst, ',')
		}
		switch {
		case f.own != nil:
			dst = f.own(dst, r)
		case r.known(f):
			dst = appendCSVValue(dst, f.field, &r.record)
		}
	}
	return append(dst, '\n')
}

func (r *stuckRecord) appendLogfmt(dst []byte, fields []stuckField) []byte {
	start := len(dst)
	for i := range fields {
		f := &fields[i]
		if !r.known(f) {
			continue
		}
		if len(dst) > start {
			dst = append(dst, ' ')
		}
		dst = append(dst, f.name...)
		dst = append(dst, '=')
		if f.own != nil {
			dst = f.own(dst, r)
		} else {
			dst = appendLogfmtValue(dst, f.field, &r.record)
		}
	}
	return append(dst, '\n')
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

func (e *StuckEncoder) appendSocketRow(dst []byte, r *stuckRecord) []byte {
	line := row{buf: dst}
	line.age(r)
	line.to(stuckState)
	line.state(r.Old.String(), stateTint(r.Old), e.color)
	line.to(stuckLocal)
	line.addrPort(r.Local)
	line.to(stuckRemote)
	if hasRemote(r.Event) {
		line.addrPort(r.Remote)
	}
	return e.appendOwner(&line, stuckOwner, r)
}

func (e *StuckEncoder) appendGroupRow(dst []byte, r *stuckRecord) []byte {
	line := row{buf: dst}
	line.right(groupCountWidth, appendSockets(nil, r))
	line.to(groupState)
	line.state(r.Old.String(), stateTint(r.Old), e.color)
	line.to(groupAge)
	line.age(r)
	return e.appendOwner(&line, groupOwner, r)
}

// appendOwner ends the row with its owner, a dash if it is not known. A row that
// is too long loses the pid and then the end of the process name, but for a row
// of IPv6 that leaves no room for either.
func (e *StuckEncoder) appendOwner(line *row, stop int, r *stuckRecord) []byte {
	var scratch [128]byte
	owner, commWidth := appendOwner(scratch[:0], r.Event)
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
func (r *row) age(record *stuckRecord) {
	var scratch [24]byte
	text := scratch[:0]
	if record.atLeast {
		text = append(text, "≥"...)
	}
	r.right(stuckAgeWidth, AppendDuration(text, record.Dwell))
}
