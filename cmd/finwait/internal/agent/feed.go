package agent

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/finwait/finwait/cmd/finwait/internal/sink"
	"github.com/finwait/finwait/tracer"
)

// feedRoom is how many records are handed to the queues at a time, at most: few
// enough to stay in the cache.
const feedRoom = 256

// feed hands records to put, in batches: when there are enough, or none waits.
type feed[T any] struct {
	items   iter.Seq2[*T, error]
	pending func() bool
	put     func([]T)
	beat    func()
}

// run returns when there are no more, with an error if that is because they cannot
// be read.
func (f *feed[T]) run() error {
	batch := make([]T, 0, feedRoom)
	for item, err := range f.items {
		if err != nil {
			return err
		}
		batch = append(batch, *item)
		if len(batch) == cap(batch) || !f.pending() {
			f.put(batch)
			batch = batch[:0]
			f.beat()
		}
	}
	return nil
}

// startFeeds has records read, each kind by itself.
func (a *Agent) startFeeds() {
	transitions := feed[tracer.Event]{
		items:   a.tracer.Events(context.Background()),
		pending: a.tracer.Pending,
		put:     func(events []tracer.Event) { a.put(&sink.Batch{Transitions: events}) },
		beat:    a.alive.Beat,
	}
	conns := feed[tracer.Conn]{
		items:   a.tracer.Conns(context.Background()),
		pending: a.tracer.PendingConns,
		put:     func(conns []tracer.Conn) { a.put(&sink.Batch{Conns: conns}) },
		beat:    a.alive.Beat,
	}
	if a.cfg.Transitions {
		a.feeds.Go(func() { a.read("transitions", transitions.run) })
	}
	if a.cfg.Conns != nil {
		a.feeds.Go(func() { a.read("connections", conns.run) })
	}
	a.work.Go(a.beatIdle)
}

func (a *Agent) read(what string, run func() error) {
	if err := run(); err != nil {
		a.fail(fmt.Errorf("read %s: %w", what, err))
	}
}

func (a *Agent) put(b *sink.Batch) {
	for _, q := range a.queues {
		q.Put(b)
	}
}

// beatIdle beats for feeds that have nothing to read.
func (a *Agent) beatIdle() {
	tick := time.NewTicker(silence / 10)
	defer tick.Stop()
	for {
		select {
		case <-a.ctx.Done():
			return
		case <-tick.C:
			if !a.tracer.Pending() && !a.tracer.PendingConns() {
				a.alive.Beat()
			}
		}
	}
}
