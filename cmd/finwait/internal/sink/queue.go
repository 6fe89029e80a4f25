package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Options are those of a queue.
type Options struct {
	// Name is what the sink is called in logs and metrics.
	Name string
	// Room is how many records of each kind may wait.
	Room Counts
	// Batch is how many records of each kind Send gets at most, one at least.
	Batch Counts
	// Delay is how long to wait for a batch to fill before it is sent.
	Delay time.Duration
	// Log is told when the sink fails, and when it works again.
	Log *slog.Logger
}

// A Queue gives records to a sink, in its own time. Its methods may be called
// from several goroutines.
type Queue struct {
	sink Sink
	opts Options
	stop context.CancelFunc // has a Send that waits return
	done chan struct{}      // closed when the last Send has returned
	wake chan struct{}      // has an element when there is something new to do

	mu      sync.Mutex // guards what follows
	chunks  []*Batch   // that wait, the oldest first; only the last has room
	spares  []*Batch   // empty ones, to be used again
	waiting Counts
	closing bool
	ledger  Ledger

	abandoned bool // the ledger is complete, whatever Send says

	failing uint64 // records lost since the sink last worked; of the sending goroutine
}

// Start returns a queue that gives to s what is put into it.
func Start(s Sink, opts Options) *Queue {
	opts.Batch = Counts{max(opts.Batch.Transitions, 1), max(opts.Batch.Conns, 1)}
	ctx, stop := context.WithCancel(context.Background())
	q := &Queue{sink: s, opts: opts, stop: stop, done: make(chan struct{}), wake: make(chan struct{}, 1)}
	go q.run(ctx)
	return q
}

// Name returns what the sink is called.
func (q *Queue) Name() string { return q.opts.Name }

// Put copies the records into the queue. It does not wait: what finds no room is
// counted as lost.
func (q *Queue) Put(b *Batch) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ledger.Put.add(b.Counts())
	var taken Counts
	if !q.closing {
		taken.Transitions = min(uint64(len(b.Transitions)), q.opts.Room.Transitions-q.waiting.Transitions)
		taken.Conns = min(uint64(len(b.Conns)), q.opts.Room.Conns-q.waiting.Conns)
	}
	q.ledger.QueueFull.add(b.Counts().sub(taken))
	if taken.Total() == 0 {
		return
	}
	first := q.waiting.Total() == 0
	q.add(&Batch{b.Transitions[:taken.Transitions], b.Conns[:taken.Conns]})
	q.waiting.add(taken)
	if first || q.filled() {
		q.notify()
	}
}

// add copies records into the last chunk, and into others where that is full.
// Called with mu held.
func (q *Queue) add(b *Batch) {
	rest := *b
	for {
		chunk := q.last()
		transitions := min(len(rest.Transitions), int(q.opts.Batch.Transitions)-len(chunk.Transitions))
		conns := min(len(rest.Conns), int(q.opts.Batch.Conns)-len(chunk.Conns))
		chunk.Transitions = appendTo(chunk.Transitions, rest.Transitions[:transitions], q.opts.Batch.Transitions)
		chunk.Conns = appendTo(chunk.Conns, rest.Conns[:conns], q.opts.Batch.Conns)
		rest = Batch{rest.Transitions[transitions:], rest.Conns[conns:]}
		if rest.Counts().Total() == 0 {
			return
		}
		q.extend()
	}
}

// last returns the chunk that has room, if any has.
func (q *Queue) last() *Batch {
	if len(q.chunks) == 0 {
		q.extend()
	}
	return q.chunks[len(q.chunks)-1]
}

// extend appends an empty chunk.
func (q *Queue) extend() {
	if n := len(q.spares); n > 0 {
		q.chunks = append(q.chunks, q.spares[n-1])
		q.spares = q.spares[:n-1]
		return
	}
	q.chunks = append(q.chunks, &Batch{})
}

// maxSpares is how many empty chunks are kept: one is filled while another is sent.
const maxSpares = 2

// take takes the oldest chunk out, nil if none waits.
func (q *Queue) take() *Batch {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.chunks) == 0 {
		return nil
	}
	chunk := q.chunks[0]
	q.chunks = slices.Delete(q.chunks, 0, 1)
	q.waiting = q.waiting.sub(chunk.Counts())
	return chunk
}

