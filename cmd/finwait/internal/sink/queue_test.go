package sink

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

// keeper is a sink that keeps what it is given, or as much as it is told to.
type keeper struct {
	mu     sync.Mutex // guards what follows
	got    []uint64   // cookies, in the order in which they came
	sends  int
	keep   int   // of each batch, -1 for all
	err    error // what Send returns
	closed bool

	gate chan struct{} // Send waits for it, unless it is nil
}

func (k *keeper) Send(ctx context.Context, b *Batch) (Counts, error) {
	if k.gate != nil {
		select {
		case <-k.gate:
		case <-ctx.Done():
			return Counts{}, ctx.Err()
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sends++
	if k.keep >= 0 {
		return Counts{Transitions: uint64(k.keep)}, k.err
	}
	for i := range b.Transitions {
		k.got = append(k.got, b.Transitions[i].Cookie)
	}
	for i := range b.Conns {
		k.got = append(k.got, b.Conns[i].Cookie)
	}
	return b.Counts(), nil
}

func (k *keeper) Close() error {
	k.closed = true
	return errors.New("closed")
}

func transitions(from, n uint64) *Batch {
	b := &Batch{}
	for i := range n {
		b.Transitions = append(b.Transitions, tracer.Event{Cookie: from + i})
	}
	return b
}

func conns(from, n uint64) *Batch {
	b := &Batch{}
	for i := range n {
		b.Conns = append(b.Conns, tracer.Conn{Cookie: from + i})
	}
	return b
}

func testOptions() Options {
	return Options{Name: "test", Room: Counts{100, 100}, Batch: Counts{7, 5}, Log: slog.New(slog.DiscardHandler)}
}

func closeQueue(t *testing.T, q *Queue) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	qt.Check(t, qt.ErrorMatches(q.Close(ctx), "closed"))
}

// All records arrive once, in their order, in batches that are small enough.
func TestQueueOrder(t *testing.T) {
	k := &keeper{keep: -1}
	opts := testOptions()
	opts.Room = Counts{1000, 1000}
	q := Start(k, opts)
	for i := range uint64(23) {
		q.Put(transitions(i*10, 10))
	}
	q.Put(conns(230, 23))
	closeQueue(t, q)
	qt.Assert(t, qt.HasLen(k.got, 253))
	for i, cookie := range k.got {
		qt.Assert(t, qt.Equals(cookie, uint64(i)))
	}
	qt.Check(t, qt.IsTrue(k.closed))
	qt.Check(t, qt.Equals(q.Ledger(), Ledger{Put: Counts{230, 23}, Kept: Counts{230, 23}}))
}

// What does not fit is lost, and counted; what waited arrives.
func TestQueueFull(t *testing.T) {
	k := &keeper{keep: -1, gate: make(chan struct{})}
	q := Start(k, testOptions())
	q.Put(transitions(0, 250))
	q.Put(conns(1000, 3))
	ledger := q.Ledger()
	qt.Check(t, qt.Equals(ledger.Put, Counts{250, 3}))
	qt.Check(t, qt.Equals(ledger.QueueFull, Counts{150, 0}))
	close(k.gate)
	closeQueue(t, q)
	qt.Check(t, qt.Equals(q.Ledger().Kept, Counts{100, 3}))
	q.Put(transitions(0, 1)) // too late
	qt.Check(t, qt.Equals(q.Ledger().QueueFull, Counts{151, 0}))
}

// A sink that keeps a part says so, and the log is told once when it begins to
// fail, and once when that is over.
func TestQueueFailing(t *testing.T) {
	var text strings.Builder
	k := &keeper{keep: 2, err: errors.New("disk full")}
	opts := testOptions()
	opts.Log = slog.New(slog.NewTextHandler(&text, nil))
	q := Start(k, opts)
	for i := range uint64(3) {
		q.Put(transitions(0, 7))
		await(t, func() bool { return q.Ledger().Failed.Transitions == 5*(i+1) })
	}
	k.mu.Lock()
	k.keep, k.err = -1, nil
	k.mu.Unlock()
	q.Put(transitions(0, 7))
	closeQueue(t, q)
	qt.Check(t, qt.Equals(q.Ledger(), Ledger{Put: Counts{28, 0}, Kept: Counts{13, 0}, Failed: Counts{15, 0}}))
	qt.Check(t, qt.Equals(strings.Count(text.String(), "disk full"), 1), qt.Commentf("%s", text.String()))
	qt.Check(t, qt.Equals(strings.Count(text.String(), "records_lost=15"), 1), qt.Commentf("%s", text.String()))
}

// Close gives a sink that hangs no more time than it was told.
func TestQueueCloseHanging(t *testing.T) {
	k := &keeper{keep: -1, gate: make(chan struct{})}
	q := Start(k, testOptions())
	q.Put(transitions(0, 20))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	qt.Check(t, qt.ErrorMatches(q.Close(ctx), "closed"))
	qt.Check(t, qt.Equals(q.Ledger(), Ledger{Put: Counts{20, 0}, Failed: Counts{20, 0}}))
}

// A sink that does not even look at its context is given up, and what it has is lost.
func TestQueueCloseForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &stubborn{make(chan struct{})}
		q := Start(k, testOptions())
		q.Put(transitions(0, 20))
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		qt.Check(t, qt.ErrorMatches(q.Close(ctx), "it hangs, with 20 records"))
		qt.Check(t, qt.Equals(q.Ledger(), Ledger{Put: Counts{20, 0}, Failed: Counts{20, 0}}))
		close(k.hung)
		synctest.Wait()
		qt.Check(t, qt.Equals(q.Ledger(), Ledger{Put: Counts{20, 0}, Failed: Counts{20, 0}}))
	})
}

// stubborn is a sink whose Send waits for hung alone.
type stubborn struct{ hung chan struct{} }

func (s *stubborn) Send(_ context.Context, b *Batch) (Counts, error) {
	<-s.hung
	return b.Counts(), nil
}

func (*stubborn) Close() error { return nil }

// Records wait for others, but not for longer than they should.
func TestQueueDelay(t *testing.T) {
	k := &keeper{keep: -1}
	opts := testOptions()
	opts.Delay = time.Hour
	q := Start(k, opts)
	q.Put(transitions(0, 6))
	q.Put(transitions(6, 1)) // fills the batch
	await(t, func() bool { return q.Ledger().Kept.Transitions == 7 })
	qt.Check(t, qt.Equals(k.sends, 1))
	q.Put(transitions(7, 1))
	closeQueue(t, q)
	qt.Check(t, qt.HasLen(k.got, 8))

	opts.Delay = time.Millisecond
	q = Start(&keeper{keep: -1}, opts)
	q.Put(transitions(0, 1))
	await(t, func() bool { return q.Ledger().Kept.Transitions == 1 })
	closeQueue(t, q)
}

func await(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("has not come about")
		}
	}
}

// BenchmarkQueue puts and sends batches of 256 transitions.
func BenchmarkQueue(b *testing.B) {
	q := Start(discard{}, Options{Room: Counts{1 << 14, 1 << 13}, Batch: Counts{1024, 512}, Log: slog.New(slog.DiscardHandler)})
	batch := transitions(0, 256)
	b.ReportAllocs()
	for b.Loop() {
		q.Put(batch)
	}
	_ = q.Close(context.Background())
}

type discard struct{}

func (discard) Send(_ context.Context, b *Batch) (Counts, error) { return b.Counts(), nil }
func (discard) Close() error                                     { return nil }
