package main

import (
	"context"
	"iter"

	"github.com/spf13/cobra"

	"github.com/finwait/finwait/cmd/finwait/internal/output"
	"github.com/finwait/finwait/tracer"
)

func newTraceCommand() *cobra.Command {
	var (
		filter filterFlags
		flags  streamFlags
	)
	cmd := &cobra.Command{
		Use:   "trace",
		Short: "Stream TCP state transitions",
		Long: `Prints every TCP state transition of the host as it happens: when, whose socket,
from which state to which, and how long it was in the first. Filters run in the
kernel; several values of one are alternatives, several filters must all match.

The owner is the process that opened the socket, or that had it open when finwait
began, and is blank when it is not known; json, csv and logfmt also tell the
container and the pod that it was in. Ends with Ctrl-C and then says on standard
error how many transitions were seen, printed and lost.

With --replay the transitions are read from a log instead, with the same filters
and formats and without privileges. Lines that are damaged are skipped, and named
on standard error.`,
		Example: `  finwait trace --state TIME_WAIT
  finwait trace --transition FIN_WAIT2:TIME_WAIT,CLOSING:TIME_WAIT --format json
  finwait trace --lport 443 --addr 10.0.0.0/8 --duration 30s
  finwait trace --comm nginx --count 100 --format csv > nginx.csv
  finwait trace --replay /var/log/finwait.json.1.gz --replay /var/log/finwait.json --lport 443
  finwait trace --demo`,
		Args: flags.args,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts, err := flags.options(cmd, &filter)
			if err != nil {
				return err
			}
			opts.EventBuffer = flags.buffer << 20
			return runStream(cmd, &flags, opts, transitions)
		},
	}
	filter.add(cmd)
	filter.complete(cmd)
	explainReplay(cmd)
	flags.add(cmd, "transitions")
	return cmd
}

var transitions = stream[tracer.Event]{
	noun:    "transitions",
	items:   func(ctx context.Context, t *tracer.Tracer) iter.Seq2[*tracer.Event, error] { return t.Events(ctx) },
	pending: (*tracer.Tracer).Pending,
	encode: func(format string, opts output.Options) (head []byte, add func([]byte, *tracer.Event) []byte, err error) {
		encoder, err := output.New(format, opts)
		if err != nil {
			return nil, nil, err
		}
		return encoder.AppendHeader(nil), encoder.AppendEvent, nil
	},
	recorded: recordedTransitions,
	account: func(l *tracer.Ledger) account {
		return account{
			seen: l.Seen, emitted: l.Emitted, matched: l.Emitted + l.RingFull + l.NotHeld, lost: l.Lost(),
			notes: append([]note{
				{l.RingFull, "lost: the buffer was full (give it more with --buffer); they are counted all the same"},
				{l.NotHeld, "lost: the kernel refused memory to hold them until the socket has its addresses"},
			}, missed(l)...),
		}
	},
}
