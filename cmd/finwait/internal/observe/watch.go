package observe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/finwait/finwait/cmd/finwait/internal/procnet"
	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
	"github.com/finwait/finwait/tracer"
)

// Options says what to look at, and for how long.
type Options struct {
	// For is how long to watch, once all are at their places: the first look is taken while
	// a tracer is loaded, and so what differs has come about in somewhat more.
	For time.Duration
	// Scope is the network namespaces to look at, Netns the inode numbers of those among
	// them that count; all if there are none.
	Scope tracer.NetnsScope
	Netns []uint32

	// Source is who sees what happens to connections. "" is whoever can: a tracer of our
	// own, or else the agent.
	Source Source
	// Open starts a tracer, and returns what ends it.
	Open func(context.Context, *tracer.Options) (*tracer.Tracer, func(), error)
	// PinPath is where the agent has its counters.
	PinPath string
	// Log reads what was recorded, for SourceLog.
	Log func(context.Context) (*Traffic, error)
	// LogOnly has nothing looked at but Log: it is another host's.
	LogOnly bool

	// Ready, if it is not nil, is called when the first look is done and all that happens
	// from now on is seen.
	Ready func()
}

// unseenTraffic is what nobody sees without a source.
const unseenTraffic = "what happened to connections, for how long they were in a state, and why they ended"

// Watch looks at the host for a while. What it could not see is no error, but in
// Host.Unseen; it returns an error if it could see no socket, or if the source that was
// asked for does not work. When ctx is done it looks for the last time.
func Watch(ctx context.Context, opts *Options) (*Host, error) {
	if opts.LogOnly {
		t, err := opts.Log(ctx)
		return &Host{Traffic: t}, err
	}
	h := &Host{}
	h.readSettings()
	// What takes its time at the start goes side by side.
	loading := make(chan error, 1)
	var w watcher
	go func() {
		var err error
		w, err = startWatcher(ctx, opts)
		loading <- err
	}()
	before, err := takeLook(ctx, opts, h.Settings)
	if errWatcher := <-loading; errWatcher != nil || err != nil {
		w.discard()
		return nil, cmp.Or(errWatcher, err)
	}
	h.Began = before.at
	if opts.Ready != nil {
		opts.Ready()
	}
	wait(ctx, opts.For)

	// Without the second look the first is for nothing: whoever interrupts waits for it.
	after, err := takeLook(context.WithoutCancel(ctx), opts, h.Settings)
	if err != nil {
		w.discard()
		return nil, err
	}
	h.Ended = after.at
	stopped := make(chan error, 1)
	go func() {
		var err error
		h.Traffic, err = w.stop()
		stopped <- err
	}()
	h.compare(before, after)
	if err := <-stopped; err != nil {
		if opts.Source != "" {
			return nil, err
		}
		h.cannotSee(unseenTraffic, err)
	}
	h.Unseen = append(w.unseen, h.Unseen...)
	return h, nil
}

// readSettings reads the files that set sysctls. Lines that nobody understands are among
// what it has read; a file that cannot be read is not.
func (h *Host) readSettings() {
	files, err := sysctl.ReadFiles("/")
	if err != nil {
		h.cannotSee("the files that set sysctls", err)
		return
	}
	h.Settings = files
	for _, p := range files.Problems {
		if errors.Is(p.Err, fs.ErrPermission) {
			h.cannotSee("what sysctls "+p.File+" sets", p.Err)
		}
	}
}

// compare fills in what two looks show.
func (h *Host) compare(before, after *look) {
	h.noteMissed(after)
	owners, hidden, err := tracer.FindOwners(context.Background(), after.inodes())
	if err != nil {
		h.cannotSee("the processes that hold sockets", err)
	} else if hidden > 0 {
		h.cannotSee("which sockets some processes hold", errHidden(hidden))
	}
	host := hostNetns()
	for inode, now := range after.spaces {
		then := before.spaces[inode]
		if then == nil || then.cookie != now.cookie {
			continue // it has come since: there is nothing to compare
		}
		n := compareNetns(then, now, owners)
		n.Host = inode == host
		h.Namespaces = append(h.Namespaces, n)
	}
	slices.SortFunc(h.Namespaces, func(a, b Netns) int {
		if a.Host != b.Host {
			return map[bool]int{true: -1, false: 1}[a.Host]
		}
		return cmp.Compare(a.Inode, b.Inode)
	})
	h.measure()
}

// noteMissed says what the last look could not see.
func (h *Host) noteMissed(l *look) {
	m := &l.missed
	if n := len(m.Netns); n > 0 {
		h.cannotSee("some network namespaces", fmt.Errorf("%d, such as %d: %w", n, m.Netns[0].Netns, m.Netns[0].Err))
	}
	if m.HiddenProcesses > 0 {
		h.cannotSee("the network namespaces of some processes", errHidden(m.HiddenProcesses))
	}
	for _, what := range slices.Sorted(maps.Keys(l.unseen)) {
		h.cannotSee(what, l.unseen[what])
	}
}

func errHidden(processes int) error {
	return fmt.Errorf("%d may not be looked into, which needs root with CAP_SYS_PTRACE", processes)
}

// measure fills in what TCP takes on the host, and how many files the processes of
// Lasting and of Listeners have open.
func (h *Host) measure() {
	memory, err := readMemory()
	if err != nil {
		h.cannotSee("the memory of TCP", err)
	}
	h.Memory = memory
	h.Files = map[uint32]Files{}
	for _, n := range h.Namespaces {
		for _, l := range n.Lasting {
			h.measureFiles(l.Owner.PID)
		}
		for _, l := range n.Listeners {
			h.measureFiles(l.Owner.PID)
		}
	}
}

func (h *Host) measureFiles(pid uint32) {
	if _, known := h.Files[pid]; known || pid == 0 {
		return
	}
	if open, limit, ok := procnet.FileLimit(pid); ok {
		h.Files[pid] = Files{Open: open, Limit: limit}
	}
}

func (h *Host) cannotSee(what string, why error) {
	h.Unseen = append(h.Unseen, Unseen{What: what, Why: why.Error()})
}

// wait returns after d, or when ctx is done.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
