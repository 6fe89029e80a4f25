//go:build !noserve

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/finwait/finwait/cmd/finwait/internal/agent"
	"github.com/finwait/finwait/cmd/finwait/internal/build"
	"github.com/finwait/finwait/cmd/finwait/internal/config"
	"github.com/finwait/finwait/cmd/finwait/internal/logfile"
	"github.com/finwait/finwait/cmd/finwait/internal/otlp"
	"github.com/finwait/finwait/cmd/finwait/internal/web"
	"github.com/finwait/finwait/tracer"
)

// defaultStateDir is where it is noted who the agent is.
const defaultStateDir = "/run/finwait"

// serveFlags are the settings of the agent: flags, FINWAIT_ variables and keys of
// the configuration file.
type serveFlags struct {
	file               string
	check, printConfig bool

	filter        filterFlags
	slow, reasons []string
	sample        float64
	waitTimeWait  bool
	records       []string
	evidence      string
	buffer        int

	log                   string
	logMaxSize, logMaxAll config.Size
	logMaxAge             time.Duration
	logCompress, logSync  string

	listen       []string
	webConfig    string
	servicePorts []string
	byCgroup     bool
	otlp         []string

	pin            bool
	pinPath        string
	stateDir       string
	keepPrivileges bool
}

// reloadable are the settings that SIGHUP changes.
var reloadable = []string{
	"state", "transition", "port", "lport", "rport", "addr", "netns", "pid", "uid", "comm", "ipv4", "ipv6",
	"slow", "reason",
}

func newServeCommand() *cobra.Command {
	var flags serveFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the agent: a log of transitions or connections, metrics, OTLP",
		Long: `Runs until it is told to end. It writes transitions or connections as JSON lines
to a file that it rotates, answers Prometheus at /metrics from the kernel's own
counters, and sends both by OTLP where the OTEL_* variables say.

Filters and --sample choose the records; metrics are exact all the same. Every
setting is a flag, a variable (--log-max-size is FINWAIT_LOG_MAX_SIZE) and a key
of the YAML file that --config names. SIGHUP reads the filters again, and opens the
log again; SIGTERM ends it, when what has been traced is written.

There is one agent on a host. When all that was there is counted, it drops the
privileges that it does not need any more.`,
		Example: `  finwait serve --log /var/log/finwait/finwait.log --records conns --slow SYN_SENT:1s
  finwait serve --config /etc/finwait/finwait.yaml
  finwait serve --config /etc/finwait/finwait.yaml --check
  OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 finwait serve --otlp logs,metrics`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runServe(cmd, &flags)
		},
	}
	flags.add(cmd)
	flags.complete(cmd)
	return cmd
}

