package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/finwait/finwait/cmd/finwait/internal/demo"
	"github.com/finwait/finwait/cmd/finwait/internal/output"
	"github.com/finwait/finwait/tracer"
)

// streamFlags are what the commands have in common that print what the tracer
// tells, as it tells it.
type streamFlags struct {
	evidence string
	format   string
	noHeader bool
	duration time.Duration
	count    uint64
	buffer   int
	demo     bool
	replay   []string
}

func (f *streamFlags) add(cmd *cobra.Command, noun string) {
	flags := cmd.Flags()
	flags.StringVar(&f.evidence, "evidence", "", "what is to show TIME_WAIT and half-open connections: probe or timer (default the best that the kernel takes)")
	flags.StringVar(&f.format, "format", "table", "output `format`: table, json, csv or logfmt")
	flags.BoolVar(&f.noHeader, "no-header", false, "print no header line")
	flags.DurationVar(&f.duration, "duration", 0, "stop after this `time`")
	flags.Uint64Var(&f.count, "count", 0, "stop after `N` "+noun+" are printed")
	flags.IntVar(&f.buffer, "buffer", 8, "`MiB` of kernel buffer, a power of two; more of it loses less in a burst")
	flags.BoolVar(&f.demo, "demo", false, "also make connections to look at, in a network namespace of their own")
	flags.StringArrayVar(&f.replay, "replay", nil, "read "+noun+" from this `file`, which --format json has written, instead of tracing; gzip and zstd are understood, - is standard input")
	completeWords(cmd, "format", output.Formats)
	completeWords(cmd, "evidence", []string{"probe", "timer"})
}

// options returns the tracer's options, but for those of the command itself.
func (f *streamFlags) options(cmd *cobra.Command, filter *filterFlags) (*tracer.Options, error) {
	parsed, err := filter.parse(cmd.Flags())
	switch {
	case err != nil:
		return nil, err
	case f.duration < 0, cmd.Flags().Changed("duration") && f.duration == 0:
		return nil, usagef("--duration %v is not a time to run for, such as 10s", f.duration)
	case cmd.Flags().Changed("count") && f.count == 0:
		return nil, usagef("--count 0 would print nothing")
	}
	if _, err := bufferBytes(f.buffer); err != nil {
		return nil, err
	}
	evidence, err := parseEvidence(cmd.Flags(), f.evidence)
	return &tracer.Options{Filter: parsed, Evidence: evidence}, err
}

// bufferBytes returns the size of --buffer.
func bufferBytes(mib int) (int, error) {
	if mib < 1 || mib > 1024 || mib&(mib-1) != 0 {
		return 0, usagef("--buffer %d is not a power of two from 1 to 1024", mib)
	}
	return mib << 20, nil
}

// parseEvidence returns what --evidence asks for, 0 if it is not given.
func parseEvidence(flags *pflag.FlagSet, word string) (tracer.Evidence, error) {
	for _, e := range []tracer.Evidence{tracer.EvidenceProbe, tracer.EvidenceTimer} {
		if word == e.String() {
			return e, nil
		}
	}
	if flags.Changed("evidence") {
		return 0, usagef("unknown --evidence %q (want probe or timer)", word)
	}
	return 0, nil
}

// openTracer starts tracing. What is wrong with the options is a usage error.
//
// To load programs takes more memory than all that comes after it, and so it is
// given back sooner than Go would.
func openTracer(opts *tracer.Options) (*tracer.Tracer, error) {
	const soon = 45 // percent more than what is in use
	if percent := debug.SetGCPercent(soon); percent >= 0 && percent < soon {
		debug.SetGCPercent(percent)
	} else {
		defer debug.SetGCPercent(percent)
	}
	t, err := tracer.New(opts)
	go debug.FreeOSMemory()
	var mistake *tracer.OptionsError
	if errors.As(err, &mistake) {
		return nil, usagef("%w", err)
	}
	return t, err
}

// stream is what a command prints.
type stream[T any] struct {
	noun    string // in the plural
	items   func(context.Context, *tracer.Tracer) iter.Seq2[*T, error]
	pending func(*tracer.Tracer) bool
	// encode returns the header of the format, and what appends an item in it.
	encode  func(format string, opts output.Options) (head []byte, add func([]byte, *T) []byte, err error)
	account func(*tracer.Ledger) account
	// recorded returns what chooses from records that were read.
	recorded func(*tracer.Options) recorded[T]
}

// runStream prints what s has, of a new tracer or of what one has recorded, and
// then the ledger.
func runStream[T any](cmd *cobra.Command, flags *streamFlags, opts *tracer.Options, s stream[T]) error {
	if len(flags.replay) > 0 {
		return runReplay(cmd, flags, opts, s)
	}
	cgroups, noCgroups := tracer.NewCgroups() // nil knows none
	defer func() { _ = cgroups.Close() }()
	printer, err := newPrinter(cmd.OutOrStdout(), flags, output.Options{Cgroup: cgroups.Lookup}, s)
	if err != nil {
		return err
	}
	t, done, err := newTracer(cmd.Context(), opts)
	if err != nil {
		return err
	}
	defer done()
	stderr := cmd.ErrOrStderr()
	announce(stderr, t)
	if noCgroups != nil && flags.format != "table" {
		fmt.Fprintf(stderr, "finwait: no container_id and pod_uid: %v\n", noCgroups)
	}
	if flags.demo {
		stop, err := demo.Start()
		if err != nil {
			return fmt.Errorf("start the demo: %w", err)
		}
		defer stop()
		fmt.Fprintln(stderr, "finwait: demo: making connections in a network namespace of its own; they are not the host's")
	}
	err = errors.Join(s.print(cmd.Context(), t, printer, flags), t.Detach())
	return errors.Join(err, writeLedger(stderr, t, s, printer))
}

// announce says how the states are known, and what that costs.
func announce(w io.Writer, t *tracer.Tracer) {
	switch t.Evidence() {
	case tracer.EvidenceProbe:
		fmt.Fprintln(w, "finwait: tracing; TIME_WAIT and half-open connections by probes at kernel functions")
	case tracer.EvidenceTimer:
		fmt.Fprintf(w, "finwait: tracing; TIME_WAIT and half-open connections by the timer tracepoints (when nobody owns the socket, FIN_WAIT2→TIME_WAIT may come up to %v late, and CLOSE→NEW_SYN_RECV up to a second, with their true times)\n", tracer.SweepInterval)
	}
}

// print prints until ctx is done, the time is up or enough is printed. What was
// traced up to then is printed still.
func (s *stream[T]) print(ctx context.Context, t *tracer.Tracer, p *printer[T], flags *streamFlags) error {
	if flags.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, flags.duration)
		defer cancel()
	}
	defer context.AfterFunc(ctx, func() { _ = t.Detach() })() // runStream asks for the error
	return p.print(s.items(context.Background(), t), func() bool { return s.pending(t) }, flags.count)
}
