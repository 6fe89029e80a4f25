// Package agent is finwait as a service: one tracer, whose records go to sinks and
// whose counters are there for whoever asks.
//
//	tracer ─ transitions, connections ─> feed ─> one queue per sink ─> log file, OTLP
//	       └ counters ─> read when Prometheus asks, or when OTLP metrics are due
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/finwait/finwait/cmd/finwait/internal/lifecycle"
	"github.com/finwait/finwait/cmd/finwait/internal/logfile"
	"github.com/finwait/finwait/cmd/finwait/internal/metrics"
	"github.com/finwait/finwait/cmd/finwait/internal/otlp"
	"github.com/finwait/finwait/cmd/finwait/internal/sink"
	"github.com/finwait/finwait/cmd/finwait/internal/web"
	"github.com/finwait/finwait/tracer"
)

// Config is what an agent does.
type Config struct {
	// Version is finwait's own.
	Version string
	// StateDir is where it is noted who the agent is.
	StateDir string
	// KeepPrivileges has the agent keep the privileges that it no longer needs.
	KeepPrivileges bool

	// Filter chooses the records.
	Filter tracer.Filter
	// Transitions and Conns are the records that the sinks get; Conns is nil for
	// no connections.
	Transitions bool
	Conns       *tracer.ConnOptions
	// Evidence, EventBuffer and PinPath are those of tracer.Options.
	Evidence    tracer.Evidence
	EventBuffer int
	PinPath     string

	// Log is the log of records, nil for none. Its Output is set by Start.
	Log *logfile.Options
	// OTLP says where to; OTLPLogs and OTLPMetrics what.
	OTLP                  *otlp.Config
	OTLPLogs, OTLPMetrics bool

	// Addresses are where HTTP requests are answered, none if it is empty.
	Addresses []string
	// WebConfig is a file with TLS and users, "" for neither.
	WebConfig string
	// ServicePorts and ByCgroup break metrics down.
	ServicePorts []uint16
	ByCgroup     bool

	// Open makes the tracer, and what ends it.
	Open func(*tracer.Options) (t *tracer.Tracer, done func(), err error)
	// Logger is told what the agent does, and what goes wrong.
	Logger *slog.Logger
}

const (
	// silence is for how long records may wait without one being read.
	silence = 30 * time.Second
	// closing is how long sinks have for what they have not sent yet, and leaving how
	// long each of the things has that come after.
	closing = 10 * time.Second
	leaving = 3 * time.Second
)

// Agent is one that runs.
type Agent struct {
	cfg     Config
	began   time.Time
	log     *slog.Logger
	lock    *lifecycle.Lock
	cgroups *tracer.Cgroups // nil knows none
	tracer  *tracer.Tracer
	close   func()       // closes it
	logfile *logfile.Log // nil if there is none
	otlp    *otlp.Logs   // nil if there is none
	queues  []*sink.Queue
	web     *web.Server   // nil if there is none
	metrics *otlp.Metrics // nil if there are none

	alive  []*lifecycle.Heartbeat // of each feed
	ready  atomic.Bool
	failed chan error // has the first thing that the agent cannot go on without
	ctx    context.Context
	cancel context.CancelFunc // ends what runs beside the feeds
	feeds  sync.WaitGroup
	work   sync.WaitGroup
}

// Start returns an agent that traces, when all that was there is counted and all
// that it needs is open. Its privileges are dropped then.
//
// The error is a [*lifecycle.HeldError] if there is an agent already, and one of
// the errors of the parts for a mistake of the user.
func Start(ctx context.Context, cfg Config) (*Agent, error) {
	a := &Agent{cfg: cfg, log: cfg.Logger, began: time.Now(), failed: make(chan error, 1)}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	if err := a.start(ctx); err != nil {
		return nil, errors.Join(err, a.Stop())
	}
	return a, nil
}

// Check loads and attaches what an agent would, opens nothing that another may hold,
// and returns what it is that shows TIME_WAIT here.
func Check(ctx context.Context, cfg Config) (tracer.Evidence, error) {
	if err := cfg.checkParts(); err != nil {
		return 0, err
	}
	opts := cfg.tracerOptions()
	opts.PinPath = ""
	t, done, err := cfg.Open(opts)
	if err != nil {
		return 0, err
	}
	defer done()
	_, err = t.Gauges(ctx)
	return t.Evidence(), err
}

// checkParts returns what is wrong with all but the tracer.
func (c *Config) checkParts() error {
	if c.PinPath != "" {
		if err := tracer.CheckPinPath(c.PinPath); err != nil {
			return err
		}
	}
	if c.Log != nil {
		if err := c.Log.CheckPlace(); err != nil {
			return err
		}
	}
	if c.OTLPLogs {
		logs, err := otlp.NewLogs(c.OTLP, otlp.LogOptions{})
		if err != nil {
			return err
		}
		defer logs.Close()
	}
	if c.OTLPMetrics {
		m, err := otlp.NewMetrics(c.OTLP, nil, otlp.MetricOptions{Log: c.Logger})
		if err != nil {
			return err
		}
		defer m.Close()
	}
	return nil
}

