// Package metrics tells Prometheus what a tracer has counted. All is read from
// the kernel when Prometheus asks, and no count is kept in between, so that none can
// be another than the tracer's own.
package metrics

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/finwait/finwait/cmd/finwait/internal/sink"
	"github.com/finwait/finwait/tracer"
)

// Source is what the metrics are read from: a [tracer.Tracer] that is attached,
// with ProfileOptions of the same service ports.
type Source interface {
	Gauges(context.Context) (*tracer.Gauges, error)
	Counters() (tracer.Counters, error)
	Endings() (tracer.Endings, error)
	Profile() (*tracer.Profile, error)
	Ledger() (tracer.Ledger, error)
	LastAudit() tracer.Audit
	Stats() (*tracer.Stats, error)
	Evidence() tracer.Evidence
}

// Options are those of a Collector.
type Options struct {
	// Queues are those of which it is told what became of the records. No two have
	// the same name.
	Queues []*sink.Queue
	// Sampling returns the share of connections that are recorded; nil stands
	// for all. It is asked at each scrape.
	Sampling func() float64
	// ServicePorts are the local ports of services that have series of their
	// own; empty for no breakdown by service.
	ServicePorts []uint16
	// ByCgroup asks for the sockets by cgroup.
	ByCgroup bool
	// Log is told when a part cannot be read, and when it can be again.
	Log *slog.Logger
}

// ProfileOptions returns what the tracer is to be opened with, for the times that
// sockets stay in each state: all of them, whatever is recorded.
func ProfileOptions(servicePorts []uint16) *tracer.ProfileOptions {
	by := tracer.ProfileByState
	if len(servicePorts) > 0 {
		by = tracer.ProfileByService
	}
	return &tracer.ProfileOptions{By: by, Unfiltered: true}
}

// patience is how long a part of a scrape may take. Not all of them take long: gauges
// wait at the start until what was there is counted, and a census may be of many
// sockets. Prometheus itself gives up after 10 seconds by default.
const patience = 3 * time.Second

// A Collector reads its source at each scrape, and asks it for nothing twice. It keeps
// the last censuses, and how often something could not be read.
type Collector struct {
	source  Source
	opts    Options
	parts   []part
	build   prometheus.Metric
	service *service // nil for none
	cgroups *cgroups // nil for none

	mu     sync.Mutex // one scrape at a time; guards what follows, and the censuses
	errors map[string]uint64
	failed map[string]bool // parts that failed at the last scrape
}

// part is what is read in one piece, and is there whole or not at all.
type part struct {
	name    string
	collect func(context.Context, chan<- prometheus.Metric) error
}

func (p *part) collectInTime(ch chan<- prometheus.Metric) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return p.collect(ctx, ch)
}

// New returns a collector of what source has counted.
func New(source Source, opts Options) *Collector {
	c := &Collector{source: source, opts: opts, build: buildInfo(), errors: map[string]uint64{}, failed: map[string]bool{}}
	c.parts = []part{
		{"gauges", c.collectGauges},
		{"counters", c.collectCounters},
		{"endings", c.collectEndings},
		{"profile", c.collectProfile},
		{"ledger", c.collectLedger},
		{"stats", c.collectStats},
	}
	if len(opts.ServicePorts) > 0 {
		c.service = newService(opts.ServicePorts)
		c.parts = append(c.parts, part{"service_census", c.service.collectSockets})
	}
	if opts.ByCgroup {
		c.cgroups = newCgroups()
		c.parts = append(c.parts, part{"cgroup_census", c.cgroups.collect})
	}
	return c
}

// NewRegistry returns a registry with c, the process itself, and Go's runtime.
func NewRegistry(c *Collector) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(c, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Describe implements [prometheus.Collector].
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descs {
		ch <- d
	}
}

// Collect implements [prometheus.Collector]. What cannot be read is left out, and
// counted.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.parts {
		c.note(p.name, p.collectInTime(ch))
	}
	c.collectAudit(ch)
	c.collectQueues(ch)
	c.collectInfo(ch)
	for _, p := range c.parts { // the last: this scrape's are among them
		ch <- count(scrapeErrorsDesc, c.errors[p.name], p.name)
	}
}

// note counts an error, and logs the first in a row and the end of it.
func (c *Collector) note(part string, err error) {
	if err != nil {
		c.errors[part]++
	}
	if failed := err != nil; failed != c.failed[part] {
		c.failed[part] = failed
		if failed {
			c.opts.Log.Error("metrics are left out, until they can be read again", "part", part, "error", err)
		} else {
			c.opts.Log.Info("metrics can be read again", "part", part)
		}
	}
}

func gauge(d *prometheus.Desc, value float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
}

func count(d *prometheus.Desc, n uint64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
}

// unixSeconds returns t as Prometheus has times.
func unixSeconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }
