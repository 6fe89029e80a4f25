package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/finwait/finwait/cmd/finwait/internal/doctor"
	"github.com/finwait/finwait/cmd/finwait/internal/match"
	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/output"
	"github.com/finwait/finwait/tracer"
)

// maxDoctorWatch is how long a tracer that keeps all flows may watch.
const maxDoctorWatch = 24 * time.Hour

// doctorFlags is what the flags of doctor say.
type doctorFlags struct {
	watch           time.Duration
	netns, replay   []string
	explain         []string
	logOnly, list   bool
	source, pinPath string
	format          string
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
something was; 1 and 2 are failures and usage errors, as ever. --list has all that
can be found, --explain tells all about one, and docs/doctor.md has them all.`,
		Example: `  finwait doctor
  finwait doctor --for 1m --netns blue
  finwait doctor --list
  finwait doctor --explain close-wait-leak
  finwait doctor --replay /var/log/finwait.log
  finwait doctor --format json | jq -r '.findings[] | [.severity, .id, .summary] | @tsv'`,
		Args: noDoctorArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return flags.run(cmd) },
	}
	f := cmd.Flags()
	f.DurationVar(&flags.watch, "for", 10*time.Second, "watch for this `time` (1s to 24h)")
	f.StringSliceVar(&flags.netns, "netns", nil, "only these network `namespaces`: inode number, name, path or self (default all)")
	f.StringVar(&flags.source, "source", sourceAuto, "who sees what happens to connections: kernel (a tracer of its own), agent, or auto for whichever can")
	f.StringVar(&flags.pinPath, "pin-path", defaultPinPath, "`folder` in which the agent keeps its counters")
	f.StringArrayVar(&flags.replay, "replay", nil, "take what happened to connections from this `file`, gzip and zstd are understood; - is standard input")
	f.BoolVar(&flags.logOnly, "log-only", false, "with --replay: look at nothing of this host")
	f.StringVar(&flags.format, "format", "table", "output `format`: table or json (one object, with --list one for each line)")
	f.StringSliceVar(&flags.explain, "explain", nil, "tell all about what has these `ids`, and exit")
	f.BoolVar(&flags.list, "list", false, "list all that can be found, and exit")
	completeWords(cmd, "source", []string{sourceAuto, sourceAgent, sourceKernel})
	completeWords(cmd, "format", []string{"table", "json"})
	completeWords(cmd, "explain", doctor.IDs())
	return cmd
}

func (f *doctorFlags) run(cmd *cobra.Command) error {
	switch {
	case f.format != "table" && f.format != "json":
		return usagef("unknown format %q (want table or json)", f.format)
	case f.list && cmd.Flags().Changed("explain"):
		return usagef("--list and --explain contradict each other")
	case f.list:
		return writeFindings(cmd, f.listText())
	case cmd.Flags().Changed("explain"):
		return f.runExplain(cmd)
	}
	opts, err := f.options(cmd)
	if err != nil {
		return err
	}
	host, err := observe.Watch(cmd.Context(), opts)
	if errors.Is(err, context.Canceled) {
		return errors.New("interrupted before the host was looked at")
	}
	if err != nil {
		return err
	}
	findings := doctor.Diagnose(host)
	err = writeFindings(cmd, f.text(cmd, host, findings))
	if len(findings) > 0 && findings[0].Severity >= doctor.Warning && (err == nil || errors.Is(err, syscall.EPIPE)) {
		return errFindings // also to a reader who has read enough
	}
	return err
}

// text returns what was found in the format that is asked for.
func (f *doctorFlags) text(cmd *cobra.Command, host *observe.Host, findings []doctor.Finding) []byte {
	if f.format == "json" {
		return output.AppendDoctorJSON(nil, host, findings)
	}
	_, _, isTerminal := terminal(cmd.OutOrStdout())
	return output.AppendDoctorText(nil, host, findings, output.Options{Color: isTerminal && os.Getenv("NO_COLOR") == ""})
}

func writeFindings(cmd *cobra.Command, text []byte) error {
	if _, err := cmd.OutOrStdout().Write(text); err != nil {
		return fmt.Errorf("write findings: %w", err)
	}
	return nil
}

// errFindings is the end of a run that went well and found something.
var errFindings = errors.New("something was found")

// noDoctorArgs refuses arguments, and says which flag may have been meant.
func noDoctorArgs(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if rule, err := doctor.Lookup(args[0]); err == nil {
		return usagef("doctor takes no arguments, but was given %q; did you mean --explain %s?", args[0], rule.ID)
	}
	return usagef("doctor takes no arguments, but was given %q; --netns names a network namespace, --replay a log, --explain what can be found", args[0])
}

func (f *doctorFlags) runExplain(cmd *cobra.Command) error {
	if len(f.explain) == 0 {
		return usagef("--explain is empty; name what to explain (--list has them all)")
	}
	var text []byte
	for i, id := range f.explain {
		rule, err := doctor.Lookup(id)
		switch {
		case err != nil:
			return usagef("--explain: %w (--list has them all)", err)
		case f.format == "json":
			text = output.AppendRuleJSON(text, rule)
			continue
		case i > 0:
			text = append(text, '\n')
		}
		text = output.AppendRuleText(text, rule)
	}
	return writeFindings(cmd, text)
}

// listText has a line for each rule.
func (f *doctorFlags) listText() (text []byte) {
	if f.format != "json" {
		return output.AppendRuleList(nil, doctor.Rules())
	}
	for _, rule := range doctor.Rules() {
		text = output.AppendRuleJSON(text, rule)
	}
	return text
}

// options checks the flags and returns what they ask for.
func (f *doctorFlags) options(cmd *cobra.Command) (*observe.Options, error) {
	if err := f.check(cmd.Flags()); err != nil {
		return nil, err
	}
	opts := &observe.Options{For: f.watch, PinPath: f.pinPath, Open: newTracer, Source: doctorSources[f.source]}
	if _, _, ok := terminal(cmd.ErrOrStderr()); ok {
		opts.Ready = func() { fmt.Fprintf(cmd.ErrOrStderr(), "finwait: watching for %v; Ctrl-C ends it sooner\n", f.watch) }
	}
	p := flagParser{flags: cmd.Flags()}
	parseList(&p, "netns", f.netns, &opts.Netns, parseNetns)
	opts.NetnsWords = f.netns
	if len(f.netns) == 1 && f.netns[0] == "self" {
		opts.Scope = tracer.SelfNetns
	}
	if len(f.replay) > 0 {
		opts.Source, opts.LogOnly = observe.SourceLog, f.logOnly
		opts.Log = func(ctx context.Context) (*observe.Traffic, error) {
			return readTraffic(ctx, cmd, f.replay, opts.Netns)
		}
	}
	return opts, p.err
}

// doctorSources are the words of --source.
var doctorSources = map[string]observe.Source{sourceAuto: "", sourceAgent: observe.SourceAgent, sourceKernel: observe.SourceKernel}

// check refuses what makes no sense.
func (f *doctorFlags) check(flags *pflag.FlagSet) error {
	if _, ok := doctorSources[f.source]; !ok {
		return usagef("unknown --source %q (want auto, agent or kernel)", f.source)
	}
	switch {
	case f.watch < observe.Shortest:
		return usagef("--for %v is too short to tell anything (want %v or more)", f.watch, observe.Shortest)
	case f.watch > maxDoctorWatch:
		return usagef("--for %v is too long (want 24h or less); finwait serve watches for good", f.watch)
	case f.logOnly && len(f.replay) == 0:
		return usagef("--log-only looks at logs alone: name them with --replay")
	case f.logOnly && flags.Changed("for"):
		return usagef("--log-only and --for contradict each other: a log is not watched")
	case f.source == sourceAgent && len(f.netns) > 0:
		return usagef("--source agent and --netns contradict each other: it counts all network namespaces together")
	case len(f.replay) > 0 && flags.Changed("source"):
		return usagef("--replay and --source contradict each other: what happened to connections is in the log")
	case flags.Changed("pin-path") && (f.source == sourceKernel || len(f.replay) > 0):
		return usagef("--pin-path is where the agent has its counters, which are not asked: leave it out, or take --source agent or auto")
	}
	return nil
}

// readTraffic reads what happened to connections from logs: those of these network
// namespaces, or all if there are none. A log may have both transitions and connections
// of the same sockets; then the transitions count.
func readTraffic(ctx context.Context, cmd *cobra.Command, files []string, netns []uint32) (*observe.Traffic, error) {
	reader, filter := newReplay(cmd, files, nil), match.New(&tracer.Filter{Netns: netns})
	byEvent, byConn := observe.NewFlows(observe.SourceLog), observe.NewFlows(observe.SourceLog)
	for record, err := range reader.Records(ctx) {
		switch {
		case err != nil:
			return nil, err
		case record.Event != nil && filter.Socket(record.Event) == match.Pass:
			byEvent.AddEvent(record.Event, record.SamplingRatio)
		case record.Conn != nil && filter.Conn(record.Conn):
			byConn.AddConn(record.Conn, record.SamplingRatio)
		}
	}
	stderr, c := cmd.ErrOrStderr(), reader.Counts()
	if ctx.Err() != nil {
		fmt.Fprintln(stderr, "finwait: interrupted: there may be more to read")
	}
	writeNotes(stderr, append(unreadNotes(c, 0), note{c.Damaged, "damaged lines skipped"}))
	if c.Transitions == 0 {
		return byConn.Traffic(), c.Err()
	}
	writeNotes(stderr, []note{{c.Conns, "connections skipped, since there are transitions"}})
	return byEvent.Traffic(), c.Err()
}
