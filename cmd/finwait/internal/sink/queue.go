package sink

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// Options are those of a queue.
type Options struct {
	// Name is what the sink is called in logs and metrics.
	Name string
	// Room is how many records of each kind may wait.
	Room Counts
	// Batch is how many records of each kind Send gets at most.
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
	waiting Batch
	closing bool
	ledger  Ledger

	failing uint64 // records lost since the sink last worked; of the sending goroutine
}

// Start returns a queue that gives to s what is put into it.
func Start(s Sink, opts Options) *Queue {
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
	if q.closing {
		q.ledger.Put.add(b.Counts())
		q.ledger.QueueFull.add(b.Counts())
		return
	}
	before := q.waiting.Counts()
	transitions := min(len(b.Transitions), int(q.opts.Room.Transitions)-len(q.waiting.Transitions))
	conns := min(len(b.Conns), int(q.opts.Room.Conns)-len(q.waiting.Conns))
	q.waiting.Transitions = append(q.waiting.Transitions, b.Transitions[:transitions]...)
	q.waiting.Conns = append(q.waiting.Conns, b.Conns[:conns]...)
	q.ledger.Put.add(b.Counts())
	q.ledger.QueueFull.add(b.Counts().sub(Counts{uint64(transitions), uint64(conns)}))
	if before.Total() == 0 || q.filled() {
		q.notify()
	}
}

// filled tells whether a batch is full. Called with mu held.
func (q *Queue) filled() bool {
	return len(q.waiting.Transitions) >= int(q.opts.Batch.Transitions) || len(q.waiting.Conns) >= int(q.opts.Batch.Conns)
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

// Close sends what waits, until ctx is done, counts what is left as lost, and
// closes the sink.
func (q *Queue) Close(ctx context.Context) error {
	q.mu.Lock()
	q.closing = true
	q.mu.Unlock()
	q.notify()
	defer context.AfterFunc(ctx, q.stop)()
	<-q.done
	q.stop()
	return q.sink.Close()
}

// run sends until the queue is closed and empty.
func (q *Queue) run(ctx context.Context) {
	defer close(q.done)
	var sending Batch // changes places with waiting
	for {
		closing := q.gather(ctx)
		q.mu.Lock()
		sending, q.waiting = q.waiting, Batch{sending.Transitions[:0], sending.Conns[:0]}
		q.mu.Unlock()
		if closing && sending.Counts().Total() == 0 {
			return
		}
		q.send(ctx, sending)
	}
}

// gather waits until there is a batch to send, and tells whether the queue is
// closing.
func (q *Queue) gather(ctx context.Context) (closing bool) {
	var due <-chan time.Time
	for {
		q.mu.Lock()
		waiting, filled, closing := q.waiting.Counts().Total() > 0, q.filled(), q.closing
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

// send gives b to the sink, in parts that are small enough.
func (q *Queue) send(ctx context.Context, b Batch) {
	for b.Counts().Total() > 0 {
		part := Batch{
			Transitions: b.Transitions[:min(len(b.Transitions), int(q.opts.Batch.Transitions))],
			Conns:       b.Conns[:min(len(b.Conns), int(q.opts.Batch.Conns))],
		}
		b = Batch{b.Transitions[len(part.Transitions):], b.Conns[len(part.Conns):]}
		kept, err := q.sendPart(ctx, &part)
		q.mu.Lock()
		q.ledger.Kept.add(kept)
		q.ledger.Failed.add(part.Counts().sub(kept))
		q.mu.Unlock()
		q.tell(part.Counts().sub(kept).Total(), err)
	}
}

func (q *Queue) sendPart(ctx context.Context, part *Batch) (Counts, error) {
	if err := ctx.Err(); err != nil {
		return Counts{}, err
	}
	return q.sink.Send(ctx, part)
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
