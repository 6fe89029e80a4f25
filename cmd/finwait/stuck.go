package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/finwait/finwait/cmd/finwait/internal/output"
	"github.com/finwait/finwait/tracer"
)

// stuckFlags is what the flags of stuck say.
type stuckFlags struct {
	filter             filterFlags
	over               []string
	by, format         string
	evidence           string
	noHeader           bool
	interval, duration time.Duration
}

func newStuckCommand() *cobra.Command {
	var flags stuckFlags
	cmd := &cobra.Command{
		Use:   "stuck",
		Short: "List the sockets that sit in a state for too long, and whose they are",
		Long: `Prints the sockets that have been in a state for too long, the oldest first:
how long, which, and the process that owns it. Too long is

  CLOSE_WAIT  1m   the peer has closed, and the process has not: a leak
  FIN_WAIT1   30s  closed, and the peer does not acknowledge it, which takes
  CLOSING     30s  a round trip: it is gone, or the way to it
  LAST_ACK    30s
  FIN_WAIT2   2m   closed, and the peer does not close: longer than the kernel
                   keeps what nobody owns (net.ipv4.tcp_fin_timeout)
  SYN_SENT    10s  nobody answers: the SYN has been repeated three times

unless --over says otherwise. It works at once. The age of a socket that is older
than finwait is what the kernel can vouch for, a lower bound (≥1m2s); one that
enters its state while finwait runs has its exact age. Some sockets that are
older show nothing: standard error says how many, and --duration waits to see.

A filter chooses among the sockets; several values of one are alternatives,
several filters must all match.`,
		Example: `  finwait stuck                              now, and exit
  finwait stuck --by process                 who leaks how many
  finwait stuck --over CLOSE_WAIT:5m --comm java
  finwait stuck --over 10s,FIN_WAIT2:1m      all of the above after 10s, FIN_WAIT2 after 1m
  finwait stuck --duration 30s               look once, after 30s
  finwait stuck --interval 10s --format json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := flags.looker(cmd)
			if err != nil {
				return err
			}
			return l.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&flags.over, "over", nil, "what is too long: `STATE:TIME` for each state to look for, or TIME for those above")
	f.StringVar(&flags.by, "by", "", "count by process instead of listing")
	f.DurationVar(&flags.interval, "interval", 0, "look again at this `interval` until interrupted (100ms or more)")
	f.DurationVar(&flags.duration, "duration", 0, "end after this `time`; without --interval, look then")
	f.StringVar(&flags.format, "format", "table", "output `format`: table, json, csv or logfmt")
	f.BoolVar(&flags.noHeader, "no-header", false, "print no header line")
	f.StringVar(&flags.evidence, "evidence", "", "what is to show TIME_WAIT and half-open connections: probe or timer (default the best that the kernel takes)")
	flags.filter.addSockets(cmd)
	completeWords(cmd, "by", []string{"process"})
	completeWords(cmd, "format", output.Formats)
	completeWords(cmd, "evidence", []string{"probe", "timer"})
	return cmd
}

// looker checks the flags and returns what they ask for.
func (f *stuckFlags) looker(cmd *cobra.Command) (*looker, error) {
	l := &looker{interval: f.interval, duration: f.duration, out: cmd.OutOrStdout(), warn: cmd.ErrOrStderr()}
	var err error
	if l.opts.Filter, err = f.filter.parse(cmd.Flags()); err != nil {
		return nil, err
	}
	if l.opts.Evidence, err = parseEvidence(cmd.Flags(), f.evidence); err != nil {
		return nil, err
	}
	if l.over, err = parseOver(f.over); err != nil {
		return nil, usagef("--over: %w", err)
	}
	switch {
	case cmd.Flags().Changed("over") && len(f.over) == 0:
		return nil, usagef("--over is empty; name at least one value or leave it out")
	case f.by != "" && f.by != "process", cmd.Flags().Changed("by") && f.by == "":
		return nil, usagef("unknown --by %q (want process)", f.by)
	case cmd.Flags().Changed("interval") && f.interval < minWatch:
		return nil, usagef("--interval %v is too short (want %v or more)", f.interval, minWatch)
	case f.duration < 0, cmd.Flags().Changed("duration") && f.duration == 0:
		return nil, usagef("--duration %v is not a time to run for, such as 10s", f.duration)
	}
	l.cgroups, _ = tracer.NewCgroups() // nil knows none
	opts := output.Options{Cgroup: l.cgroups.Lookup}
	if width, _, ok := terminal(l.out); ok {
		opts.Color, opts.Width = os.Getenv("NO_COLOR") == "", width
	}
	if l.encoder, err = output.NewStuck(f.format, f.by == "process", opts); err != nil {
		return nil, usagef("--format: %w", err)
	}
	l.isTable, l.header = f.format == "table", !f.noHeader
	l.opts.NoTransitions = true
	return l, nil
}

// parseOver returns how long is too long, by state, nil for the default.
func parseOver(words []string) (map[tracer.State]time.Duration, error) {
	if len(words) == 0 {
		return nil, nil
	}
	over := map[tracer.State]time.Duration{}
	var all time.Duration
	for _, word := range words {
		if !strings.Contains(word, ":") {
			d, err := parseTime(word)
			if err != nil {
				return nil, fmt.Errorf("%w or CLOSE_WAIT:5m", err)
			}
			all = d
			continue
		}
		st, err := parseStateTime(word)
		if err != nil {
			return nil, err
		}
		over[st.state] = st.time
	}
	if all == 0 {
		return over, nil
	}
	for state := range tracer.DefaultStuckOver() {
		if over[state] == 0 {
			over[state] = all
		}
	}
	return over, nil
}

// looker prints what is stuck, once or again and again.
type looker struct {
	opts               tracer.Options
	over               map[tracer.State]time.Duration
	interval, duration time.Duration
	encoder            *output.StuckEncoder
	cgroups            *tracer.Cgroups
	isTable, header    bool
	out, warn          io.Writer

	buf      []byte
	warnings string
}

func (l *looker) run(ctx context.Context) error {
	defer func() { _ = l.cgroups.Close() }()
	t, done, err := newTracer(ctx, &l.opts)
	if err != nil {
		return err
	}
	defer done()
	if l.interval > 0 {
		return l.repeat(ctx, t)
	}
	select {
	case <-ctx.Done():
	case <-time.After(l.duration):
	}
	return l.look(context.WithoutCancel(ctx), t, false)
}

func (l *looker) repeat(ctx context.Context, t *tracer.Tracer) error {
	if l.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, l.duration)
		defer cancel()
	}
	ticker := time.NewTicker(l.interval)
	defer ticker.Stop()
	for again := false; ; again = true {
		if err := l.look(ctx, t, again); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// look prints what is stuck now in one piece. A table that is not the first
// comes after a blank line and its time.
func (l *looker) look(ctx context.Context, t *tracer.Tracer, again bool) error {
	stuck, err := t.Stuck(ctx, &tracer.StuckOptions{Over: l.over})
	if err != nil {
		return err
	}
	l.buf = l.buf[:0]
	if again && l.isTable {
		l.buf = append(l.buf, '\n')
		l.buf = stuck.Time.AppendFormat(l.buf, time.RFC3339)
		l.buf = append(l.buf, '\n')
	}
	if l.header && (l.isTable || !again) {
		l.buf = l.encoder.AppendHeader(l.buf)
	}
	l.buf = l.encoder.AppendStuck(l.buf, stuck)
	if _, err := l.out.Write(l.buf); err != nil {
		return fmt.Errorf("write what is stuck: %w", err)
	}
	l.report(stuck)
	return nil
}

// report writes what could not be known, unless it has said the same before.
func (l *looker) report(stuck *tracer.Stuck) {
	text := missedNetns(&stuck.Missed, stuck.Namespaces)
	if l.interval == 0 { // else the next look may know
		text += maybeStuck(&stuck.Maybe)
	}
	if text == l.warnings {
		return
	}
	l.warnings = text
	_, _ = io.WriteString(l.warn, text) // nothing is left to complain to
}

// missedNetns returns a line if there are namespaces that were not looked at.
func missedNetns(missed *tracer.CensusMissed, visited int) string {
	n := len(missed.Netns)
	if n == 0 {
		return ""
	}
	all := countNoun(n+visited, "network namespace", "network namespaces")
	return fmt.Sprintf("finwait: %d of %s not looked at: %s\n", n, all, missedReason(missed.Netns[0]))
}

// maybeStuck returns a line if there are sockets that may be stuck.
func maybeStuck(maybe *tracer.StateCounts) string {
	var counts []string
	for _, state := range tracer.States() {
		if n := maybe[state]; n > 0 {
			counts = append(counts, fmt.Sprintf("%d in %v", n, state))
		}
	}
	if len(counts) == 0 {
		return ""
	}
	return fmt.Sprintf("finwait: others may be stuck, %s: they are older than finwait, and the kernel does not say since when they are there; --duration waits to see\n",
		strings.Join(counts, ", "))
}