func (f *serveFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.file, config.FileFlag, "", "YAML `file` with settings; its keys are the names of these flags")
	flags.BoolVar(&f.check, "check", false, "check the settings, load and attach all, and end")
	flags.BoolVar(&f.printConfig, "print-config", false, "print all settings as a configuration file, and end")
	config.CommandLineOnly(flags, config.FileFlag, "check", "print-config")

	f.filter.add(cmd)
	flags.StringSliceVar(&f.slow, "slow", nil, "records of connections: those that were at least as long in a `state`, such as ESTABLISHED:10s")
	flags.StringSliceVar(&f.reasons, "reason", nil, "records of connections: those that ended for one of these `reasons`, such as timeout")
	flags.BoolVar(&f.waitTimeWait, "wait-timewait", true, "a record of a connection when its TIME_WAIT ends, or (=false) when that begins")
	flags.Float64Var(&f.sample, "sample", 1, "`share` of connections of which there are records, such as 0.01; each whole or not at all")
	flags.StringSliceVar(&f.records, "records", []string{"transitions"}, "what the log and OTLP get: `transitions`, conns or both")
	flags.StringVar(&f.evidence, "evidence", "", "what is to show TIME_WAIT and half-open connections: probe or timer (default the best that the kernel takes)")
	flags.IntVar(&f.buffer, "buffer", 4, "`MiB` of kernel buffer, a power of two; more of it loses less in a burst")

	flags.StringVar(&f.log, "log", "", "`file` for records, or - for standard output (default none)")
	flags.Var(&f.logMaxSize, "log-max-size", "`size` at which the log is rotated, such as 100MiB; 0 for any")
	flags.DurationVar(&f.logMaxAge, "log-max-age", 0, "`age` at which the log is rotated, such as 24h; 0 for any")
	flags.Var(&f.logMaxAll, "log-max-total", "`size` of all logs together, at which the oldest is removed; 0 for any")
	flags.StringVar(&f.logCompress, "log-compress", "none", "how rotated logs are compressed: none, gzip or zstd")
	flags.StringVar(&f.logSync, "log-sync", "rotate", "when a log is written through to the disk: never, rotate or a `time` such as 5s")

	flags.StringSliceVar(&f.listen, "listen", []string{web.DefaultAddress}, "`addresses` for Prometheus and health checks; empty for none")
	flags.StringVar(&f.webConfig, "web-config", "", "web configuration `file` of the Prometheus exporter toolkit, with TLS and users")
	flags.StringSliceVar(&f.servicePorts, "service-ports", nil, "local `ports` of services that have metrics of their own")
	flags.BoolVar(&f.byCgroup, "by-cgroup", false, "metrics for each cgroup, the largest of them")
	flags.StringSliceVar(&f.otlp, "otlp", nil, "what to send by OTLP: `logs`, metrics or both; where, the OTEL_* variables say")

	flags.BoolVar(&f.pin, "pin", false, "keep the counters in --pin-path, where they outlive the agent and finwait count reads them")
	flags.StringVar(&f.pinPath, "pin-path", defaultPinPath, "`folder` on a BPF file system for --pin")
	flags.StringVar(&f.stateDir, "state-dir", defaultStateDir, "`folder` that says who the agent of this host is")
	flags.BoolVar(&f.keepPrivileges, "keep-privileges", false, "keep the privileges that are not needed any more")
}

func (f *serveFlags) complete(cmd *cobra.Command) {
	f.filter.complete(cmd)
	for name, words := range map[string][]string{
		"reason": tracer.ReasonNames(), "records": {"transitions", "conns"}, "otlp": {"logs", "metrics"},
		"evidence": {"probe", "timer"}, "log-compress": logfile.Compressions,
	} {
		completeWords(cmd, name, words)
	}
}

func runServe(cmd *cobra.Command, flags *serveFlags) error {
	given := flagsGiven(cmd.Flags())
	if err := config.Load(cmd.Flags(), os.Environ()); err != nil {
		return usagef("%w", err)
	}
	if flags.printConfig {
		_, err := io.WriteString(cmd.OutOrStdout(), config.Example(cmd.Flags()))
		return err
	}
	cfg, err := flags.parse(cmd.Flags())
	if err != nil {
		return placed(cmd.Flags(), err)
	}
	cfg.Logger = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
	cfg.Open = func(opts *tracer.Options) (*tracer.Tracer, func(), error) { return newTracer(cmd.Context(), opts) }
	if flags.check {
		return runCheck(cmd, cfg)
	}
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP) // before it is ready: it must not kill
	defer signal.Stop(hangups)
	a, err := agent.Start(cmd.Context(), *cfg)
	if errors.Is(err, context.Canceled) && cmd.Context().Err() != nil {
		return nil // it was told to end before it was ready
	}
	if err != nil {
		return serveError(err)
	}
	s := &server{agent: a, log: cfg.Logger, flags: cmd.Flags(), given: given, cgroups: cfg.Filter.Cgroups}
	return errors.Join(s.run(cmd.Context(), hangups), a.Stop())
}

// placed says where the value is from that an error is about, unless it is from the
// command line: errors begin with the flag's name, or have it.
func placed(flags *pflag.FlagSet, err error) error {
	_, after, _ := strings.Cut(err.Error(), "--")
	name := after[:len(after)-len(strings.TrimLeftFunc(after, func(r rune) bool { return r == '-' || unicode.IsLower(r) }))]
	from := config.Source(flags, name)
	if from == "" || from == "--"+name {
		return err
	}
	return usagef("%s: %w", from, err)
}

func runCheck(cmd *cobra.Command, cfg *agent.Config) error {
	evidence, err := agent.Check(cmd.Context(), *cfg)
	if err != nil {
		return serveError(err)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "the settings are right, and the agent works here, by %s\n", evidence)
	return nil
}

