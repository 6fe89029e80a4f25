package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/finwait/finwait/cmd/finwait/internal/logfile"
	"github.com/finwait/finwait/cmd/finwait/internal/otlp"
	"github.com/finwait/finwait/cmd/finwait/internal/output"
	"github.com/finwait/finwait/cmd/finwait/internal/sink"
	"github.com/finwait/finwait/cmd/finwait/internal/web"
)

// logQueue is what the queue before the log file is like. A record that waits takes
// 176 bytes, or 552 if it is a connection.
var logQueue = sink.Options{
	Name:  "log",
	Room:  sink.Counts{Transitions: 16_384, Conns: 4096},
	Batch: sink.Counts{Transitions: 1024, Conns: 512},
}

// openSinks makes those that are asked for, each with its queue.
func (a *Agent) openSinks() error {
	if a.cfg.Log != nil {
		if err := a.openLog(); err != nil {
			return err
		}
	}
	if a.cfg.OTLPLogs {
		return a.openOTLP()
	}
	return nil
}

func (a *Agent) openLog() (err error) {
	opts := *a.cfg.Log
	opts.Output = output.Options{SamplingRatio: a.cfg.Filter.Sample}
	if a.cgroups != nil {
		opts.Output.Cgroup = a.cgroups.Lookup
	}
	opts.Log = a.log
	if a.logfile, err = logfile.Open(opts); err != nil {
		return err
	}
	queue := logQueue
	queue.Log = a.log
	a.queues = append(a.queues, sink.Start(a.logfile, queue))
	return nil
}

func (a *Agent) openOTLP() (err error) {
	opts := otlp.LogOptions{Version: a.cfg.Version}
	if a.cgroups != nil {
		opts.Cgroup = a.cgroups.Lookup
	}
	if a.otlp, err = otlp.NewLogs(a.cfg.OTLP, opts); err != nil {
		return err
	}
	if a.cfg.Filter.Sample > 0 {
		a.otlp.SetSamplingRatio(a.cfg.Filter.Sample)
	}
	queue := a.cfg.OTLP.QueueOptions()
	queue.Log = a.log
	a.queues = append(a.queues, sink.Start(a.otlp, queue))
	return nil
}

// closeSinks has the queues send what waits.
func (a *Agent) closeSinks() {
	ctx, cancel := within(closing)
	defer cancel()
	var closing sync.WaitGroup
	for _, q := range a.queues {
		closing.Go(func() { a.complain("the sink "+q.Name()+" does not close", q.Close(ctx)) })
	}
	closing.Wait()
}

// serve answers for what the tracer has counted, by HTTP and by OTLP.
func (a *Agent) serve(ctx context.Context) (err error) {
	if a.cfg.OTLPMetrics {
		opts := otlp.MetricOptions{Version: a.cfg.Version, Start: a.began, Since: a.countingSince(), Queues: a.queues, Logs: a.otlp, Log: a.log}
		if a.metrics, err = otlp.NewMetrics(a.cfg.OTLP, a.tracer, opts); err != nil {
			return err
		}
		a.work.Go(func() { a.metrics.Run(a.ctx) })
	}
	if len(a.cfg.Addresses) == 0 {
		return nil
	}
	a.web, err = web.Listen(ctx, web.Options{
		Addresses: a.cfg.Addresses, ConfigFile: a.cfg.WebConfig, Gatherer: a.registry(),
		Alive: a.isAlive, Ready: a.isReady, Log: a.log,
	})
	if err != nil {
		return err
	}
	a.work.Go(func() {
		if err := a.web.Serve(); err != nil {
			a.fail(err)
		}
	})
	return nil
}

// countingSince returns when the counters began.
func (a *Agent) countingSince() time.Time {
	if since, inherited := a.tracer.Inherited(); inherited {
		return since
	}
	return a.began
}

var errNotReady = errors.New("the sockets that were there are still being counted")

func (a *Agent) isReady() error {
	if !a.ready.Load() {
		return errNotReady
	}
	return nil
}

// shutdownWeb has the requests answered that are there.
func (a *Agent) shutdownWeb() {
	if a.web == nil {
		return
	}
	ctx, cancel := within(leaving)
	defer cancel()
	a.complain("requests are cut off", a.web.Shutdown(ctx))
}

// exportLast sends metrics for the last time: what has happened since the time
// before is in no other.
func (a *Agent) exportLast() {
	if a.metrics == nil {
		return
	}
	ctx, cancel := within(leaving)
	defer cancel()
	a.complain("the last metrics are not sent", errors.Join(a.metrics.Export(ctx), a.metrics.Close()))
}

// logLedger says what became of everything.
func (a *Agent) logLedger() {
	l, err := a.tracer.Ledger()
	if err != nil {
		a.log.Error("what became of the transitions is not known", "error", err)
		return
	}
	a.log.Info("traced", "transitions", l.Seen, "told", l.Emitted, "lost", l.Lost(), "impaired", l.Impaired(),
		"connections", l.ConnsSeen, "connections_told", l.ConnsEmitted, "connections_lost", l.ConnsLost)
	for _, q := range a.queues {
		s := q.Ledger()
		a.log.Info("records", "sink", q.Name(), "put", s.Put.Total(), "kept", s.Kept.Total(), "queue_full", s.QueueFull.Total(), "failed", s.Failed.Total())
	}
}