// settle notes what has become of a chunk, which may be used again.
func (q *Queue) settle(chunk *Batch, kept Counts) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.abandoned {
		return
	}
	q.ledger.Kept.add(kept)
	q.ledger.Failed.add(chunk.Counts().sub(kept))
	if len(q.spares) < maxSpares {
		q.spares = append(q.spares, &Batch{chunk.Transitions[:0], chunk.Conns[:0]})
	}
}

// appendTo appends to a slice that is never to hold more than limit.
func appendTo[T any](to, from []T, limit uint64) []T {
	if to == nil && len(from) > 0 {
		to = make([]T, 0, limit)
	}
	return append(to, from...)
}

// filled tells whether there is a batch that need not wait for more. Called with
// mu held.
func (q *Queue) filled() bool {
	return len(q.chunks) > 1 || q.waiting.Transitions >= q.opts.Batch.Transitions || q.waiting.Conns >= q.opts.Batch.Conns
}

func (q *Queue) notify() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Ledger returns what became of the records so far.
func (q *Queue) Ledger() Ledger {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.ledger
}

// hangs is how long after its context is done a Send may take to return. One that
// does not is given up, since a write to a file waits for as long as the file does.
const hangs = time.Second

// Close sends what waits, until ctx is done, counts what is left as lost, and
// closes the sink, unless that hangs.
func (q *Queue) Close(ctx context.Context) error {
	q.mu.Lock()
	q.closing = true
	q.mu.Unlock()
	q.notify()
	defer context.AfterFunc(ctx, q.stop)()
	select {
	case <-q.done:
		q.stop()
		return q.sink.Close()
	case <-ctx.Done():
	}
	select {
	case <-q.done:
		return q.sink.Close()
	case <-time.After(hangs):
		return q.abandon()
	}
}

// abandon counts as lost what a sink has that hangs, and what waits for it.
func (q *Queue) abandon() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	lost := q.ledger.Put.sub(q.ledger.Kept).sub(q.ledger.QueueFull).sub(q.ledger.Failed)
	q.ledger.Failed.add(lost)
	q.abandoned = true
	return fmt.Errorf("it hangs, with %d records", lost.Total())
}

// run sends until the queue is closed and empty.
func (q *Queue) run(ctx context.Context) {
	defer close(q.done)
	for {
		closing := q.gather(ctx)
		chunk := q.take()
		if chunk == nil {
			if closing {
				return
			}
			continue
		}
		lost := chunk.Counts()
		kept, err := q.send(ctx, chunk)
		q.settle(chunk, kept)
		q.tell(lost.sub(kept).Total(), err)
	}
}

// gather waits until there is a batch to send, and tells whether the queue is
// closing.
func (q *Queue) gather(ctx context.Context) (closing bool) {
	var due <-chan time.Time
	for {
		q.mu.Lock()
		waiting, filled, closing := len(q.chunks) > 0, q.filled(), q.closing
		q.mu.Unlock()
		if closing || waiting && (filled || q.opts.Delay <= 0) {
			return closing
		}
		if waiting && due == nil {
			due = time.After(q.opts.Delay)
		}
		select {
		case <-q.wake:
		case <-due:
			return false
		case <-ctx.Done():
			return true
		}
	}
}

// send gives a chunk to the sink, if there is still time.
func (q *Queue) send(ctx context.Context, chunk *Batch) (Counts, error) {
	if err := ctx.Err(); err != nil {
		return Counts{}, err
	}
	return q.sink.Send(ctx, chunk)
}

// tell logs that the sink fails, once, and that it works again.
func (q *Queue) tell(lost uint64, err error) {
	switch {
	case errors.Is(err, context.Canceled):
	case err != nil && q.failing == 0:
		q.opts.Log.Error("records are lost, until it works again", "sink", q.opts.Name, "error", err)
	case err == nil && q.failing > 0:
		q.opts.Log.Info("works again", "sink", q.opts.Name, "records_lost", q.failing)
		q.failing = 0
	}
	q.failing += lost
}
