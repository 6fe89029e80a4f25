// Package output writes transitions for people and for programs: as a table,
// JSON lines, CSV or logfmt.
//
// An encoder appends to a buffer that the caller owns, so a stream of events
// costs no allocation. Whatever a process can choose, its name above all or the
// name of its cgroup, is escaped: no format lets a control character or a
// bidirectional override through.
package output

import (
	"fmt"
	"strings"
	"time"

	"github.com/finwait/finwait/tracer"
)

// Formats are the formats that New knows.
var Formats = []string{"table", "json", "csv", "logfmt"}

// Encoder appends events in one format. It remembers how it has written what
// comes again, so one goroutine at a time may use it.
type Encoder interface {
	// AppendHeader appends what comes before the first event, with its line
	// end: the column names of table and csv, nothing for the others.
	AppendHeader(dst []byte) []byte
	// AppendEvent appends one event as one line, with its line end.
	AppendEvent(dst []byte, ev *tracer.Event) []byte
}

// Options are the choices that formats have.
type Options struct {
	// Cgroup says what is known of the cgroup of that id, as
	// [tracer.Cgroups.Lookup] does. Every format but table has the container
	// and the pod from it. It is asked at every event whose owner's cgroup is
	// known, as long as it does not answer ok: such an answer is remembered
	// with the owner, and must stay true. nil means that nothing is known.
	Cgroup func(id uint64) (cg tracer.Cgroup, ok bool)
	// SamplingRatio is the share of connections of which there are records, if it
	// is above 0 and below 1. Every format but table has it in each record.
	SamplingRatio float64
	// Logged is for records that were read from a log: what else the one says
	// that is appended next. Cgroup and SamplingRatio are then of no effect. nil
	// for others.
	Logged *Logged

	// The others are for table.

	// Color tints the names of states with terminal escapes.
	Color bool
	// Width is the number of columns of the terminal. 0 and anything below 80
	// mean 80. Wider rows show more of the owner; from 112 on nothing of a row
	// of IPv4 is shortened and times have milliseconds.
	Width int
	// Location is the time zone of the table's times. nil means time.Local.
	Location *time.Location
}

// Logged is what a record in a log says beyond the event or connection. What it
// does not say is empty or 0.
type Logged struct {
	ContainerID, PodUID string
	SamplingRatio       float64
}

// New returns the encoder of that format, one of Formats.
func New(format string, opts Options) (Encoder, error) {
	if format == "table" {
		return newTable(opts), nil
	}
	s, err := syntaxOf(format)
	if err != nil {
		return nil, err
	}
	return newLines(s, &eventFields, opts), nil
}

// ConnEncoder is an Encoder of connections; one goroutine at a time may use it.
type ConnEncoder interface {
	// AppendHeader is that of Encoder.
	AppendHeader(dst []byte) []byte
	// AppendConn appends one connection: as one line with its line end, or, as
	// a table, as two lines and more where its walk is long.
	AppendConn(dst []byte, c *tracer.Conn) []byte
}

// NewConns returns the encoder of connections of that format, one of Formats.
func NewConns(format string, opts Options) (ConnEncoder, error) {
	if format == "table" {
		return newConnTable(opts), nil
	}
	s, err := syntaxOf(format)
	if err != nil {
		return nil, err
	}
	return newLines(s, &connFields, opts), nil
}

// syntaxOf returns the syntax of that format, one of Formats but for table.
func syntaxOf(format string) (*syntax, error) {
	switch format {
	case "json":
		return &jsonSyntax, nil
	case "csv":
		return &csvSyntax, nil
	case "logfmt":
		return &logfmtSyntax, nil
	}
	return nil, fmt.Errorf("unknown format %q (want one of %s)", format, strings.Join(Formats, ", "))
}

// hasRemote says whether ev has a remote address. A listener has none.
func hasRemote(ev *tracer.Event) bool {
	addr := ev.Remote.Addr()
	return addr.IsValid() && !addr.IsUnspecified()
}

func hasOwner(ev *tracer.Event) bool { return ev.Owner.Origin != tracer.OriginUnknown }
