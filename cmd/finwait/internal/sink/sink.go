// Package sink carries records from the tracer to where they are kept. Each sink
// has a queue of its own, so that one that is slow or broken loses its own
// records alone, and counts them.
package sink

import (
	"context"

	"github.com/finwait/finwait/tracer"
)

// Batch is some records, in the order in which they were told.
type Batch struct {
	Transitions []tracer.Event
	Conns       []tracer.Conn
}

// Counts returns how many there are.
func (b *Batch) Counts() Counts {
	return Counts{Transitions: uint64(len(b.Transitions)), Conns: uint64(len(b.Conns))}
}

// Counts is a number of records of each kind.
type Counts struct{ Transitions, Conns uint64 }

// Total returns the number of all records.
func (c Counts) Total() uint64 { return c.Transitions + c.Conns }

func (c *Counts) add(other Counts) {
	c.Transitions += other.Transitions
	c.Conns += other.Conns
}

func (c Counts) sub(other Counts) Counts {
	return Counts{c.Transitions - other.Transitions, c.Conns - other.Conns}
}

// A Sink keeps records. Its methods are called by one goroutine at a time.
type Sink interface {
	// Send keeps a batch, which is valid until it returns. It may wait, but not
	// beyond ctx. It returns how many of the records are kept for certain; the
	// others are lost, and err says why, nil if none is.
	Send(ctx context.Context, b *Batch) (kept Counts, err error)
	// Close ends the sink. No Send comes after it.
	Close() error
}

// Ledger says what became of the records that were put into a queue. Those that
// are in none of the others wait.
type Ledger struct {
	Put       Counts
	Kept      Counts
	QueueFull Counts // lost: the sink was too slow
	Failed    Counts // lost: the sink could not keep them
}
