package main

import (
	"context"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/finwait/finwait/cmd/finwait/internal/measure"
	"github.com/finwait/finwait/cmd/finwait/internal/output"
	"github.com/finwait/finwait/tracer"
)

// selfStats writes what the run itself costs, if --stats asks for that: at the
// end, and whenever a signal asks.
type selfStats struct {
	wanted bool
	begin  time.Time
	w      io.Writer
	tracer atomic.Pointer[tracer.Tracer] // nil while there is none

	signals chan os.Signal
	done    chan struct{}
	work    sync.WaitGroup
	ending  sync.Once
}

// newSelfStats adds the flag to every command.
func newSelfStats(root *cobra.Command, w io.Writer) *selfStats {
	s := &selfStats{begin: time.Now(), w: w, signals: make(chan os.Signal, 1), done: make(chan struct{})}
	root.PersistentFlags().BoolVar(&s.wanted, "stats", false, "write what finwait itself costs to standard error, at the end"+statsSignalHelp)
	return s
}

type selfStatsKey struct{}

// context hands s to where tracers are made.
func (s *selfStats) context(ctx context.Context) context.Context {
	return context.WithValue(ctx, selfStatsKey{}, s)
}

// start has signals answered. The flags are parsed.
func (s *selfStats) start() {
	if !s.wanted {
		return
	}
	notifyStats(s.signals)
	s.work.Go(func() {
		for {
			select {
			case <-s.signals:
				s.write()
			case <-s.done:
				return
			}
		}
	})
}

// end writes for the last time, when it is called first. Signals stay caught:
// one that comes late must not kill.
func (s *selfStats) end() {
	s.ending.Do(func() {
		close(s.done)
		s.work.Wait()
		if s.wanted {
			s.write()
		}
	})
}

// write writes all in one piece, for others write there too.
func (s *selfStats) write() {
	stats := output.Stats{Wall: time.Since(s.begin), Process: measure.Self()}
	if t := s.tracer.Load(); t != nil {
		stats.Tracer, stats.TracerErr = t.Stats()
	}
	_, _ = s.w.Write(output.AppendStats(nil, &stats)) // nothing is left to complain to
}

// newTracer starts tracing; done ends it. What is wrong with the options is a
// usage error.
func newTracer(ctx context.Context, opts *tracer.Options) (t *tracer.Tracer, done func(), err error) {
	if t, err = openTracer(opts); err != nil {
		return nil, nil, err
	}
	s, ok := ctx.Value(selfStatsKey{}).(*selfStats)
	if !ok {
		return t, func() { _ = t.Close() }, nil
	}
	s.tracer.Store(t)
	return t, func() {
		s.end() // while what costs is still there
		_ = t.Close()
	}, nil
}
