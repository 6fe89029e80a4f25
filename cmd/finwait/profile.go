package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/finwait/finwait/cmd/finwait/internal/output"
	"github.com/finwait/finwait/tracer"
)

// minInterval keeps --interval from becoming a busy loop.
const minInterval = 100 * time.Millisecond

// tableTop is how many histograms a table shows if nothing else is asked for.
const tableTop = 10

type profileFlags struct {
	filter             filterFlags
	by, format         string
	evidence           string
	interval, duration time.Duration
	top                int
}

func newProfileCommand() *cobra.Command {
	var flags profileFlags
	cmd := &cobra.Command{
		Use:   "profile",
		Short: "Histograms of the time that sockets stay in each state",
		Long: `Counts in the kernel how long TCP sockets stay in each state, and prints it at
the end (Ctrl-C, or --duration), or what is new after each --interval: for each
state and local port of a service, or whatever --by says, the number of times,
percentiles, the longest, and a histogram. A time counts when the socket leaves
the state. No transition is sent to finwait, so it costs less than trace.

By service, sockets that have called connect are together as "clients", since
the kernel chose their ports; by remote-port, the others are "servers".
"unknown" are sockets that were open before finwait (listeners excepted), or
whose owner is not known. "others" are those for which the 8192 histograms did
not suffice. UNKNOWN counts sockets that have left the state without its being
known since when they were in it.

Times are kept by powers of two. Percentiles are interpolated within those:
each is more than half and less than twice the true one. The longest time is
exact (of an --interval, if it is new; else none was longer).

Filters run in the kernel. --state chooses the states that are left here.`,
		Example: `  finwait profile --duration 1m
  finwait profile --state CLOSE_WAIT --by process
  finwait profile --interval 10s --top 5
  finwait profile --transition SYN_SENT:ESTABLISHED --by remote-port
  finwait profile --format json --duration 1m | jq '.rows[] | [.state, .p99_ns]'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runProfile(cmd, &flags) },
	}
	flags.filter.add(cmd)
	flags.filter.complete(cmd)
	f := cmd.Flags()
	f.Lookup("state").Usage = "only the time in these `states`"
	f.Lookup("transition").Usage = "only the time that ended with these `transitions`, such as SYN_SENT:ESTABLISHED"
	f.StringVar(&flags.by, "by", "service", "what there is a histogram of: service, remote-port, cgroup, process or state")
	f.StringVar(&flags.format, "format", "table", "output `format`: table or json")
	f.StringVar(&flags.evidence, "evidence", "", "what is to show TIME_WAIT and half-open connections: probe or timer (default the best that the kernel takes)")
	f.DurationVar(&flags.interval, "interval", 0, "print what is new after each `time` (100ms or more)")
	f.DurationVar(&flags.duration, "duration", 0, "stop after this `time`")
	f.IntVar(&flags.top, "top", 0, "print the `N` histograms with the most times, 0 for all (default 10 in a table, all in json)")
	completeWords(cmd, "by", []string{"service", "remote-port", "cgroup", "process", "state"})
	completeWords(cmd, "format", []string{"table", "json"})
	completeWords(cmd, "evidence", []string{"probe", "timer"})
	return cmd
}

func (f *profileFlags) options(cmd *cobra.Command) (*tracer.Options, error) {
	filter, err := f.filter.parse(cmd.Flags())
	if err != nil {
		return nil, err
	}
	by, err := tracer.ParseProfileDimension(f.by)
	switch {
	case err != nil:
		return nil, usagef("unknown --by %q (want service, remote-port, cgroup, process or state)", f.by)
	case f.format != "table" && f.format != "json":
		return nil, usagef("unknown format %q (want table or json)", f.format)
	case f.duration < 0, cmd.Flags().Changed("duration") && f.duration == 0:
		return nil, usagef("--duration %v is not a time to run for, such as 10s", f.duration)
	case cmd.Flags().Changed("interval") && f.interval < minInterval:
		return nil, usagef("--interval %v is too short (want %v or more)", f.interval, minInterval)
	case f.top < 0:
		return nil, usagef("--top %d is less than nothing", f.top)
	}
	if filter, err = onlyLeaving(filter); err != nil {
		return nil, err
	}
	evidence, err := parseEvidence(cmd.Flags(), f.evidence)
	return &tracer.Options{
		Filter:        filter,
		Evidence:      evidence,
		NoTransitions: true,
		Profile:       &tracer.ProfileOptions{By: by},
	}, err
}

// onlyLeaving has a filter's states be those that are left: whoever asks for the
// time in a state does not ask for the time in those before it.
func onlyLeaving(filter tracer.Filter) (tracer.Filter, error) {
	states, transitions := filter.States, filter.Transitions
	if len(states) > 0 && len(transitions) == 0 {
		transitions = tracer.LegalTransitions()
	}
	filter.States = nil
	filter.Transitions = slices.DeleteFunc(slices.Clone(transitions), func(t tracer.Transition) bool {
		return t.Old == tracer.StateClose || len(states) > 0 && !slices.Contains(states, t.Old)
	})
	if len(transitions) > 0 && len(filter.Transitions) == 0 {
		return filter, usagef("nothing to measure: no transition that was asked for is out of a state that was asked for (CLOSE has no time)")
	}
	return filter, nil
}

func runProfile(cmd *cobra.Command, flags *profileFlags) error {
	opts, err := flags.options(cmd)
	if err != nil {
		return err
	}
	t, done, err := newTracer(cmd.Context(), opts)
	if err != nil {
		return err
	}
	defer done()
	announce(cmd.ErrOrStderr(), t)
	p := newProfiler(cmd, flags, t)
	err = errors.Join(p.run(cmd.Context(), flags.duration), t.Detach())
	return errors.Join(err, writeProfileLedger(cmd.ErrOrStderr(), t))
}

// profiler prints a profile at the end, or what is new after each interval.
type profiler struct {
	tracer   *tracer.Tracer
	last     *tracer.Profile // what has been printed
	interval time.Duration
	json     bool
	opts     output.ProfileOptions
	out      io.Writer
	again    bool
}

func newProfiler(cmd *cobra.Command, flags *profileFlags, t *tracer.Tracer) *profiler {
	p := &profiler{
		tracer:   t,
		last:     &tracer.Profile{Time: time.Now().UTC()},
		interval: flags.interval,
		json:     flags.format == "json",
		opts:     output.ProfileOptions{Top: flags.top},
		out:      cmd.OutOrStdout(),
	}
	if !p.json && !cmd.Flags().Changed("top") {
		p.opts.Top = tableTop
	}
	_, _, isTerminal := terminal(p.out)
	p.opts.Color = isTerminal && os.Getenv("NO_COLOR") == ""
	return p
}

// run profiles until ctx is done or the time is up.
func (p *profiler) run(ctx context.Context, duration time.Duration) error {
	if duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, duration)
		defer cancel()
	}
	var tick <-chan time.Time
	if p.interval > 0 {
		ticker := time.NewTicker(p.interval)
		defer ticker.Stop()
		tick = ticker.C
	}
	for {
		select {
		case <-ctx.Done():
			return errors.Join(p.tracer.Detach(), p.print(!p.again))
		case <-tick:
			if err := p.print(true); err != nil {
				return err
			}
		}
	}
}

// print writes what is new since it was called last, in one piece; nothing is
// written only if it must be.
func (p *profiler) print(nothing bool) error {
	profile, err := p.tracer.Profile()
	if err != nil {
		return err
	}
	since := p.last.Time
	diff := profile.Sub(p.last)
	p.last = profile
	if len(diff.Rows) == 0 && !nothing {
		return nil
	}
	if _, err := p.out.Write(p.append(diff, since)); err != nil {
		return fmt.Errorf("write profile: %w", err)
	}
	p.again = true
	return nil
}

func (p *profiler) append(diff *tracer.Profile, since time.Time) (buf []byte) {
	if p.json {
		return output.AppendProfileJSON(buf, diff, since, p.opts)
	}
	if p.interval > 0 {
		if p.again {
			buf = append(buf, '\n')
		}
		buf = diff.Time.AppendFormat(buf, time.RFC3339)
		buf = append(buf, '\n')
	}
	return output.AppendProfileTable(buf, diff, p.opts)
}

// writeProfileLedger says what became of every transition. The tracer is
// detached.
func writeProfileLedger(w io.Writer, t *tracer.Tracer) error {
	l, err := t.Ledger()
	if err != nil {
		return err
	}
	p, err := t.Profile()
	if err != nil {
		return err
	}
	count, unknown := p.Total()
	lost := l.Recursion + l.UnknownState
	fmt.Fprintf(w, "finwait: %d transitions seen, %d measured, %d without a known time, %d lost\n", l.Seen, count, unknown, lost)
	writeNotes(w, missed(&l))
	writeNotes(w, impairments(&l))
	return nil
}
