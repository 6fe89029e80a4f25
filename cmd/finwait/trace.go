package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/finwait/finwait/cmd/finwait/internal/demo"
	"github.com/finwait/finwait/cmd/finwait/internal/output"
	"github.com/finwait/finwait/tracer"
)

type traceFlags struct {
	filter   filterFlags
	evidence string
	format   string
	noHeader bool
	duration time.Duration
	count    uint64
	buffer   int
	demo     bool
}

func newTraceCommand() *cobra.Command {
	var flags traceFlags
	cmd := &cobra.Command{
		Use:   "trace",
		Short: "Stream TCP state transitions",
		Long: `Prints every TCP state transition of the host as it happens: when, whose socket,
from which state to which, and how long it was in the first. Filters run in the
kernel; several values of one are alternatives, several filters must all match.

The owner is the process that called connect or listen, or that had the socket
open when finwait began, and is blank when it is not known. Ends with Ctrl-C and then says on standard error how many transitions
were seen, printed and lost.`,
		Example: `  finwait trace --state TIME_WAIT
  finwait trace --transition FIN_WAIT2:TIME_WAIT,CLOSING:TIME_WAIT --format json
  finwait trace --lport 443 --addr 10.0.0.0/8 --duration 30s
  finwait trace --comm nginx --count 100 --format csv > nginx.csv
  finwait trace --demo`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runTrace(cmd, &flags) },
	}
	flags.filter.add(cmd)
	f := cmd.Flags()
	f.StringVar(&flags.evidence, "evidence", "", "what is to show TIME_WAIT and half-open connections: probe or timer (default the best that the kernel takes)")
	f.StringVar(&flags.format, "format", "table", "output `format`: table, json, csv or logfmt")
	f.BoolVar(&flags.noHeader, "no-header", false, "print no header line")
	f.DurationVar(&flags.duration, "duration", 0, "stop after this `time`")
	f.Uint64Var(&flags.count, "count", 0, "stop after `N` transitions are printed")
	f.IntVar(&flags.buffer, "buffer", 16, "`MiB` of kernel buffer, a power of two; more of it loses less in a burst")
	f.BoolVar(&flags.demo, "demo", false, "also make connections to look at, in a network namespace of their own")
	completeWords(cmd, "format", output.Formats)
	completeWords(cmd, "evidence", []string{"probe", "timer"})
	return cmd
}

func (f *traceFlags) options(cmd *cobra.Command) (*tracer.Options, error) {
	filter, err := f.filter.parse(cmd.Flags())
	switch {
	case err != nil:
		return nil, err
	case f.duration < 0, cmd.Flags().Changed("duration") && f.duration == 0:
		return nil, usagef("--duration %v is not a time to run for, such as 10s", f.duration)
	case cmd.Flags().Changed("count") && f.count == 0:
		return nil, usagef("--count 0 would print nothing")
	case f.buffer < 1 || f.buffer > 1024 || f.buffer&(f.buffer-1) != 0:
		return nil, usagef("--buffer %d is not a power of two from 1 to 1024", f.buffer)
	}
	evidence, err := parseEvidence(cmd.Flags(), f.evidence)
	return &tracer.Options{Filter: filter, EventBuffer: f.buffer << 20, Evidence: evidence}, err
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

func runTrace(cmd *cobra.Command, flags *traceFlags) error {
	opts, err := flags.options(cmd)
	if err != nil {
		return err
	}
	printer, err := newPrinter(cmd.OutOrStdout(), flags)
	if err != nil {
		return err
	}
	t, err := tracer.New(opts)
	var mistake *tracer.OptionsError
	if errors.As(err, &mistake) {
		return usagef("%w", err)
	}
	if err != nil {
		return err
	}
	defer t.Close()
	stderr := cmd.ErrOrStderr()
	announce(stderr, t)
	if flags.demo {
		stop, err := demo.Start()
		if err != nil {
			return fmt.Errorf("start the demo: %w", err)
		}
		defer stop()
		fmt.Fprintln(stderr, "finwait: demo: making connections in a network namespace of its own; they are not the host's")
	}
	err = errors.Join(stream(cmd.Context(), t, printer, flags), t.Detach())
	return errors.Join(err, writeLedger(stderr, t, printer))
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

// stream prints events until ctx is done, the time is up or enough are
// printed. What was traced up to then is printed still.
func stream(ctx context.Context, t *tracer.Tracer, p *printer, flags *traceFlags) error {
	if flags.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, flags.duration)
		defer cancel()
	}
	defer context.AfterFunc(ctx, func() { _ = t.Detach() })() // runTrace asks for the error
	if err := p.header(); err != nil {
		return err
	}
	for ev, err := range t.Events(context.Background()) {
		if err != nil {
			return err
		}
		p.add(ev)
		done := flags.count > 0 && p.taken == flags.count
		if done || p.full() || !t.Pending() {
			if err := p.flush(); err != nil {
				return err
			}
		}
		if done {
			break
		}
	}
	return p.flush()
}

// printBuffer is how much is gathered before it is written, while events wait.
const printBuffer = 64 << 10

// printer writes events, and counts those that it has written.
type printer struct {
	w       io.Writer
	encoder output.Encoder
	head    []byte // the header line, repeated for people; empty for none
	every   uint64 // events between header lines; 0 for one header
	buf     []byte

	taken   uint64 // given to the printer
	written uint64 // of those, written
}

func newPrinter(w io.Writer, flags *traceFlags) (*printer, error) {
	p := &printer{w: w, buf: make([]byte, 0, printBuffer+4096)}
	opts := output.Options{}
	if width, height, ok := terminal(w); ok {
		opts.Color = os.Getenv("NO_COLOR") == ""
		opts.Width = width
		p.every = uint64(max(height-1, 10))
	}
	var err error
	if p.encoder, err = output.New(flags.format, opts); err != nil {
		return nil, usagef("--format: %w", err)
	}
	if !flags.noHeader {
		p.head = p.encoder.AppendHeader(nil)
	}
	if flags.format != "table" {
		p.every = 0
	}
	return p, nil
}

// terminal tells whether w is one, and its size.
func terminal(w io.Writer) (width, height int, ok bool) {
	file, isFile := w.(*os.File)
	if !isFile || !term.IsTerminal(int(file.Fd())) {
		return 0, 0, false
	}
	width, height, err := term.GetSize(int(file.Fd()))
	if err != nil {
		return 80, 24, true
	}
	return width, height, true
}

func (p *printer) header() error {
	p.buf = append(p.buf, p.head...)
	return p.flush()
}

func (p *printer) add(ev *tracer.Event) {
	if p.every > 0 && p.taken > 0 && p.taken%p.every == 0 {
		p.buf = append(p.buf, p.head...)
	}
	p.buf = p.encoder.AppendEvent(p.buf, ev)
	p.taken++
}

func (p *printer) full() bool { return len(p.buf) >= printBuffer }

func (p *printer) flush() error {
	if len(p.buf) == 0 {
		return nil
	}
	_, err := p.w.Write(p.buf)
	p.buf = p.buf[:0]
	if err != nil {
		return fmt.Errorf("write transitions: %w", err)
	}
	p.written = p.taken
	return nil
}
