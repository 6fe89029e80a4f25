package observe

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/finwait/finwait/tracer"
)

// watcher sees what happens to connections, until it is stopped. stop and discard are
// nil-safe in that the zero watcher sees nothing.
type watcher struct {
	stopped func() (*Traffic, error)
	end     func()
	unseen  []Unseen
}

// stop returns what has happened.
func (w *watcher) stop() (*Traffic, error) {
	defer w.discard()
	if w.stopped == nil {
		return nil, nil
	}
	return w.stopped()
}

func (w *watcher) discard() {
	if w.end != nil {
		w.end()
	}
}

// startWatcher starts what opts asks for. If nothing in particular is asked for, and
// nothing works, the watcher sees nothing, and says why.
func startWatcher(ctx context.Context, opts *Options) (watcher, error) {
	switch opts.Source {
	case SourceLog:
		return watchLog(ctx, opts), nil
	case SourceKernel:
		return watchKernel(ctx, opts)
	case SourceAgent:
		return watchAgent(opts)
	}
	w, err := watchKernel(ctx, opts)
	if err == nil {
		return w, nil
	}
	byAgent, errAgent := watchAgent(opts)
	if errAgent == nil {
		byAgent.unseen = []Unseen{{
			What: "which process and which service the connections were of, since only the agent's counters are to be had",
			Why:  err.Error(),
		}}
		return byAgent, nil
	}
	return watcher{unseen: []Unseen{{What: unseenTraffic, Why: err.Error()}}}, nil
}

// watchLog reads the log while the host is watched. Whoever interrupts ends that too: the
// log may be a pipe that has no end.
func watchLog(ctx context.Context, opts *Options) watcher {
	var traffic *Traffic
	read := make(chan error, 1)
	go func() {
		var err error
		traffic, err = opts.Log(ctx)
		read <- err
	}()
	return watcher{stopped: func() (*Traffic, error) {
		err := <-read
		return traffic, err
	}}
}

// watchKernel has a tracer tell of the transitions that flows are made of.
func watchKernel(ctx context.Context, opts *Options) (watcher, error) {
	t, end, err := opts.Open(ctx, &tracer.Options{
		Filter:        tracer.Filter{Transitions: FlowTransitions(), Netns: opts.Netns},
		AuditInterval: -1,
	})
	if err != nil {
		return watcher{}, err
	}
	flows, since := NewFlows(SourceKernel), time.Now()
	read := make(chan error, 1)
	go func() { read <- flows.read(t) }()
	stop := func() (*Traffic, error) {
		until := time.Now()
		if err := errors.Join(t.Detach(), <-read); err != nil {
			return nil, fmt.Errorf("watch connections: %w", err)
		}
		ledger, err := t.Ledger()
		if err != nil {
			return nil, err
		}
		traffic := flows.Traffic()
		traffic.Since, traffic.Until, traffic.Lost = since, until, ledger.Lost()
		return traffic, nil
	}
	return watcher{stopped: stop, end: end}, nil
}

// read adds all that t tells, until it is detached.
func (f *Flows) read(t *tracer.Tracer) error {
	for ev, err := range t.Events(context.Background()) {
		if err != nil {
			return err
		}
		f.AddEvent(ev, 0)
	}
	return nil
}

// errAgentNetns says what the agent's counters are not good for.
var errAgentNetns = errors.New("the agent counts over all network namespaces together")

// watchAgent takes the counters of the agent now, and again at the end.
func watchAgent(opts *Options) (watcher, error) {
	if opts.Scope != tracer.AllNetns || len(opts.Netns) > 0 {
		return watcher{}, errAgentNetns
	}
	before, err := tracer.PinnedCounts(opts.PinPath)
	if err != nil {
		return watcher{}, err
	}
	stop := func() (*Traffic, error) {
		after, err := tracer.PinnedCounts(opts.PinPath)
		if err != nil {
			return nil, err
		}
		if !after.Since.Equal(before.Since) {
			return nil, errors.New("the agent was started anew meanwhile, and counts from the beginning; run again")
		}
		return agentTraffic(before, after), nil
	}
	return watcher{stopped: stop}, nil
}

func agentTraffic(before, after *tracer.Counts) *Traffic {
	t := &Traffic{Source: SourceAgent, Since: before.Time, Until: after.Time}
	counted := after.Counters.Sub(&before.Counters)
	for transition, n := range counted.All() {
		if transition.New == tracer.StateEstablished {
			t.Opened += n
		}
	}
	for way, n := range after.Endings.All() {
		t.Endings.Add(way, n-before.Endings.Count(way))
	}
	return t
}
