package metrics

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/finwait/finwait/tracer"
)

// A census costs more the more sockets there are. So one is taken at most every
// censusInterval, and for no more than a tenth of the time.
const (
	censusInterval = 10 * time.Second
	censusShare    = 10
)

// census is the last one that was taken.
type census struct {
	by     tracer.Dimension
	take   func(context.Context, *tracer.CensusOptions) (*tracer.Census, error)
	now    func() time.Time
	taken  time.Time // when it ended; the zero time before the first
	took   time.Duration
	result *tracer.Census
	err    error
}

func newCensus(by tracer.Dimension) census {
	return census{by: by, take: tracer.TakeCensus, now: time.Now}
}

// read returns the last census, or a new one if it is time for it. One that failed
// is as good as another: what is too much now is too much in a second.
func (c *census) read(ctx context.Context) (result *tracer.Census, isNew bool, err error) {
	if !c.taken.IsZero() && c.now().Sub(c.taken) < max(censusInterval, censusShare*c.took) {
		return c.result, false, c.err
	}
	start := c.now()
	c.result, c.err = c.take(ctx, &tracer.CensusOptions{By: c.by})
	c.taken = c.now()
	c.took = c.taken.Sub(start)
	return c.result, true, c.err
}

// collect says when it was, and what of it is missing.
func (c *census) collect(ch chan<- prometheus.Metric) {
	by := c.by.String()
	ch <- gauge(censusTimeDesc, unixSeconds(c.result.Time), by)
	ch <- gauge(censusTookDesc, c.took.Seconds(), by)
	ch <- gauge(censusMissedDesc, float64(len(c.result.Missed.Netns)), by)
}

func addCounts(sum, more *tracer.StateCounts) {
	for s, n := range more {
		sum[s] += n
	}
}
