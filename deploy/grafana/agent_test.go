package main

import (
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/finwait/finwait/tracer"
)

// agent answers as an agent whose host makes connections does: whatever can be
// counted has grown from one scrape to the next.
type agent struct {
	mu       sync.Mutex
	scrapes  float64
	dwell    *prometheus.HistogramVec
	service  *prometheus.HistogramVec
	registry *prometheus.Registry
}

func newAgent() *agent {
	histogram := func(name string, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: name, Help: "Time in a state.",
			Buckets: prometheus.ExponentialBuckets(1e-5, 4, 14), NativeHistogramBucketFactor: 1.1,
		}, labels)
	}
	a := &agent{
		registry: prometheus.NewRegistry(),
		dwell:    histogram("finwait_dwell_seconds", "state"),
		service:  histogram("finwait_service_dwell_seconds", "port", "state"),
	}
	a.registry.MustRegister(a, a.dwell, a.service, collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return a
}

// ServeHTTP answers a scrape. A path of /text has the text format alone, as to a
// Prometheus that does not ask for native histograms.
func (a *agent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/text" {
		r.Header.Set("Accept", "text/plain;version=0.0.4")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.scrapes++
	for _, s := range tracer.States() {
		a.dwell.WithLabelValues(label(s)).Observe(0.003 * a.scrapes)
		a.service.WithLabelValues("443", label(s)).Observe(0.003 * a.scrapes)
	}
	promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{}).ServeHTTP(w, r)
}

// Describe says nothing: what is collected need not be checked.
func (a *agent) Describe(chan<- *prometheus.Desc) {}

// Collect tells all other metrics.
func (a *agent) Collect(out chan<- prometheus.Metric) {
	tell := func(kind prometheus.ValueType, name string, value float64, labels ...string) {
		var names, values []string
		for i := 0; i < len(labels); i += 2 {
			names, values = append(names, labels[i]), append(values, labels[i+1])
		}
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, name, names, nil), kind, value, values...)
	}
	gauge := func(name string, value float64, labels ...string) {
		tell(prometheus.GaugeValue, name, value, labels...)
	}
	counter := func(name string, labels ...string) {
		tell(prometheus.CounterValue, name, a.scrapes*7, labels...)
	}
	for _, s := range tracer.States() {
		if s != tracer.StateNewSynRecv {
			gauge("finwait_sockets", 100+a.scrapes, "state", label(s))
			gauge("finwait_drift_sockets", 0, "state", label(s))
			gauge("finwait_service_sockets", 3, "port", "443", "state", label(s))
			gauge("finwait_cgroup_sockets", 3, "cgroup", "/system.slice/nginx.service", "state", label(s))
		}
		counter("finwait_dwell_unknown_total", "state", label(s))
	}
	for _, tr := range tracer.LegalTransitions() {
		counter("finwait_transitions_total", "old_state", label(tr.Old), "new_state", label(tr.New))
	}
	for _, r := range tracer.Reasons() {
		counter("finwait_endings_total", "reason", r.String(), "side", "local")
	}
	gauge("finwait_half_open_sockets", 5)
	counter("finwait_half_open_dropped_total", "reason", "queue_full")
	counter("finwait_ledger_total", "entry", "ring_full")
	gauge("finwait_audit_timestamp_seconds", float64(time.Now().Unix()))
	for _, record := range []string{"transition", "connection"} {
		for _, outcome := range []string{"kept", "queue_full", "failed"} {
			counter("finwait_sink_records_total", "sink", "log", "record", record, "outcome", outcome)
		}
		gauge("finwait_sink_queue_records", 12, "sink", "log", "record", record)
	}
	counter("finwait_bpf_program_runs_total", "program", "set_state")
	counter("finwait_bpf_program_run_seconds_total", "program", "set_state")
	counter("finwait_bpf_program_recursion_misses_total", "program", "set_state")
	gauge("finwait_bpf_map_memory_bytes", 1<<20, "map", "minis")
	gauge("finwait_ring_size_bytes", 8<<20, "ring", "events")
	gauge("finwait_ring_high_water_bytes", 1<<20, "ring", "events")
	gauge("finwait_sampling_ratio", 1)
	gauge("finwait_evidence_info", 1, "evidence", "timer")
	gauge("finwait_build_info", 1, "version", "1", "revision", "1", "goversion", "1")
}

// label is the state as node_exporter's tcpstat calls it.
func label(s tracer.State) string { return strings.ToLower(s.String()) }
