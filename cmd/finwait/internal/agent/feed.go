package agent

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/finwait/finwait/cmd/finwait/internal/lifecycle"
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
	alive   *lifecycle.Heartbeat
}

// run returns when there are no more, with an error if that is because they cannot
// be read.
func (f *feed[T]) run() error {
	batch := make([]T, 0, feedRoom)
	hand := func() {
		f.put(batch)
		batch = batch[:0]
		f.alive.Beat()
	}
	defer hand()
	for item, err := range f.items {
		if err != nil {
			return err
		}
		batch = append(batch, *item)
		if len(batch) == cap(batch) || !f.pending() {
			hand()
		}
	}
	return nil
}

// beatIdle beats for a feed that has nothing to read, until ctx is done.
func (f *feed[T]) beatIdle(ctx context.Context) {
	tick := time.NewTicker(silence / 10)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if !f.pending() {
				f.alive.Beat()
			}
		}
	}
}

// startFeeds has records read, each kind by itself.
func (a *Agent) startFeeds() {
	if a.cfg.Transitions {
		startFeed(a, "transitions", &feed[tracer.Event]{
			items: a.tracer.Events(context.Background()), pending: a.tracer.Pending,
			put: func(events []tracer.Event) { a.put(&sink.Batch{Transitions: events}) },
		})
	}
	if a.cfg.Conns != nil {
		startFeed(a, "connections", &feed[tracer.Conn]{
			items: a.tracer.Conns(context.Background()), pending: a.tracer.PendingConns,
			put: func(conns []tracer.Conn) { a.put(&sink.Batch{Conns: conns}) },
		})
	}
}

func startFeed[T any](a *Agent, what string, f *feed[T]) {
	f.alive = lifecycle.NewHeartbeat(silence)
	a.alive = append(a.alive, f.alive)
	a.feeds.Go(func() {
		if err := f.run(); err != nil {
			a.fail(fmt.Errorf("read %s: %w", what, err))
		}
	})
	a.work.Go(func() { f.beatIdle(a.ctx) })
}

// isAlive returns an error if records wait, of one kind or the other, that nobody
// reads.
func (a *Agent) isAlive() error {
	for _, alive := range a.alive {
		if err := alive.Check(); err != nil {
			return err
		}
	}
	return nil
}

func (a *Agent) put(b *sink.Batch) {
	for _, q := range a.queues {
		q.Put(b)
	}
}
