package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/finwait/finwait/cmd/finwait/internal/output"
	"github.com/finwait/finwait/tracer"
)

// minWatch keeps --watch from becoming a busy loop.
const minWatch = 100 * time.Millisecond

// defaultPinPath is where the agent keeps its counters.
const defaultPinPath = "/sys/fs/bpf/finwait"

// countScopes and countDimensions are the words of --netns and --by.
var (
	countScopes     = map[string]tracer.NetnsScope{"all": tracer.AllNetns, "self": tracer.SelfNetns}
	countDimensions = map[string]tracer.Dimension{
		"":         tracer.ByNothing,
		"netns":    tracer.ByNetns,
		"listener": tracer.ByListener,
		"process":  tracer.ByProcess,
		"remote":   tracer.ByRemote,
	}
	countFormats = map[string]func(dst []byte, c *tracer.Census, source string) []byte{
		"table": func(dst []byte, c *tracer.Census, _ string) []byte { return output.AppendCensusTable(dst, c) },
		"json":  output.AppendCensusJSON,
	}
)

// Whose counts they are.
const (
	sourceAuto   = "auto" // the agent's, if there is one that has them
	sourceAgent  = "agent"
	sourceKernel = "kernel"
)

// countFlags is what the flags of count say.
type countFlags struct {
	format, netns, by string
	source, pinPath   string
	watch             time.Duration
}

func newCountCommand() *cobra.Command {
	var flags countFlags
	cmd := &cobra.Command{
		Use:   "count",
		Short: "Count the TCP sockets in each state",
		Long: `Count prints how many TCP sockets are in each state now: state, tab, number,
the largest first. It replaces netstat -n | awk '/^tcp/ {++s[$NF]} ...' and
counts what that misses: other network namespaces and listeners.

TIME_WAIT, orphans in FIN_WAIT2 and half-open connections (SYN_RECV) are in
it. Counting in the network namespaces of others needs root; --netns self
does not. No agent has to run. If one does that keeps its counters pinned (finwait
serve --pin), the sum over all network namespaces is read from there: that takes as
long for a million sockets as for one, and is said on standard error.`,
		Example: `  finwait count
  finwait count --watch 1s
  finwait count --by listener
  finwait count --format json | jq .states.TIME_WAIT`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("count takes no arguments, got %q", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := flags.counter(cmd)
			if err != nil {
				return err
			}
			return c.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&flags.format, "format", "table", "output format: table or json (one object a line)")
	f.StringVar(&flags.netns, "netns", "all", "network namespaces to count in: all or self")
	f.DurationVar(&flags.watch, "watch", 0, "count again at this interval until interrupted (100ms or more)")
	f.StringVar(&flags.by, "by", "", "break the counts down by netns, listener, process or remote")
	f.StringVar(&flags.source, "source", sourceAuto, "who counts: agent, kernel (each socket, now), or auto for the agent if it can")
	f.StringVar(&flags.pinPath, "pin-path", defaultPinPath, "`folder` in which the agent keeps its counters")
	for name, words := range map[string][]string{
		"format": {"table", "json"},
		"netns":  {"all", "self"},
		"by":     {"netns", "listener", "process", "remote"},
		"source": {sourceAuto, sourceAgent, sourceKernel},
	} {
		if err := cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic(err) // the flag does not exist: a slip in the lines above
		}
	}
	return cmd
}

// counter checks the flags and returns what they ask for.
func (f *countFlags) counter(cmd *cobra.Command) (*counter, error) {
	c := &counter{watch: f.watch, out: cmd.OutOrStdout(), warn: cmd.ErrOrStderr(), byProcess: f.by == "process"}
	var ok bool
	if c.append, ok = countFormats[f.format]; !ok {
		return nil, usagef("unknown format %q (want table or json)", f.format)
	}
	if c.opts.Netns, ok = countScopes[f.netns]; !ok {
		return nil, usagef("unknown --netns %q (want all or self)", f.netns)
	}
	if c.opts.By, ok = countDimensions[f.by]; !ok || f.by == "" && cmd.Flags().Changed("by") {
		return nil, usagef("unknown --by %q (want netns, listener, process or remote)", f.by)
	}
	if cmd.Flags().Changed("watch") && f.watch < minWatch {
		return nil, usagef("--watch %s is too short (want %s or more)", f.watch, minWatch)
	}
	c.timeLine = f.format == "table"
	c.source, c.pinPath = f.source, f.pinPath
	ofAll := c.opts.By == tracer.ByNothing && c.opts.Netns == tracer.AllNetns
	switch {
	case f.source != sourceAuto && f.source != sourceAgent && f.source != sourceKernel:
		return nil, usagef("unknown --source %q (want auto, agent or kernel)", f.source)
	case f.source == sourceAgent && !ofAll:
		return nil, usagef("the agent has the sum over all network namespaces: --source agent goes neither with --by nor with --netns self")
	case !ofAll:
		c.source = sourceKernel
	}
	return c, nil
}

