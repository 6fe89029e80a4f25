package metrics

import (
	"bytes"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"

	"github.com/finwait/finwait/cmd/finwait/internal/sink"
	"github.com/finwait/finwait/tracer"
)

var update = flag.Bool("update", false, "write the golden files in testdata")

// exposition returns c as /metrics has it.
func exposition(t testing.TB, c *Collector) []byte {
	t.Helper()
	families := gather(t, c)
	var text bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(families)) {
		_, err := expfmt.MetricFamilyToText(&text, families[name])
		qt.Assert(t, qt.IsNil(err))
	}
	return text.Bytes()
}

func TestGolden(t *testing.T) {
	tests := []struct {
		name   string
		source *fakeSource
		opts   Options
	}{
		{"full", fullSource(), Options{
			Queues:       []*sink.Queue{usedQueue(t)},
			Sampling:     func() float64 { return 0.25 },
			ServicePorts: []uint16{5432, 443, 443},
			ByCgroup:     true,
		}},
		{"fresh", newFakeSource(), Options{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := exposition(t, newTestCollector(tt.source, tt.opts))
			path := filepath.Join("testdata", tt.name+".golden")
			if *update {
				qt.Assert(t, qt.IsNil(os.WriteFile(path, got, 0o644)))
			}
			want, err := os.ReadFile(path)
			qt.Assert(t, qt.IsNil(err), qt.Commentf("run 'go test ./cmd/finwait/internal/metrics -update'"))
			qt.Assert(t, qt.Equals(string(got), string(want)), qt.Commentf("run 'go test ./cmd/finwait/internal/metrics -update' if this is meant"))

			problems, err := promlint.New(bytes.NewReader(got)).Lint()
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.HasLen(problems, 0))
		})
	}
}

// TestFresh holds what is there before anything has happened to what there can be,
// each at 0, and nothing to be there that is not known.
func TestFresh(t *testing.T) {
	families := gather(t, newTestCollector(newFakeSource(), Options{}))
	for _, s := range tracer.States() {
		name := strings.ToLower(s.String())
		if s != tracer.StateNewSynRecv {
			qt.Check(t, qt.Equals(find(t, families["finwait_sockets"], name).GetGauge().GetValue(), 0))
		}
		if s != tracer.StateClose {
			qt.Check(t, qt.Equals(find(t, families["finwait_dwell_seconds"], name).GetHistogram().GetSampleCount(), 0))
			qt.Check(t, qt.Equals(find(t, families["finwait_dwell_unknown_total"], name).GetCounter().GetValue(), 0))
		}
	}
	for _, transition := range tracer.LegalTransitions() {
		from, to := strings.ToLower(transition.Old.String()), strings.ToLower(transition.New.String())
		m := find(t, families["finwait_transitions_total"], to, from) // labels are sorted
		qt.Check(t, qt.Equals(m.GetCounter().GetValue(), 0))
	}
	qt.Check(t, qt.HasLen(families["finwait_transitions_total"].GetMetric(), len(tracer.LegalTransitions())))
	for _, r := range tracer.Reasons() {
		for _, side := range []string{"unknown", "local", "peer", "both"} {
			find(t, families["finwait_endings_total"], r.String(), side)
		}
	}
	for _, absent := range []string{
		"finwait_drift_sockets", "finwait_audit_timestamp_seconds",
		"finwait_bpf_program_runs_total", "finwait_bpf_program_run_seconds_total",
		"finwait_service_sockets", "finwait_service_dwell_seconds", "finwait_cgroup_sockets",
	} {
		qt.Check(t, qt.IsNil(families[absent]), qt.Commentf("%s", absent))
	}
}

// TestUnexpected has what cannot be told all the same, if it is.
func TestUnexpected(t *testing.T) {
	source := newFakeSource()
	source.counters.Add(tracer.Transition{Old: tracer.StateListen, New: tracer.StateSynSent}, 3)
	source.endings.Add(tracer.Ending{Old: tracer.StateNewSynRecv, Reason: tracer.ReasonTimeoutKeepalive, Side: tracer.SideBoth}, 4)
	families := gather(t, newTestCollector(source, Options{}))
	qt.Check(t, qt.Equals(find(t, families["finwait_transitions_total"], "syn_sent", "listen").GetCounter().GetValue(), 3))
	qt.Check(t, qt.Equals(find(t, families["finwait_half_open_dropped_total"], "timeout_keepalive").GetCounter().GetValue(), 4))
}

