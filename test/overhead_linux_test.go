package test

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/floor"
	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/traffic"
	"github.com/finwait/finwait/tracer"
)

// BenchmarkOverhead makes connections with a tracer attached and tells what the
// kernel spends in its programs: ns/transition is the time of all of them,
// those for other people's timers too, over the transitions seen; ns/empty is
// that of a program that does nothing at the same tracepoint, most of which is
// the clock that measures it.
func BenchmarkOverhead(b *testing.B) { benchmarkOverhead(b, nil) }

// BenchmarkOverheadProfile is the same with histograms.
func BenchmarkOverheadProfile(b *testing.B) {
	benchmarkOverhead(b, &tracer.Options{Profile: &tracer.ProfileOptions{}})
}

// BenchmarkOverheadCounters is the same of counters and nothing else.
func BenchmarkOverheadCounters(b *testing.B) {
	benchmarkOverhead(b, &tracer.Options{CountersOnly: true})
}

// BenchmarkStart tells how long it takes from the start of finwait trace to the
// first event that it prints.
func BenchmarkStart(b *testing.B) {
	ns := netns.New(b)
	path := binary(b)
	for b.Loop() {
		p := spawn(b, exec.Command(path, "trace", "--format", "json", "--count", "1", "--netns", inodeWord(ns)))
		for !p.hasEnded() {
			ns.Do(func() {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				qt.Assert(b, qt.IsNil(err))
				qt.Assert(b, qt.IsNil(errors.Join(unix.Listen(fd, 1), unix.Close(fd))))
			})
			time.Sleep(time.Millisecond)
		}
		qt.Assert(b, qt.Equals(strings.Count(p.stdout.String(), "\n"), 1))
	}
}

func benchmarkOverhead(b *testing.B, opts *tracer.Options) {
	ns := netns.New(b)
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	qt.Assert(b, qt.IsNil(err))
	defer stats.Close()
	empty, err := floor.Attach()
	qt.Assert(b, qt.IsNil(err))
	defer empty.Close()
	others := programs(b)
	tr := overheadTracer(b, opts)
	own := programs(b)
	for id := range others {
		delete(own, id)
	}

	kind := kindNamed(b, "active close")
	connections := 0
	for b.Loop() {
		ns.Do(func() { _, err = kind.Run(1009, tracer.FamilyIPv4) })
		qt.Assert(b, qt.IsNil(err))
		connections += 1009
	}

	counters, err := tr.Counters()
	qt.Assert(b, qt.IsNil(err))
	total := float64(counters.Total())
	var all time.Duration
	for id, name := range own {
		stats := statsOf(b, id)
		if stats == nil {
			continue
		}
		all += stats.Runtime
		b.Logf("%-20s %8d runs, %6.1f ns each", name, stats.RunCount, perRun(stats))
	}
	b.ReportMetric(float64(all.Nanoseconds())/total, "ns/transition")
	emptyStats, err := empty.Program.Stats()
	qt.Assert(b, qt.IsNil(err))
	b.ReportMetric(perRun(emptyStats), "ns/empty")
	b.ReportMetric(total/float64(connections), "transitions/connection")
}

// overheadTracer starts a tracer whose events are read, if it has any.
func overheadTracer(b *testing.B, opts *tracer.Options) *tracer.Tracer {
	b.Helper()
	if opts == nil || !opts.CountersOnly {
		return record(b, opts).tracer
	}
	tr, err := tracer.New(opts)
	qt.Assert(b, qt.IsNil(err))
	b.Cleanup(func() { qt.Check(b, qt.IsNil(tr.Close())) })
	return tr
}

func perRun(s *ebpf.ProgramStats) float64 {
	return float64(s.Runtime.Nanoseconds()) / float64(max(s.RunCount, 1))
}

func kindNamed(tb testing.TB, name string) traffic.Kind {
	tb.Helper()
	for _, kind := range traffic.Kinds() {
		if kind.Name == name {
			return kind
		}
	}
	tb.Fatalf("no traffic of kind %q", name)
	return traffic.Kind{}
}

// programs returns the names of the host's tracing programs.
func programs(b *testing.B) map[ebpf.ProgramID]string {
	b.Helper()
	names := map[ebpf.ProgramID]string{}
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if err != nil {
			return names
		}
		id = next
		prog, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // gone since
		}
		if info, err := prog.Info(); err == nil && prog.Type() == ebpf.Tracing {
			names[id] = info.Name
		}
		prog.Close()
	}
}

// statsOf returns nil for a program that is gone since, as those that the tracer
// has tried.
func statsOf(b *testing.B, id ebpf.ProgramID) *ebpf.ProgramStats {
	b.Helper()
	prog, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	qt.Assert(b, qt.IsNil(err))
	defer prog.Close()
	stats, err := prog.Stats()
	qt.Assert(b, qt.IsNil(err))
	return stats
}