// serveError tells the user's mistakes from all else.
func serveError(err error) error {
	var (
		env     *otlp.EnvError
		options *tracer.OptionsError
	)
	if errors.As(err, &env) || errors.As(err, &options) {
		return usagef("%w", err)
	}
	return err
}

// server runs an agent, and reads its settings again when it is told to.
type server struct {
	agent *agent.Agent
	log   *slog.Logger
	flags *pflag.FlagSet // as they are in use
	given map[string][]string

	cgroups []uint64 // of the filter
}

// run returns when ctx is done, or the agent cannot go on.
func (s *server) run(ctx context.Context, hangups <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-s.agent.Failed():
			return err
		case <-hangups:
			s.agent.Reload(s.reload)
		}
	}
}

// reload reads the settings and has the agent take those that it can. One mistake,
// and all stays as it was.
func (s *server) reload() error {
	var flags serveFlags
	fresh := &cobra.Command{Use: "serve"}
	flags.add(fresh)
	giveFlags(fresh.Flags(), s.given)
	if err := config.Load(fresh.Flags(), os.Environ()); err != nil {
		return err
	}
	changed, restart := config.Changes(s.flags, fresh.Flags(), reloadable)
	if len(restart) > 0 {
		return fmt.Errorf("%s cannot change while the agent runs: restart it", strings.Join(restart, ", "))
	}
	cfg, err := flags.parseWith(fresh.Flags(), s.cgroups)
	if err != nil {
		return placed(fresh.Flags(), err)
	}
	if err := s.agent.SetFilter(cfg.Filter, cfg.Conns); err != nil {
		return err
	}
	s.flags = fresh.Flags()
	s.log.Info("the settings are read again", "changed", changed)
	return nil
}

// flagsGiven returns the values of the flags that the command line has.
func flagsGiven(flags *pflag.FlagSet) map[string][]string {
	given := map[string][]string{}
	flags.Visit(func(f *pflag.Flag) {
		if list, ok := f.Value.(pflag.SliceValue); ok {
			given[f.Name] = list.GetSlice()
			return
		}
		given[f.Name] = []string{f.Value.String()}
	})
	return given
}

// giveFlags sets flags that have never been set to the values that others had.
func giveFlags(flags *pflag.FlagSet, given map[string][]string) {
	for name, values := range given {
		f := flags.Lookup(name)
		if f == nil {
			continue // one of all commands
		}
		var err error
		if list, ok := f.Value.(pflag.SliceValue); ok {
			err = list.Replace(values)
		} else {
			err = f.Value.Set(values[0])
		}
		if err != nil {
			panic(err) // it has been set to the same before
		}
		f.Changed = true
	}
}

// parseWith is parse with the cgroups of the start: a path may be another cgroup by
// now, or none.
func (f *serveFlags) parseWith(flags *pflag.FlagSet, cgroups []uint64) (*agent.Config, error) {
	flag, words := flags.Lookup("cgroup"), f.filter.cgroups
	changed := flag.Changed
	f.filter.cgroups, flag.Changed = nil, false
	cfg, err := f.parse(flags)
	f.filter.cgroups, flag.Changed = words, changed
	if err != nil {
		return nil, err
	}
	cfg.Filter.Cgroups = cgroups
	return cfg, nil
}

// parse returns the configuration that the settings ask for, without what is the
// same for all of them.
func (f *serveFlags) parse(flags *pflag.FlagSet) (*agent.Config, error) {
	cfg := &agent.Config{Version: build.Version(), StateDir: f.stateDir, KeepPrivileges: f.keepPrivileges, ByCgroup: f.byCgroup}
	for _, part := range []func(*pflag.FlagSet, *agent.Config) error{
		f.parseRecords, f.parseTracer, f.parseLog, f.parseWeb, f.parseOTLP,
	} {
		if err := part(flags, cfg); err != nil {
			return nil, err
		}
	}
	sinks := cfg.Log != nil || cfg.OTLPLogs
	if !sinks && !cfg.OTLPMetrics && len(cfg.Addresses) == 0 {
		return nil, usagef("there is nothing to do: want one of --log, --otlp and --listen at least")
	}
	if !sinks {
		cfg.Transitions, cfg.Conns = false, nil
	}
	return cfg, nil
}

