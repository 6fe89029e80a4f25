package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/finwait/finwait/cmd/finwait/internal/explain"
	"github.com/finwait/finwait/tracer"
)

const explainLong = `Explain what TCP states and transitions mean on Linux: which side is in a
state, what moves it on, which timers and sysctls bound it, what a pile-up of
it says, what to do about that and what does not help.

Without arguments it prints one line for each state and each transition.

States are spelt as by netstat, ss or the RFC, in any case. A transition is
two states with ":", "->" or "→" between them; quote the arrows in a shell. One
that Linux never makes is a fair question: the answer says that it does not
happen, and which ones do, and the exit status is 0. A name that is no state is
a usage error.

With --format json each explanation is one object on a line.`

const explainExample = `  finwait explain TIME_WAIT
  finwait explain FIN_WAIT2:TIME_WAIT
  finwait explain 'fin-wait-2->time-wait' CLOSE_WAIT
  finwait explain --format json | jq -r 'select(.state) | .state + ": " + .pile_up'`

// newExplainCommand returns the command "finwait explain".
func newExplainCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:               "explain [STATE | OLD:NEW]...",
		Short:             "Explain what a state or a transition means",
		Long:              explainLong,
		Example:           explainExample,
		ValidArgsFunction: completeExplain,
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := explainText(format, args)
			if err != nil {
				return err
			}
			if _, err := cmd.OutOrStdout().Write(text); err != nil {
				return fmt.Errorf("write explanation: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&format, "format", "table", "output format: table or json")
	completeWords(cmd, "format", []string{"table", "json"})
	return cmd
}

// explainText returns all that the command prints, so that a bad argument
// prints nothing of the good ones.
func explainText(format string, args []string) ([]byte, error) {
	entries, err := lookupAll(args)
	if err != nil {
		return nil, err
	}
	switch format {
	case "table":
		return explainTable(entries), nil
	case "json":
		return explainJSON(entries)
	}
	return nil, usagef("unknown format %q (want table or json)", format)
}

func lookupAll(args []string) ([]explain.Entry, error) {
	var entries []explain.Entry
	for _, arg := range args {
		entry, err := explain.Lookup(arg)
		if err != nil {
			return nil, usagef("explain: %w", err)
		}
		entries = append(entries, entry)
	}
	return entries, nil
}

func explainTable(entries []explain.Entry) []byte {
	if len(entries) == 0 {
		return explain.AppendTable(nil)
	}
	var text []byte
	for i, entry := range entries {
		if i > 0 {
			text = append(text, "\n\n"...)
		}
		text = entry.AppendText(text)
	}
	return text
}

func explainJSON(entries []explain.Entry) ([]byte, error) {
	if len(entries) == 0 {
		entries = explain.All()
	}
	var text []byte
	for _, entry := range entries {
		var err error
		if text, err = entry.AppendJSON(text); err != nil {
			return nil, fmt.Errorf("encode explanation: %w", err)
		}
	}
	return text, nil
}

func completeExplain(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var names []cobra.Completion
	for _, s := range tracer.States() {
		names = append(names, s.String())
	}
	for _, tr := range tracer.LegalTransitions() {
		names = append(names, tr.Old.String()+":"+tr.New.String())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
