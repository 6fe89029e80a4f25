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
	"net/netip"
	"strings"
	"time"

	"github.com/finwait/finwait/tracer"
)

// Formats are the formats that New knows.
var Formats = []string{"table", "json", "csv", "logfmt"}

// Encoder appends events in one format. It holds nothing from one event to
// the next and may be used by several goroutines at once, if Options.Cgroup may.
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
	// [tracer.Cgroups.Lookup] does. Every format but table asks it once for an
	// event whose owner's cgroup is known, and has the container and the pod
	// from it. nil means that nothing is known.
	Cgroup func(id uint64) (cg tracer.Cgroup, ok bool)

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

// New returns the encoder of that format, one of Formats.
func New(format string, opts Options) (Encoder, error) {
	switch format {
	case "table":
		return newTable(opts), nil
	case "json":
		return jsonEncoder{opts.Cgroup}, nil
	case "csv":
		return csvEncoder{opts.Cgroup, eventFields}, nil
	case "logfmt":
		return logfmtEncoder{opts.Cgroup}, nil
	}
	return nil, errUnknownFormat(format)
}

// ConnEncoder is an Encoder of connections.
type ConnEncoder interface {
	// AppendHeader is that of Encoder.
	AppendHeader(dst []byte) []byte
	// AppendConn appends one connection: as one line with its line end, or, as
	// a table, as two lines and more where its walk is long.
	AppendConn(dst []byte, c *tracer.Conn) []byte
}

// NewConns returns the encoder of connections of that format, one of Formats.
func NewConns(format string, opts Options) (ConnEncoder, error) {
	switch format {
	case "table":
		return newConnTable(opts), nil
	case "json":
		return jsonEncoder{opts.Cgroup}, nil
	case "csv":
		return csvEncoder{opts.Cgroup, connFields}, nil
	case "logfmt":
		return logfmtEncoder{opts.Cgroup}, nil
	}
	return nil, errUnknownFormat(format)
}

func errUnknownFormat(format string) error {
	return fmt.Errorf("unknown format %q (want one of %s)", format, strings.Join(Formats, ", "))
}

// appendTime appends t as RFC 3339 in UTC with all nine digits of the
// nanoseconds, so that times sort as text. The time package is quickest with
// its own layout, which has none.
func appendTime(dst []byte, t time.Time) []byte {
	t = t.UTC()
	dst = t.AppendFormat(dst, time.RFC3339)
	dst[len(dst)-1] = '.' // was Z
	ns := t.Nanosecond()
	for unit := 100_000_000; unit > 0; unit /= 10 {
		dst = append(dst, '0'+byte(ns/unit%10))
	}
	return append(dst, 'Z')
}

// appendAddr leaves a zone out: it is a name that somebody chose.
func appendAddr(dst []byte, addr netip.Addr) []byte {
	return addr.WithZone("").AppendTo(dst)
}

// hasRemote says whether ev has a remote address. A listener has none.
func hasRemote(ev *tracer.Event) bool {
	addr := ev.Remote.Addr()
	return addr.IsValid() && !addr.IsUnspecified()
}

func hasOwner(ev *tracer.Event) bool { return ev.Owner.Origin != tracer.OriginUnknown }

func hasFamily(ev *tracer.Event) bool {
	return ev.Family == tracer.FamilyIPv4 || ev.Family == tracer.FamilyIPv6
}
