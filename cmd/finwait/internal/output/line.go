package output

import (
	"slices"

	"github.com/finwait/finwait/tracer"
)

// syntax is what json, csv and logfmt do in different ways. What is known of the
// fields is in the fields.
type syntax struct {
	// open begins a line, and end stands for the last field's separator.
	open, end string
	// named has the names of all fields in a line before the first.
	named bool
	// column returns how a field is written.
	column func(f *field) column
}

// column is how a format writes a field.
type column struct {
	before, after label  // what stands around the value; after ends with the separator
	absent        string // what stands for a value that is not known
	append        appender
}

// label is a short text. All of its room is moved, which takes a few instructions;
// to move just so many bytes would take a call.
type label struct {
	text [24]byte
	size int
}

func newLabel(text string) label {
	l := label{size: len(text)}
	if copy(l.text[:], text) < len(text) {
		panic("no room for " + text)
	}
	return l
}

func (l *label) append(dst []byte) []byte {
	start := len(dst)
	dst = slices.Grow(dst, len(l.text))[:start+len(l.text)]
	*(*[len(l.text)]byte)(dst[start:]) = l.text
	return dst[:start+l.size]
}

// escaped returns what appends a field of text through quote.
func escaped(f *field, quote func(dst, s []byte) []byte) appender {
	var scratch []byte
	return func(dst []byte, r *record) []byte {
		scratch = f.append(scratch[:0], r)
		if len(scratch) == 0 {
			return dst
		}
		return quote(dst, scratch)
	}
}

// lineEncoder writes records as lines of fields.
type lineEncoder struct {
	syntax               *syntax
	fields               *fieldSet
	before, owner, after []column
	owners               ownerCache
	cgroup               func(id uint64) (tracer.Cgroup, bool)
	logged               *Logged

	record record       // the one to write
	event  tracer.Event // the event of a connection
}

func newLines(s *syntax, fields *fieldSet, opts Options) *lineEncoder {
	return &lineEncoder{
		syntax: s, fields: fields, cgroup: opts.Cgroup, logged: opts.Logged,
		before: s.columns(fields.before), owner: s.columns(fields.owner), after: s.columns(fields.after),
		record: record{sampling: opts.SamplingRatio},
	}
}

func (s *syntax) columns(fields []*field) []column {
	columns := make([]column, len(fields))
	for i, f := range fields {
		columns[i] = s.column(f)
	}
	return columns
}

func (e *lineEncoder) AppendHeader(dst []byte) []byte {
	if !e.syntax.named {
		return dst
	}
	for _, fields := range [][]*field{e.fields.before, e.fields.owner, e.fields.after} {
		for _, f := range fields {
			dst = append(append(dst, f.name...), ',')
		}
	}
	return e.end(dst)
}

func (e *lineEncoder) AppendEvent(dst []byte, ev *tracer.Event) []byte {
	e.record.Event = ev
	return e.appendLine(dst)
}

func (e *lineEncoder) AppendConn(dst []byte, c *tracer.Conn) []byte {
	e.event = connEvent(c)
	e.record.Event, e.record.conn = &e.event, c
	return e.appendLine(dst)
}

func (e *lineEncoder) appendStuck(dst []byte, s *stuckEvent) []byte {
	e.record.Event, e.record.stuck = &s.Event, s
	return e.appendLine(dst)
}

// appendLine appends the record.
func (e *lineEncoder) appendLine(dst []byte) []byte {
	if e.logged != nil {
		e.record.sampling = e.logged.SamplingRatio
	}
	dst = append(dst, e.syntax.open...)
	dst = e.appendColumns(dst, e.before)
	dst = append(dst, e.ownerLine()...)
	dst = e.appendColumns(dst, e.after)
	return e.end(dst)
}

// end puts the end of the line in the place of the last separator.
func (e *lineEncoder) end(dst []byte) []byte { return append(dst[:len(dst)-1], e.syntax.end...) }

// appendColumns appends the name before the value, and takes it back where
// nothing comes after it: that is quicker than to ask first.
func (e *lineEncoder) appendColumns(dst []byte, columns []column) []byte {
	for i := range columns {
		c := &columns[i]
		start := len(dst)
		dst = c.before.append(dst)
		value := len(dst)
		dst = c.append(dst, &e.record)
		if len(dst) == value {
			dst = append(dst[:start], c.absent...)
		} else {
			dst = c.after.append(dst)
		}
	}
	return dst
}
