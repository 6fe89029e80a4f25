package agent

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/finwait/finwait/cmd/finwait/internal/logfile"
	"github.com/finwait/finwait/cmd/finwait/internal/metrics"
	"github.com/finwait/finwait/cmd/finwait/internal/otlp"
)

// registry returns all metrics: those of the tracer and its queues, and what else
// sinks tell of themselves.
func (a *Agent) registry() *prometheus.Registry {
	opts := metrics.Options{Queues: a.queues, ServicePorts: a.cfg.ServicePorts, ByCgroup: a.cfg.ByCgroup, Log: a.log}
	if sample := a.cfg.Filter.Sample; sample > 0 {
		opts.Sampling = func() float64 { return sample }
	}
	r := metrics.NewRegistry(metrics.New(a.tracer, opts))
	if a.logfile != nil {
		registerLog(r, a.logfile)
	}
	if a.otlp != nil {
		registerOTLP(r, a.otlp)
	}
	return r
}

func registerLog(r prometheus.Registerer, l *logfile.Log) {
	counters := []struct {
		name, help string
		value      func(*logfile.Stats) uint64
	}{
		{"log_rotations_total", "Log files that were rotated.", func(s *logfile.Stats) uint64 { return s.Rotated }},
		{"log_rotate_failures_total", "Times that a log file could not be rotated.", func(s *logfile.Stats) uint64 { return s.RotateFailures }},
		{"log_removed_files_total", "Rotated log files that were removed to keep the bound on all of them.", func(s *logfile.Stats) uint64 { return s.Removed }},
		{"log_torn_lines_total", "Half lines that were cut off: a full disk or a kill had left them.", func(s *logfile.Stats) uint64 { return s.Torn }},
		{"log_patched_lines_total", "Half lines that could not be cut off, and were ended.", func(s *logfile.Stats) uint64 { return s.Patched }},
		{"log_compress_failures_total", "Rotated log files that could not be compressed.", func(s *logfile.Stats) uint64 { return s.CompressFailures }},
		{"log_sync_failures_total", "Times that a log file could not be written through to the disk: records that count as kept may be lost.", func(s *logfile.Stats) uint64 { return s.SyncFailures }},
	}
	for _, c := range counters {
		registerCounter(r, c.name, c.help, func() uint64 { s := l.Stats(); return c.value(&s) })
	}
	r.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "finwait_log_bytes", Help: "Bytes that all log files take."},
			func() float64 { return float64(l.Stats().Bytes) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "finwait_log_files", Help: "Log files, the one that is written included."},
			func() float64 { return float64(l.Stats().Files) }),
	)
}

func registerOTLP(r prometheus.Registerer, l *otlp.Logs) {
	registerCounter(r, "otlp_requests_total", "Requests with log records that were sent.", func() uint64 { return l.Stats().Requests })
	registerCounter(r, "otlp_retries_total", "Of these, those that had been sent before.", func() uint64 { return l.Stats().Retries })
	registerCounter(r, "otlp_unconfirmed_records_total", "Log records in requests that may have been taken though no answer came. They were sent again, or are lost: so many may be there twice.", func() uint64 { return l.Stats().Unconfirmed })
	registerCounter(r, "otlp_rejected_records_total", "Log records that the other side has refused in requests that it took.", func() uint64 { return l.Stats().Rejected })
}

func registerCounter(r prometheus.Registerer, name, help string, value func() uint64) {
	r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "finwait_" + name, Help: help}, func() float64 { return float64(value()) }))
}
