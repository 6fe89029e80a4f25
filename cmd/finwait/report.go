package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/finwait/finwait/cmd/finwait/internal/output"
	"github.com/finwait/finwait/cmd/finwait/internal/replay"
	"github.com/finwait/finwait/cmd/finwait/internal/summary"
)

type reportFlags struct {
	format string
	top    int
}

func newReportCommand() *cobra.Command {
	var flags reportFlags
	cmd := &cobra.Command{
		Use:   "report FILE...",
		Short: "Sum up logs of transitions and connections",
		Long: `Reads logs that trace, conns or serve have written as JSON, and prints what they
say in all: from when to when, how often each transition happened, how long sockets
were in each state, how and by whom connections ended, and the services, remote
services and owners that have the most records. Files may be compressed with gzip or
zstd; - is standard input. No privileges are needed.

Transitions and connections are summed up apart, since a log may have both of one
connection. SERVICE is the local port of servers, REMOTE the remote port of clients;
"unknown" are records of which the side, or the owner, is not known, "others" those
below the first rows. UNKNOWN times are those of sockets of which it is not known
since when they were in the state.

Percentiles are within 0.4 % of the true ones, the longest time is exact. Of owners
the 4096 that come most often are kept, and 65536 of their processes: where that is
too little, counts are marked with ~ and processes with >=.

If records were sampled, counts are as recorded; an estimate of how many records
there would have been of all connections stands beside them.`,
		Example: `  finwait report /var/log/finwait.json /var/log/finwait.json.*.gz
  finwait trace --replay finwait.json --lport 443 --format json | finwait report -
  finwait report --format json finwait.json | jq '.transitions.dwell'`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("name the files to report on, or - for standard input")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, files []string) error { return runReport(cmd, &flags, files) },
	}
	f := cmd.Flags()
	f.StringVar(&flags.format, "format", "table", "output `format`: table or json")
	f.IntVar(&flags.top, "top", tableTop, "the `N` services, remote services and owners with the most records")
	completeWords(cmd, "format", []string{"table", "json"})
	return cmd
}

func runReport(cmd *cobra.Command, flags *reportFlags, files []string) error {
	switch {
	case flags.format != "table" && flags.format != "json":
		return usagef("unknown format %q (want table or json)", flags.format)
	case flags.top < 1:
		return usagef("--top %d is less than one", flags.top)
	}
	reader := newReplay(cmd, files, nil)
	sum := summary.New()
	for record, err := range reader.Records(cmd.Context()) {
		if err != nil {
			return err
		}
		addRecord(sum, record)
	}
	c := reader.Counts()
	sum.Files, sum.Damaged, sum.Broken = len(files), c.Damaged, c.Broken
	stderr := cmd.ErrOrStderr()
	err := printReport(cmd, flags, sum)
	if cmd.Context().Err() != nil {
		fmt.Fprintln(stderr, "finwait: interrupted: there may be more to read")
	}
	fmt.Fprintf(stderr, "finwait: %d records read, %d damaged\n", c.Records(), c.Damaged)
	writeNotes(stderr, unreadNotes(c, 0))
	return errors.Join(err, c.Err())
}

func addRecord(sum *summary.Report, r *replay.Record) {
	if r.Event != nil {
		sum.AddEvent(r.Event, r.SamplingRatio)
	} else {
		sum.AddConn(r.Conn, r.SamplingRatio)
	}
}

func printReport(cmd *cobra.Command, flags *reportFlags, sum *summary.Report) error {
	text := output.AppendReportText
	if flags.format == "json" {
		text = output.AppendReportJSON
	}
	if _, err := cmd.OutOrStdout().Write(text(nil, sum, flags.top)); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}
