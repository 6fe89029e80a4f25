package output

import (
	"flag"
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

func BenchmarkAppendEvent(b *testing.B) {
	for _, format := range Formats {
		b.Run(format, func(b *testing.B) {
			enc := mustNew(b, format, Options{})
			ev := newEvent(tracer.StateFinWait2, tracer.StateTimeWait, "192.168.100.200:48132", "10.0.0.1:443")
			buf := enc.AppendEvent(nil, &ev)
			b.ReportAllocs()
			for b.Loop() {
				buf = enc.AppendEvent(buf[:0], &ev)
			}
		})
	}
}
