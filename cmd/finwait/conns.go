package main

import (
	"context"
	"iter"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/finwait/finwait/cmd/finwait/internal/output"
	"github.com/finwait/finwait/tracer"
)

type connsFlags struct {
	filter       filterFlags
	run          streamFlags
	slow         []string
	reasons      []string
	waitTimeWait bool
}

func newConnsCommand() *cobra.Command {
	var flags connsFlags
	cmd := &cobra.Command{
		Use:   "conns",
		Short: "Print one record for each connection, when it ends",
		Long: `Prints one record for each TCP connection of the host when it has ended: its whole
walk through the states with the time spent in each, what it carried, who closed
first and why it ended. The kernel gathers it and says it once, instead of five
to ten transitions.

With --slow or --reason it is a flight recorder: it is silent until a connection
goes badly. A connection is printed if it fulfils the one or the other; the other
filters must all match. Ends with Ctrl-C and then says on standard error how many
connections ended, were printed and lost.

With --replay the connections are read from a log instead, with the same filters
and formats and without privileges. Lines that are damaged are skipped, and named
on standard error.`,
		Example: `  finwait conns
  finwait conns --slow ESTABLISHED:10s,SYN_SENT:200ms --lport 443
  finwait conns --reason timeout,rst_received,time_wait_refused --format json
  finwait conns --wait-timewait=false --comm nginx --count 100
  finwait conns --replay /var/log/finwait.json --slow CLOSE_WAIT:1m
  finwait conns --demo`,
		Args: flags.run.args,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts, err := flags.options(cmd)
			if err != nil {
				return err
			}
			return runStream(cmd, &flags.run, opts, connections)
		},
	}
	flags.filter.addSockets(cmd)
	explainReplay(cmd)
	f := cmd.Flags()
	f.StringSliceVar(&flags.slow, "slow", nil, "connections that were at least as long in a `state`, such as ESTABLISHED:10s")
	f.StringSliceVar(&flags.reasons, "reason", nil, "connections that ended for one of these `reasons`, such as timeout or rst_received")
	f.BoolVar(&flags.waitTimeWait, "wait-timewait", true, "print a connection when its TIME_WAIT ends, or (=false) when that begins")
	flags.run.add(cmd, "connections")
	completeWords(cmd, "reason", tracer.ReasonNames())
	return cmd
}

func (f *connsFlags) options(cmd *cobra.Command) (*tracer.Options, error) {
	opts, err := f.run.options(cmd, &f.filter)
	if err != nil {
		return nil, err
	}
	opts.NoTransitions = true
	opts.Conns, err = parseConns(cmd.Flags(), f.slow, f.reasons)
	if err != nil {
		return nil, err
	}
	opts.Conns.AtTimeWait, opts.Conns.Buffer = !f.waitTimeWait, f.run.buffer<<20
	return opts, nil
}

// parseConns returns what --slow and --reason ask for.
func parseConns(flags *pflag.FlagSet, slow, reasons []string) (*tracer.ConnOptions, error) {
	times, err := parseSlow(flags, slow)
	if err != nil {
		return nil, err
	}
	p := flagParser{flags: flags}
	var groups [][]tracer.Reason
	parseList(&p, "reason", reasons, &groups, tracer.ParseReasons)
	return &tracer.ConnOptions{Slow: times, Reasons: slices.Concat(groups...)}, p.err
}

// parseSlow returns the times that --slow has, by state.
func parseSlow(flags *pflag.FlagSet, words []string) (map[tracer.State]time.Duration, error) {
	var list []stateTime
	p := flagParser{flags: flags}
	parseList(&p, "slow", words, &list, parseStateTime)
	times := map[tracer.State]time.Duration{}
	for _, st := range list {
		times[st.state] = st.time
	}
	return times, p.err
}

var connections = stream[tracer.Conn]{
	noun:    "connections",
	items:   func(ctx context.Context, t *tracer.Tracer) iter.Seq2[*tracer.Conn, error] { return t.Conns(ctx) },
	pending: (*tracer.Tracer).PendingConns,
	encode: func(format string, opts output.Options) (head []byte, add func([]byte, *tracer.Conn) []byte, err error) {
		encoder, err := output.NewConns(format, opts)
		if err != nil {
			return nil, nil, err
		}
		return encoder.AppendHeader(nil), encoder.AppendConn, nil
	},
	recorded: recordedConns,
	account: func(l *tracer.Ledger) account {
		return account{
			seen: l.ConnsSeen, emitted: l.ConnsEmitted, matched: l.ConnsEmitted + l.ConnsLost, lost: l.ConnsLost + l.Decode,
			notes: []note{
				{l.ConnsLost, "lost: the buffer was full (give it more with --buffer)"},
				{l.Recursion, "transitions for which no program was run, since the kernel skips one that interrupts itself on one CPU"},
			},
		}
	},
}