// TestBroken has one part fail after the other: all else is there still, it is
// counted, and it comes back.
func TestBroken(t *testing.T) {
	of := map[string]string{
		"gauges": "finwait_sockets", "counters": "finwait_transitions_total", "endings": "finwait_endings_total",
		"profile": "finwait_dwell_seconds", "ledger": "finwait_ledger_total", "stats": "finwait_ring_size_bytes",
	}
	for broken, gone := range of {
		t.Run(broken, func(t *testing.T) {
			source := fullSource()
			var log bytes.Buffer
			c := newTestCollector(source, Options{Log: newLog(&log)})
			qt.Check(t, qt.IsNotNil(gather(t, c)[gone]))
			source.setBroken(broken, true)
			for i := range 3 {
				families := gather(t, c)
				for part, name := range of {
					qt.Check(t, qt.Equals(families[name] == nil, part == broken), qt.Commentf("%s", name))
					want := 0.0
					if part == broken {
						want = float64(i + 1)
					}
					qt.Check(t, qt.Equals(find(t, families["finwait_scrape_errors_total"], part).GetCounter().GetValue(), want))
				}
			}
			source.setBroken(broken, false)
			qt.Check(t, qt.IsNotNil(gather(t, c)[gone]))
			qt.Check(t, qt.Equals(strings.Count(log.String(), "left out"), 1))
			qt.Check(t, qt.Equals(strings.Count(log.String(), "metrics can be read"), 1))
		})
	}
}

// TestOnce has a scrape ask for nothing twice.
func TestOnce(t *testing.T) {
	source := fullSource()
	gather(t, newTestCollector(source, Options{ServicePorts: []uint16{443}, ByCgroup: true}))
	qt.Assert(t, qt.DeepEquals(source.calls, map[string]int{
		"gauges": 1, "counters": 1, "endings": 1, "profile": 1, "ledger": 1, "stats": 1,
	}))
}

func TestConcurrentScrapes(t *testing.T) {
	source := fullSource()
	r := NewRegistry(newTestCollector(source, Options{ServicePorts: []uint16{443}, ByCgroup: true}))
	const scrapers, scrapes = 8, 5
	var scraping sync.WaitGroup
	for range scrapers {
		scraping.Go(func() {
			for range scrapes {
				if _, err := r.Gather(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	scraping.Wait()
	qt.Assert(t, qt.Equals(source.calls["counters"], scrapers*scrapes))
}

func TestProfileOptions(t *testing.T) {
	qt.Check(t, qt.Equals(ProfileOptions(nil).By, tracer.ProfileByState))
	qt.Check(t, qt.Equals(ProfileOptions([]uint16{443}).By, tracer.ProfileByService))
}

// benchSource is what there is to read on a host with a thousand network
// namespaces, and as many rows in its profile as there can be.
func benchSource() *fakeSource {
	source := fullSource()
	source.gauges.Netns, source.profile.Rows = nil, nil
	for i := range 1000 {
		var states tracer.StateCounts
		for s := range states {
			states[s] = uint64(i * s)
		}
		source.gauges.Netns = append(source.gauges.Netns, tracer.NetnsGauges{Netns: uint32(i), States: states})
		for _, s := range dwellStates[:8] {
			key := tracer.ProfileKey{State: s, Value: uint64(i)}
			source.profile.Rows = append(source.profile.Rows, tracer.ProfileRow{Key: key, Histogram: histogramOf(time.Duration(i) * time.Millisecond)})
		}
	}
	for i := range 40 {
		source.stats.Programs = append(source.stats.Programs, tracer.ProgramStats{Name: "program" + string(rune('A'+i)), Runs: 1})
	}
	return source
}

// BenchmarkScrape is all of a scrape but what the kernel does: 1000 network
// namespaces, 8000 histograms.
func BenchmarkScrape(b *testing.B) {
	for name, opts := range map[string]Options{
		"plain":   {},
		"service": {ServicePorts: []uint16{22, 80, 443, 5432, 6379, 8080, 9090, 9100, 9987, 27017}},
	} {
		b.Run(name, func(b *testing.B) {
			source := benchSource()
			if opts.ServicePorts == nil { // by state
				source.profile.Rows = fullSource().profile.Rows
			}
			r := prometheus.NewRegistry()
			r.MustRegister(newTestCollector(source, opts))
			var text bytes.Buffer
			b.ReportAllocs()
			for b.Loop() {
				text.Reset()
				families, err := r.Gather()
				if err != nil {
					b.Fatal(err)
				}
				for _, f := range families {
					if _, err := expfmt.MetricFamilyToText(&text, f); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(text.Len()), "B/scrape")
			b.ReportMetric(float64(bytes.Count(text.Bytes(), []byte("\n"))), "lines/scrape")
		})
	}
}
