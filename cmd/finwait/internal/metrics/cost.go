package metrics

import (
	"context"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/finwait/finwait/cmd/finwait/internal/build"
	"github.com/finwait/finwait/tracer"
)

// collectStats says what the programs and maps cost. Whether the kernel measures
// runs cannot be asked for certain (any process can have it do so), but the
// programs of a tracer run all the time: if it has measured any, it has measured.
func (c *Collector) collectStats(_ context.Context, ch chan<- prometheus.Metric) error {
	stats, err := c.source.Stats()
	if err != nil {
		return err
	}
	measured := false
	for i := range stats.Programs {
		measured = measured || stats.Programs[i].Runs > 0
	}
	for i := range stats.Programs {
		p := &stats.Programs[i]
		if measured {
			ch <- count(programRunsDesc, p.Runs, p.Name)
			ch <- prometheus.MustNewConstMetric(programTimeDesc, prometheus.CounterValue, p.RunTime.Seconds(), p.Name)
		}
		ch <- count(recursionDesc, p.RecursionMisses, p.Name)
	}
	for _, m := range stats.Maps {
		if m.MemoryKnown {
			ch <- gauge(mapMemoryDesc, float64(m.Memory), m.Name)
		}
	}
	for _, r := range stats.Rings {
		ch <- gauge(ringSizeDesc, float64(r.Size), r.Name)
		ch <- gauge(ringHighWaterDesc, float64(r.HighWater), r.Name)
	}
	return nil
}

// collectInfo says what this is.
func (c *Collector) collectInfo(ch chan<- prometheus.Metric) {
	sampling := 1.0
	if c.opts.Sampling != nil {
		sampling = c.opts.Sampling()
	}
	ch <- gauge(samplingDesc, sampling)
	for _, e := range []tracer.Evidence{tracer.EvidenceProbe, tracer.EvidenceTimer} {
		if e == c.source.Evidence() {
			ch <- gauge(evidenceDesc, 1, e.String())
		}
	}
	ch <- c.build
}

// buildInfo says what was built. An empty label is none for Prometheus.
func buildInfo() prometheus.Metric {
	return gauge(buildDesc, 1, build.Version(), build.Revision(), runtime.Version())
}