func (a *Agent) start(ctx context.Context) (err error) {
	if a.lock, err = lifecycle.Acquire(a.cfg.StateDir, a.cfg.Version); err != nil {
		return err
	}
	if a.cgroups, err = tracer.NewCgroups(); err != nil {
		a.log.Warn("no record tells a container or pod", "error", err)
	}
	if err := a.openSinks(); err != nil {
		return err
	}
	if a.tracer, a.close, err = a.cfg.Open(a.cfg.tracerOptions()); err != nil {
		return err
	}
	a.startFeeds()
	if err := a.serve(ctx); err != nil {
		return err
	}
	if _, err := a.tracer.Gauges(ctx); err != nil {
		return err
	}
	if err := a.dropPrivileges(); err != nil {
		return err
	}
	keepSmall()
	a.ready.Store(true)
	a.announce()
	a.work.Go(func() { lifecycle.Watch(a.ctx, a.log, a.isAlive) })
	return nil
}

// keepSmall gives back the memory that it took to start, and has the agent take less
// from now on: of what sinks make of records nearly all is garbage at once.
func keepSmall() {
	const percent = 50                                           // more than what is in use
	if before := debug.SetGCPercent(percent); before < percent { // -1 is off
		debug.SetGCPercent(before)
	}
	debug.FreeOSMemory()
}

// tracerOptions returns what the tracer is to be like. What it counts does not hang
// on the filter.
func (c *Config) tracerOptions() *tracer.Options {
	opts := &tracer.Options{
		Filter: c.Filter, Reloadable: true, Conns: c.Conns, NoTransitions: !c.Transitions,
		Evidence: c.Evidence, EventBuffer: c.EventBuffer, PinPath: c.PinPath,
	}
	if len(c.Addresses) > 0 || c.OTLPMetrics {
		opts.Profile = metrics.ProfileOptions(c.ServicePorts)
	}
	return opts
}

func (a *Agent) dropPrivileges() error {
	if a.cfg.KeepPrivileges {
		return nil
	}
	kept, err := lifecycle.Drop()
	if err != nil {
		return fmt.Errorf("drop privileges: %w", err)
	}
	a.log.Info("privileges are dropped but for these", "capabilities", kept)
	return nil
}

// announce says that the agent is there, and how it knows what it says.
func (a *Agent) announce() {
	args := []any{"version", a.cfg.Version, "evidence", a.tracer.Evidence()}
	if a.web != nil {
		args = append(args, "addresses", a.web.Addrs())
	}
	if since, inherited := a.tracer.Inherited(); inherited {
		args = append(args, "counters_since", since.Format(time.RFC3339))
	}
	a.log.Info("tracing", args...)
	a.tell(lifecycle.Ready(a.status()))
}

func (a *Agent) status() string {
	return fmt.Sprintf("tracing, evidence by %v", a.tracer.Evidence())
}

// tell logs that the service manager could not be told something.
func (a *Agent) tell(err error) {
	if err != nil {
		a.log.Warn("the service manager was not told", "error", err)
	}
}

// fail has the agent end.
func (a *Agent) fail(err error) {
	select {
	case a.failed <- err:
	default: // another was first
	}
}

// Failed yields the error that the agent cannot go on with, if one comes.
func (a *Agent) Failed() <-chan error { return a.failed }

// Reload opens the log anew, if another file, or none, is in its place, and calls
// reload for all else. If that has an error, it stays as it was.
func (a *Agent) Reload(reload func() error) {
	a.tell(lifecycle.Reloading())
	if a.logfile != nil {
		a.logfile.Reopen()
	}
	status := a.status()
	if err := reload(); err != nil {
		a.log.Error("the settings stay as they were", "error", err)
		status += "; the last change of the settings was refused"
	}
	a.tell(lifecycle.Ready(status))
}

// SetFilter has the records chosen by another filter from now on. Counters go on.
func (a *Agent) SetFilter(filter tracer.Filter, conns *tracer.ConnOptions) error {
	return a.tracer.SetFilter(&filter, conns)
}

// Stop ends the agent: what has been traced is kept by the sinks still, as far as
// they do not take too long. It may be called once. What cannot be delivered is no
// error, for it is counted and logged.
func (a *Agent) Stop() error {
	a.tell(lifecycle.Stopping("keeping what has been traced"))
	var errs []error
	if a.tracer != nil {
		errs = append(errs, a.tracer.Detach())
	}
	a.feeds.Wait()
	a.closeSinks()
	a.cancel()
	a.shutdownWeb()
	a.work.Wait()
	a.exportLast()
	if a.tracer != nil {
		a.logLedger()
		a.close()
	}
	errs = append(errs, a.cgroups.Close())
	if a.lock != nil {
		errs = append(errs, a.lock.Release())
	}
	return errors.Join(errs...)
}

// within returns a context that is done after d.
func within(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

// complain logs an error that the agent can end with.
func (a *Agent) complain(what string, err error) {
	if err != nil {
		a.log.Error(what, "error", err)
	}
}
