package metrics

import (
	"context"
	"math"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/finwait/finwait/tracer"
)

// bound returns where bucket i ends, as a power of two of a second. This is also
// the number of that bucket in a native histogram of schema 0.
func bound(i int) int { return i + 1 - tracer.SecondBucket }

// The classic buckets end at every second of those powers, from 15 µs to 18 hours:
// 17 and +Inf. So a quantile is less than four times the true one, and all states
// together have 220 series. A fourth of the buckets would tell a handshake within
// the data center from one across an ocean no more; all 64 would be 700 series.
// TIME_WAIT, 60 seconds, is in the one up to 64.
const (
	classicFrom, classicTo = -16, 16
	classicStep            = 2
)

// collectProfile emits how long sockets stay in each state: the sum over all rows,
// and those of services.
func (c *Collector) collectProfile(_ context.Context, ch chan<- prometheus.Metric) error {
	profile, err := c.source.Profile()
	if err != nil {
		return err
	}
	all := newDwells()
	for i := range profile.Rows {
		all.add(profile.Rows[i].Key.State, &profile.Rows[i].Histogram)
	}
	all.collect(ch, dwellDesc)
	for _, s := range dwellStates {
		ch <- count(dwellUnknownDesc, all[s].Unknown, stateLabel(s))
	}
	if c.service != nil && profile.By == tracer.ProfileByService {
		c.service.collectDwell(ch, profile)
	}
	return nil
}

// dwells are the times in each state.
type dwells map[tracer.State]*tracer.Histogram

func newDwells() dwells {
	d := dwells{}
	for _, s := range dwellStates {
		d[s] = &tracer.Histogram{}
	}
	return d
}

func (d dwells) add(s tracer.State, h *tracer.Histogram) {
	if t := d[s]; t != nil {
		t.Merge(h)
	}
}

// collect emits a histogram for each state, which is the last of the labels.
func (d dwells) collect(ch chan<- prometheus.Metric, desc *prometheus.Desc, labels ...string) {
	for _, s := range dwellStates {
		ch <- &dwellMetric{desc, prometheus.MakeLabelPairs(desc, append(labels, stateLabel(s))), d[s]}
	}
}

// dwellMetric has the same times in classic and in native buckets.
//
// The kernel's buckets have their lower bound in them and not the upper one, those
// of Prometheus the other way around. The times are in nanoseconds, so no more than
// one of those between is in another bucket than it should be.
type dwellMetric struct {
	desc   *prometheus.Desc
	labels []*dto.LabelPair
	times  *tracer.Histogram
}

// Desc implements [prometheus.Metric].
func (m *dwellMetric) Desc() *prometheus.Desc { return m.desc }

// Write implements [prometheus.Metric].
func (m *dwellMetric) Write(out *dto.Metric) error {
	seconds := m.times.Seconds()
	h := &dto.Histogram{SampleSum: &seconds}
	m.writeClassic(h)
	m.writeNative(h)
	out.Label, out.Histogram = m.labels, h
	return nil
}

func (m *dwellMetric) writeClassic(h *dto.Histogram) {
	var sum uint64
	for i, n := range m.times.Buckets {
		sum += n
		if b := bound(i); b >= classicFrom && b <= classicTo && (b-classicFrom)%classicStep == 0 {
			h.Bucket = append(h.Bucket, &dto.Bucket{CumulativeCount: new(sum), UpperBound: new(math.Ldexp(1, b))})
		}
	}
	h.SampleCount = &sum
}

// writeNative writes all buckets as they are, in one span from the first that is
// used to the last. The first of all, which begins at 0, is the zero bucket.
func (m *dwellMetric) writeNative(h *dto.Histogram) {
	h.Schema = new(int32(0))
	h.ZeroThreshold = new(math.Ldexp(1, bound(0)))
	h.ZeroCount = new(m.times.Buckets[0])
	first, last := len(m.times.Buckets), 0
	for i, n := range m.times.Buckets {
		if n > 0 && i > 0 {
			first, last = min(first, i), i
		}
	}
	if last == 0 {
		return
	}
	h.PositiveSpan = []*dto.BucketSpan{{Offset: new(int32(bound(first))), Length: new(uint32(last - first + 1))}}
	before := int64(0)
	for _, n := range m.times.Buckets[first : last+1] {
		h.PositiveDelta = append(h.PositiveDelta, int64(n)-before)
		before = int64(n)
	}
}
