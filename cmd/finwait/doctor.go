package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/finwait/finwait/cmd/finwait/internal/doctor"
	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/output"
	"github.com/finwait/finwait/tracer"
)

// doctorFlags is what the flags of doctor say.
type doctorFlags struct {
	watch           time.Duration
	netns, replay   []string
	logOnly         bool
	source, pinPath string
	format, explain string
}

func newDoctorCommand() *cobra.Command {
	var flags doctorFlags
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what is wrong with this host's TCP sockets, and what to change",
		Long: `Looks at the host, watches it for a while (--for), looks again, and says what is
wrong: what shows it, why it matters, and what to change, in the application first
and then by sysctl. It changes nothing itself.

It looks at the sockets of each network namespace and whose they are, at what
happens to connections meanwhile, at the kernel's counters, at the sysctls, and at
the files that set them when the host starts. What it cannot see, without root for
one, it names, and judges the rest.

With --replay what happened to connections is taken from logs that trace, conns or
serve have written as JSON, and the host is looked at all the same; --log-only does
not, for logs of another host.

Exit code 0 says that nothing of the severity warning or worse was found, 3 that
something was; 1 and 2 are failures and usage errors, as ever. --explain tells all
about a finding; docs/doctor.md has them all.`,
		Example: `  finwait doctor
  finwait doctor --for 1m --netns blue
  finwait doctor --explain close-wait-leak
  finwait doctor --replay /var/log/finwait.log
  finwait doctor --format json | jq -r '.findings[] | [.severity, .id, .summary] | @tsv'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return flags.run(cmd) },
	}
	f := cmd.Flags()
	f.DurationVar(&flags.watch, "for", 10*time.Second, "watch for this `time`")
	f.StringSliceVar(&flags.netns, "netns", nil, "only these network `namespaces`: inode number, name, path or self (default all)")
	f.StringVar(&flags.source, "source", sourceAuto, "who sees what happens to connections: kernel (a tracer of its own), agent, or auto for whichever can")
	f.StringVar(&flags.pinPath, "pin-path", defaultPinPath, "`folder` in which the agent keeps its counters")
	f.StringArrayVar(&flags.replay, "replay", nil, "take what happened to connections from this `file`, gzip and zstd are understood; - is standard input")
	f.BoolVar(&flags.logOnly, "log-only", false, "with --replay: look at nothing of this host")
	f.StringVar(&flags.format, "format", "table", "output `format`: table or json")
	f.StringVar(&flags.explain, "explain", "", "tell all about the finding of this `id`, and exit")
	completeWords(cmd, "source", []string{sourceAuto, sourceAgent, sourceKernel})
	completeWords(cmd, "format", []string{"table", "json"})
	completeWords(cmd, "explain", ruleIDs())
	return cmd
}

func ruleIDs() (ids []string) {
	for _, r := range doctor.Rules() {
		ids = append(ids, r.ID)
	}
	return ids
}

func (f *doctorFlags) run(cmd *cobra.Command) error {
	if f.format != "table" && f.format != "json" {
		return usagef("unknown format %q (want table or json)", f.format)
	}
	if cmd.Flags().Changed("explain") {
		return f.runExplain(cmd.OutOrStdout())
	}
	opts, err := f.options(cmd)
	if err != nil {
		return err
	}
	host, err := observe.Watch(cmd.Context(), opts)
	if err != nil {
		return err
	}
	findings := doctor.Diagnose(host)
	text := output.AppendDoctorText
	if f.format == "json" {
		text = output.AppendDoctorJSON
	}
	if _, err := cmd.OutOrStdout().Write(text(nil, host, findings)); err != nil {
		return fmt.Errorf("write findings: %w", err)
	}
	if len(findings) > 0 && findings[0].Severity >= doctor.Warning {
		return errFindings
	}
	return nil
}

// errFindings is the end of a run that went well and found something.
var errFindings = errors.New("something was found")

func (f *doctorFlags) runExplain(w io.Writer) error {
	rule, err := doctor.Lookup(f.explain)
	if err != nil {
		return usagef("--explain: %w", err)
	}
	text := output.AppendRuleText
	if f.format == "json" {
		text = output.AppendRuleJSON
	}
	if _, err := w.Write(text(nil, rule)); err != nil {
		return fmt.Errorf("write explanation: %w", err)
	}
	return nil
}

// options checks the flags and returns what they ask for.
func (f *doctorFlags) options(cmd *cobra.Command) (*observe.Options, error) {
	opts := &observe.Options{For: f.watch, PinPath: f.pinPath, Open: newTracer}
	switch {
	case f.watch <= 0:
		return nil, usagef("--for %v is not a time to watch for, such as 10s", f.watch)
	case f.logOnly && len(f.replay) == 0:
		return nil, usagef("--log-only looks at logs alone: name them with --replay")
	case len(f.replay) > 0 && cmd.Flags().Changed("source"):
		return nil, usagef("--replay and --source contradict each other: what happened to connections is in the log")
	}
	switch f.source {
	case sourceAuto:
	case sourceAgent:
		opts.Source = observe.SourceAgent
	case sourceKernel:
		opts.Source = observe.SourceKernel
	default:
		return nil, usagef("unknown --source %q (want auto, agent or kernel)", f.source)
	}
	if len(f.replay) > 0 {
		opts.Source, opts.LogOnly = observe.SourceLog, f.logOnly
		opts.Log = func(ctx context.Context) (*observe.Traffic, error) { return readTraffic(ctx, cmd, f.replay) }
	}
	p := flagParser{flags: cmd.Flags()}
	parseList(&p, "netns", f.netns, &opts.Netns, parseNetns)
	if len(f.netns) == 1 && f.netns[0] == "self" {
		opts.Scope = tracer.SelfNetns
	}
	return opts, p.err
}

// readTraffic reads what happened to connections from logs.
func readTraffic(ctx context.Context, cmd *cobra.Command, files []string) (*observe.Traffic, error) {
	reader, flows := newReplay(cmd, files, nil), observe.NewFlows(observe.SourceLog)
	for record, err := range reader.Records(ctx) {
		if err != nil {
			return nil, err
		}
		if record.Event != nil {
			flows.AddEvent(record.Event, record.SamplingRatio)
		} else {
			flows.AddConn(record.Conn, record.SamplingRatio)
		}
	}
	c := reader.Counts()
	writeNotes(cmd.ErrOrStderr(), append(unreadNotes(c, 0), note{c.Damaged, "damaged lines skipped"}))
	return flows.Traffic(), c.Err()
}
