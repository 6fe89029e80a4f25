// Package measure finds out what tracing costs on this host, by doing it.
package measure

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/finwait/finwait/cmd/finwait/internal/demo"
	"github.com/finwait/finwait/tracer"
)

// connections is how many are made to be traced: enough for a mean, and done in
// a tenth of a second.
const connections = 200

// Cost is what tracing by one tier costs. It is a plain value.
type Cost struct {
	// Programs is how many are loaded.
	Programs int
	// MapMemory is the kernel memory of its maps in bytes. Valid only if
	// MapMemoryKnown: before Linux 6.4 the kernel does not tell it of all.
	MapMemory      uint64
	MapMemoryKnown bool

	// RunErr is why the programs' run time could not be measured, nil if it
	// was. What follows is valid only then.
	RunErr error
	// Connections is how many were made, and Transitions how many the tracer
	// saw meanwhile, those of others on the host too.
	Connections int
	Transitions uint64
	// Runs has the programs that ran meanwhile, for whatever reason, the one
	// that took most time first.
	Runs []tracer.ProgramStats
}

// RunTime returns the run time of all programs together.
func (c *Cost) RunTime() (sum time.Duration) {
	for i := range c.Runs {
		sum += c.Runs[i].RunTime
	}
	return sum
}

// PerTransition returns the run time of all programs for each transition. known
// is false if it was not measured.
func (c *Cost) PerTransition() (each time.Duration, known bool) {
	if c.RunErr != nil || c.Transitions == 0 {
		return 0, false
	}
	return c.RunTime() / time.Duration(c.Transitions), true
}

// Tracer has t trace connections, which it makes in a network namespace of
// their own. For that time, some tenths of a second, the kernel's statistics of
// BPF programs are on, which makes every program on the host a little slower.
//
// Nothing else may ask for t's events meanwhile. Without CAP_SYS_ADMIN and
// CAP_NET_ADMIN there is a Cost with a RunErr. If ctx is done first, the error
// is that of ctx.
func Tracer(ctx context.Context, t *tracer.Tracer) (*Cost, error) {
	cost := &Cost{}
	stats, err := t.Stats()
	if err != nil {
		return nil, err
	}
	cost.Programs = len(stats.Programs)
	cost.MapMemory, cost.MapMemoryKnown = stats.MapMemory()
	cost.RunErr = cost.measureRuns(ctx, t)
	return cost, ctx.Err()
}

// measureRuns makes connections and reads what the programs did meanwhile.
func (c *Cost) measureRuns(ctx context.Context, t *tracer.Tracer) error {
	// It waits for the look at the sockets that are there, which is not what
	// is to be measured.
	if _, err := t.Gauges(ctx); err != nil {
		return err
	}
	running, err := enableStats()
	if err != nil {
		return fmt.Errorf("turn on the kernel's statistics of programs: %w", err)
	}
	before, err := read(t)
	err = errors.Join(err, traceConnections(ctx, t))
	after, readErr := read(t)
	if err := errors.Join(err, readErr, running.Close()); err != nil {
		return err
	}
	c.Connections = connections
	c.Transitions = after.seen - before.seen
	c.Runs = since(before.programs, after.programs)
	return nil
}

// traceConnections makes connections while their events are read.
func traceConnections(ctx context.Context, t *tracer.Tracer) error {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		var failed error
		for _, err := range t.Events(ctx) {
			failed = errors.Join(failed, err)
		}
		ended <- failed
	}()
	err := demo.Connect(ctx, connections)
	if err != nil {
		err = fmt.Errorf("make connections: %w", err)
	} else {
		_, err = t.Gauges(ctx) // has mini-sockets tell what they would tell later
	}
	cancel()
	return errors.Join(err, <-ended)
}

// reading is what was counted up to a moment.
type reading struct {
	seen     uint64
	programs []tracer.ProgramStats
}

func read(t *tracer.Tracer) (reading, error) {
	counters, err := t.Counters()
	if err != nil {
		return reading{}, err
	}
	stats, err := t.Stats()
	if err != nil {
		return reading{}, err
	}
	return reading{counters.Total(), stats.Programs}, nil
}