// counter prints one census, or one after the other.
type counter struct {
	opts      tracer.CensusOptions
	watch     time.Duration
	append    func(dst []byte, c *tracer.Census, source string) []byte
	timeLine  bool
	byProcess bool
	source    string
	pinPath   string
	unseen    int // network namespaces that the agent could not look into
	out, warn io.Writer

	buf      []byte
	warnings string
}

func (c *counter) run(ctx context.Context) error {
	if c.watch == 0 {
		return c.print(ctx, false)
	}
	ticker := time.NewTicker(c.watch)
	defer ticker.Stop()
	for again := false; ; again = true {
		if err := c.print(ctx, again); err != nil {
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

// print takes a census and writes it in one piece. A table that is not the
// first comes after a blank line and its time.
func (c *counter) print(ctx context.Context, again bool) error {
	census, source, err := c.take(ctx)
	if err != nil {
		return err
	}
	c.buf = c.buf[:0]
	if again && c.timeLine {
		c.buf = append(c.buf, '\n')
		c.buf = census.Time.AppendFormat(c.buf, time.RFC3339)
		c.buf = append(c.buf, '\n')
	}
	c.buf = c.append(c.buf, census, source)
	if _, err := c.out.Write(c.buf); err != nil {
		return fmt.Errorf("write counts: %w", err)
	}
	c.report(census, source)
	return nil
}

// take returns the counts, and whose they are.
func (c *counter) take(ctx context.Context) (*tracer.Census, string, error) {
	if c.source != sourceKernel {
		gauges, err := tracer.PinnedGauges(c.pinPath)
		if err == nil && (gauges.MissedNetns == 0 || c.source == sourceAgent) {
			c.unseen = gauges.MissedNetns
			return &tracer.Census{Time: gauges.Time, States: gauges.States().Folded()}, sourceAgent, nil
		}
		if c.source == sourceAgent {
			return nil, "", err
		}
	}
	census, err := tracer.TakeCensus(ctx, &c.opts)
	return census, sourceKernel, err
}

// report writes what the census missed, unless it has said the same before.
func (c *counter) report(census *tracer.Census, source string) {
	text := countWarnings(census, c.byProcess)
	if source == sourceAgent {
		text = "finwait: counted by the agent that keeps its counters in " + printable(c.pinPath) + "\n"
		if c.unseen > 0 {
			text += fmt.Sprintf("finwait: the agent could not look into %s: sockets that were there before it are missing\n",
				countNoun(c.unseen, "network namespace", "network namespaces"))
		}
	}
	if text == c.warnings {
		return
	}
	c.warnings = text
	_, _ = io.WriteString(c.warn, text) // nothing is left to complain to
}

// countWarnings returns a line for each kind of thing that the census missed.
func countWarnings(census *tracer.Census, byProcess bool) string {
	var b strings.Builder
	missed := &census.Missed
	if n := len(missed.Netns); n > 0 {
		fmt.Fprintf(&b, "finwait: %d of %s not counted: %s\n",
			n, countNoun(n+census.Namespaces, "network namespace", "network namespaces"), missedReason(missed.Netns[0]))
	}
	if n := len(missed.Inexact); n > 0 {
		fmt.Fprintf(&b, "finwait: the counts of %s are not exact: sockets came and went faster than they could be listed\n",
			countNoun(n, "network namespace", "network namespaces"))
	}
	if n := missed.HiddenProcesses; n > 0 {
		what := "network namespaces may be missing"
		if byProcess {
			what = "sockets are shown without an owner"
		}
		fmt.Fprintf(&b, "finwait: %s could not be looked into: %s (needs CAP_SYS_PTRACE)\n", countNoun(n, "process", "processes"), what)
	}
	return b.String()
}

func countNoun(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// missedReason says why a namespace was not read, and by which name it is known.
func missedReason(m tracer.MissedNetns) string {
	text := m.Err.Error()
	if m.Name != "" {
		text = m.Name + ": " + text
	}
	text = string(output.Quote(nil, []byte(text)))
	if errors.Is(m.Err, os.ErrPermission) {
		text += " (needs CAP_SYS_ADMIN)"
	}
	return text
}
