package output

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

func mustNewConns(t testing.TB, format string, opts Options) ConnEncoder {
	t.Helper()
	opts.Location, opts.Cgroup = time.UTC, testCgroup
	enc, err := NewConns(format, opts)
	qt.Assert(t, qt.IsNil(err))
	return enc
}

// newConn returns a connection that has everything, with the owner and the
// addresses of ev.
func newConn(ev tracer.Event) tracer.Conn {
	c := tracer.Conn{
		Start: testTime.Add(-63*time.Second - 252*time.Millisecond), End: testTime,
		Cookie: ev.Cookie, Netns: ev.Netns, Family: ev.Family, Local: ev.Local, Remote: ev.Remote,
		Owner: ev.Owner, Role: ev.Role,
		Counted: true, BytesSent: 1234, BytesReceived: 56_789_012, SegmentsSent: 17, SegmentsReceived: 40001,
		Retransmits: 3, SRTT: 1250 * time.Microsecond,
		Reason: tracer.ReasonFIN, TimeWaitReason: tracer.ReasonReused, Side: tracer.SideLocal,
	}
	c.SetWalk(
		tracer.Visit{State: tracer.StateSynSent, Dwell: 95 * time.Microsecond, DwellKnown: true},
		tracer.Visit{State: tracer.StateEstablished, Dwell: 3200 * time.Millisecond, DwellKnown: true},
		tracer.Visit{State: tracer.StateFinWait1, Dwell: 40 * time.Microsecond, DwellKnown: true},
		tracer.Visit{State: tracer.StateFinWait2, Dwell: 12 * time.Millisecond, DwellKnown: true},
		tracer.Visit{State: tracer.StateTimeWait, Dwell: 60 * time.Second, DwellKnown: true},
	)
	return c
}

// sampleConns are the connections of the golden files.
func sampleConns() []tracer.Conn {
	var conns []tracer.Conn
	for _, ev := range sampleEvents() {
		conns = append(conns, newConn(ev))
	}
	older := newConn(listenerEvent())
	older.Start, older.Counted, older.SRTT = time.Time{}, false, 0
	older.Reason, older.TimeWaitReason, older.Side = tracer.ReasonUnknown, tracer.ReasonUnknown, tracer.SideUnknown
	older.SetWalk(tracer.Visit{State: tracer.StateEstablished})
	halfOpen := newConn(bareEvent())
	halfOpen.Counted, halfOpen.Reason, halfOpen.Side = false, tracer.ReasonTimeoutHandshake, tracer.SideUnknown
	halfOpen.TimeWaitReason = tracer.ReasonUnknown
	halfOpen.SetWalk(tracer.Visit{State: tracer.StateNewSynRecv, Dwell: 63 * time.Second, DwellKnown: true})
	return append(conns, older, halfOpen)
}

func TestGoldenConns(t *testing.T) {
	for _, tt := range []struct {
		name, format string
		opts         Options
	}{
		{"conns-table", "table", Options{}},
		{"conns-table-wide", "table", Options{Width: 160, Color: true}},
		{"conns-json", "json", Options{}},
		{"conns-csv", "csv", Options{}},
		{"conns-logfmt", "logfmt", Options{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			enc := mustNewConns(t, tt.format, tt.opts)
			got := enc.AppendHeader(nil)
			for _, c := range sampleConns() {
				got = enc.AppendConn(got, &c)
			}
			golden(t, tt.name+".golden", got)
		})
	}
}

// Without colour nothing of IPv4 is wider than the terminal.
func TestConnTableWidth(t *testing.T) {
	enc := mustNewConns(t, "table", Options{})
	for _, c := range sampleConns() {
		for line := range strings.Lines(string(enc.AppendConn(nil, &c))) {
			if c.Local.Addr().Is4() {
				qt.Check(t, qt.IsTrue(utf8.RuneCountInString(line) <= defaultWidth), qt.Commentf("%q", line))
			}
		}
	}
}

func TestConnNoAllocations(t *testing.T) {
	for _, format := range Formats {
		t.Run(format, func(t *testing.T) {
			enc := mustNewConns(t, format, Options{Color: true})
			conns := sampleConns()
			buf := make([]byte, 0, 64<<10)
			allocs := testing.AllocsPerRun(100, func() {
				buf = enc.AppendHeader(buf[:0])
				for i := range conns {
					buf = enc.AppendConn(buf, &conns[i])
				}
			})
			qt.Assert(t, qt.Equals(allocs, 0))
		})
	}
}

func TestAppendBytes(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0", 999: "999", 1000: "1.0k", 1999: "1.9k", 10_000: "10k", 999_999: "999k", 1_000_000: "1.0M",
		56_789_012: "56M", 5_000_000_000: "5.0G", 1<<64 - 1: "18E",
	} {
		qt.Check(t, qt.Equals(string(appendBytes(nil, n)), want))
	}
}

func FuzzConn(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, comm, local, remote []byte, id, bits uint64, ns int64) {
		c := newConn(fuzzEvent(comm, local, remote, id, bits, ns))
		c.BytesSent, c.Reason, c.Side = id, tracer.Reason(bits>>50), tracer.Side(bits>>52)

		line := newLines(&jsonSyntax, &connFields, fuzzOptions(comm)).AppendConn(nil, &c)
		assertOneLine(t, line)
		var record map[string]any
		qt.Assert(t, qt.IsNil(json.Unmarshal(line, &record)))
		qt.Check(t, qt.HasLen(record["walk"].([]any), 5))

		enc := newLines(&csvSyntax, &connFields, fuzzOptions(comm))
		line = enc.AppendConn(nil, &c)
		assertOneLine(t, line)
		rows, err := csv.NewReader(bytes.NewReader(append(enc.AppendHeader(nil), line...))).ReadAll()
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.HasLen(rows, 2))
		for i, name := range rows[0] {
			_, known := record[name]
			qt.Check(t, qt.Equals(rows[1][i] != "", known), qt.Commentf("%s", name))
		}

		assertOneLine(t, newLines(&logfmtSyntax, &connFields, fuzzOptions(comm)).AppendConn(nil, &c))
		for line := range bytes.Lines(newConnTable(Options{}).AppendConn(nil, &c)) {
			assertOneLine(t, line)
		}
	})
}
