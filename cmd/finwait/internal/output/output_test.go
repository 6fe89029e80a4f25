package output

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

var update = flag.Bool("update", false, "write the golden files in testdata")

func mustNew(t testing.TB, format string, opts Options) Encoder {
	t.Helper()
	opts.Location, opts.Cgroup = time.UTC, testCgroup
	enc, err := New(format, opts)
	qt.Assert(t, qt.IsNil(err))
	return enc
}

func TestGolden(t *testing.T) {
	tests := []struct {
		name, format string
		opts         Options
	}{
		{"table", "table", Options{}},
		{"table-wide", "table", Options{Width: wideWidth}},
		{"table-color", "table", Options{Color: true}},
		{"json", "json", Options{Color: true}},
		{"csv", "csv", Options{Color: true}},
		{"logfmt", "logfmt", Options{Color: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			enc := mustNew(t, tt.format, tt.opts)
			got := enc.AppendHeader(nil)
			for _, ev := range sampleEvents() {
				got = enc.AppendEvent(got, &ev)
			}
			golden(t, tt.name+".golden", got)
		})
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		qt.Assert(t, qt.IsNil(os.WriteFile(path, got, 0o644)))
	}
	want, err := os.ReadFile(path)
	qt.Assert(t, qt.IsNil(err), qt.Commentf("run 'go test ./cmd/finwait/internal/output -update'"))
	qt.Assert(t, qt.Equals(string(got), string(want)), qt.Commentf("run 'go test ./cmd/finwait/internal/output -update' if this is meant"))
}

func TestNewUnknownFormat(t *testing.T) {
	_, err := New("xml", Options{})
	qt.Assert(t, qt.ErrorMatches(err, `unknown format "xml" \(want one of table, json, csv, logfmt\)`))
}

func TestAppendKeepsWhatIsThere(t *testing.T) {
	for _, format := range Formats {
		enc := mustNew(t, format, Options{})
		ev := hostileEvent()
		alone := string(enc.AppendEvent(nil, &ev))
		qt.Check(t, qt.Equals(string(enc.AppendEvent([]byte("before "), &ev)), "before "+alone), qt.Commentf(format))
	}
}

func TestNoAllocations(t *testing.T) {
	for _, format := range Formats {
		t.Run(format, func(t *testing.T) {
			enc := mustNew(t, format, Options{Color: true})
			events := sampleEvents()
			buf := make([]byte, 0, 16<<10)
			allocs := testing.AllocsPerRun(100, func() {
				buf = enc.AppendHeader(buf[:0])
				for i := range events {
					buf = enc.AppendEvent(buf, &events[i])
				}
			})
			qt.Assert(t, qt.Equals(allocs, 0))
		})
	}
}

// benchEvents are events that have everything, as a server sees them: of a few
// processes and a thousand addresses, 30 microseconds apart.
func benchEvents() []tracer.Event {
	events := make([]tracer.Event, 1000)
	for i := range events {
		remote := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i % 7), byte(i * 31), byte(i * 17)}), uint16(32768+i))
		ev := newEvent(tracer.StateTimeWait, tracer.StateClose, "192.168.100.200:443", remote.String())
		ev.Cookie = uint64(5_000_000 + i)
		ev.Dwell = time.Duration(60_000_000_000 + i*1037)
		ev.Owner.PID, ev.Owner.Origin = uint32(4_194_000+i%5), tracer.OriginAccept
		ev.Role, ev.Reason, ev.Side = tracer.RoleServer, tracer.ReasonExpired, tracer.SideLocal
		events[i] = ev
	}
	return events
}

func BenchmarkEncodeEvent(b *testing.B) {
	for _, format := range Formats {
		b.Run(format, func(b *testing.B) {
			enc := mustNew(b, format, Options{})
			events := benchEvents()
			var buf []byte
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				ev := &events[i%len(events)]
				ev.Time = testTime.Add(time.Duration(i) * 30 * time.Microsecond)
				buf = enc.AppendEvent(buf[:0], ev)
			}
		})
	}
}

func BenchmarkEncodeConn(b *testing.B) {
	for _, format := range Formats {
		b.Run(format, func(b *testing.B) {
			enc := mustNewConns(b, format, Options{})
			var conns []tracer.Conn
			for _, ev := range benchEvents() {
				conns = append(conns, newConn(ev))
			}
			var buf []byte
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				c := &conns[i%len(conns)]
				c.End = testTime.Add(time.Duration(i) * 30 * time.Microsecond)
				c.Start = c.End.Add(-5 * time.Millisecond)
				buf = enc.AppendConn(buf[:0], c)
			}
		})
	}
}