func (f *serveFlags) parseRecords(flags *pflag.FlagSet, cfg *agent.Config) error {
	for _, word := range f.records {
		switch word {
		case "transitions":
			cfg.Transitions = true
		case "conns":
			cfg.Conns = &tracer.ConnOptions{AtTimeWait: !f.waitTimeWait}
		default:
			return usagef("unknown --records %q (want transitions, conns or both)", word)
		}
	}
	if cfg.Conns == nil {
		if len(f.slow)+len(f.reasons) > 0 {
			return usagef("--slow and --reason are about connections: want --records conns")
		}
		return nil
	}
	chosen, err := parseConns(flags, f.slow, f.reasons)
	if err != nil {
		return err
	}
	cfg.Conns.Slow, cfg.Conns.Reasons = chosen.Slow, chosen.Reasons
	return nil
}

func (f *serveFlags) parseTracer(flags *pflag.FlagSet, cfg *agent.Config) (err error) {
	if cfg.Filter, err = f.filter.parse(flags); err != nil {
		return err
	}
	if f.sample <= 0 || f.sample > 1 {
		return usagef("--sample %v is not a share of all connections, above 0 and at most 1", f.sample)
	}
	if f.sample < 1 {
		cfg.Filter.Sample = f.sample
	}
	if cfg.EventBuffer, err = bufferBytes(f.buffer); err != nil {
		return err
	}
	if cfg.Conns != nil { // a connection is one record, and some ten transitions
		cfg.Conns.Buffer = max(cfg.EventBuffer/2, 1<<20)
	}
	if f.pin {
		cfg.PinPath = f.pinPath
	}
	cfg.Evidence, err = parseEvidence(flags, f.evidence)
	return err
}

func (f *serveFlags) parseLog(_ *pflag.FlagSet, cfg *agent.Config) error {
	if f.log == "" {
		return nil
	}
	sync, err := logfile.ParseSync(f.logSync)
	if err != nil {
		return usagef("--log-sync: %w", err)
	}
	cfg.Log = &logfile.Options{
		Path: f.log, MaxSize: int64(f.logMaxSize), MaxAge: f.logMaxAge, MaxTotal: int64(f.logMaxAll),
		Compress: f.logCompress, Sync: sync,
	}
	if err := cfg.Log.Check(); err != nil {
		return usagef("--log: %w", err)
	}
	return nil
}

func (f *serveFlags) parseWeb(flags *pflag.FlagSet, cfg *agent.Config) error {
	cfg.Addresses = slices.DeleteFunc(slices.Clone(f.listen), func(address string) bool { return address == "" })
	cfg.WebConfig = f.webConfig
	if err := web.CheckAddresses(cfg.Addresses); err != nil {
		return usagef("--listen: %w", err)
	}
	if err := web.CheckConfig(f.webConfig); err != nil {
		return usagef("--web-config: %w", err)
	}
	p := flagParser{flags: flags}
	var ports []tracer.PortRange
	parseList(&p, "service-ports", f.servicePorts, &ports, parsePorts)
	for _, r := range ports {
		for port := int(r.First); port <= int(r.Last); port++ {
			cfg.ServicePorts = append(cfg.ServicePorts, uint16(port))
		}
	}
	if len(cfg.ServicePorts) > maxServicePorts {
		return usagef("--service-ports has %d ports, each of which is some 300 series; at most %d fit", len(cfg.ServicePorts), maxServicePorts)
	}
	return p.err
}

// maxServicePorts keeps a slip such as 1-65535 from becoming millions of series.
const maxServicePorts = 256

func (f *serveFlags) parseOTLP(_ *pflag.FlagSet, cfg *agent.Config) (err error) {
	for _, word := range f.otlp {
		switch word {
		case "logs":
			cfg.OTLPLogs = true
		case "metrics":
			cfg.OTLPMetrics = true
		default:
			return usagef("unknown --otlp %q (want logs, metrics or both)", word)
		}
	}
	if len(f.otlp) == 0 {
		return nil
	}
	if cfg.OTLP, err = otlp.ReadEnv(os.LookupEnv); err != nil {
		return usagef("%w", err)
	}
	if cfg.OTLP.Disabled {
		cfg.OTLPLogs, cfg.OTLPMetrics = false, false
	}
	return nil
}
