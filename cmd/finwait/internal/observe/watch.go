package observe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
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
	// NetnsWords are what the user calls those of Netns, one for each, for what cannot be
	// looked at; nil if they have no other names.
	NetnsWords []string

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

var errEmptyLog = errors.New("the log has no record to go by")

// Watch looks at the host for a while. What it could not see is no error, but in
// Host.Unseen; it returns an error if it could see no socket, or if the source that was
// asked for does not work. When ctx is done, and Shortest is over, it looks for the last time.
func Watch(ctx context.Context, opts *Options) (*Host, error) {
	if opts.LogOnly {
		t, err := opts.Log(ctx)
		if err == nil && t.Until.IsZero() {
			err = errEmptyLog
		}
		return &Host{Traffic: t}, err
	}
	h := &Host{}
	var errSettings error
	h.Settings, errSettings = readSettings()
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
	err = h.compare(before, after)
	switch errStop := <-stopped; {
	case err != nil:
		return nil, err
	case errStop != nil && opts.Source != "":
		return nil, errStop
	case errStop != nil:
		h.cannotSee(unseenTraffic, errStop)
	}
	if opts.Source == SourceLog && h.Traffic.Until.IsZero() {
		h.cannotSee(unseenTraffic, errEmptyLog)
	}
	h.noteSettings(errSettings)
	h.Unseen = append(w.unseen, h.Unseen...)
	h.judgeable()
	return h, nil
}

// judgeable leaves out of what a tracer saw the namespaces that came or went meanwhile: of
// them there is nothing else to go by. What was recorded may be of any.
func (h *Host) judgeable() {
	t := h.Traffic
	if t == nil || t.Source != SourceKernel {
		return
	}
	t.Flows = slices.DeleteFunc(t.Flows, func(f Flow) bool {
		return !slices.ContainsFunc(h.Namespaces, func(n Netns) bool { return n.Inode == f.Netns })
	})
}

// readSettings reads the files that set sysctls, of the file system of process 1: ours may
// be a container's.
func readSettings() (*sysctl.Files, error) {
	root := "/"
	if _, err := os.Stat(hostRoot); err == nil {
		root = hostRoot
	}
	return sysctl.ReadFiles(root)
}

// noteSettings says what could not be read of them, if they are of interest: lines that
// nobody understands are among what was read, whole files are not.
func (h *Host) noteSettings(err error) {
	if !slices.ContainsFunc(h.Namespaces, func(n Netns) bool { return n.Host }) {
		return
	}
	if err != nil {
		h.cannotSee("the files that set sysctls", err)
		return
	}
	for _, p := range h.Settings.Problems {
		if p.Number == 0 {
			h.Unseen = append(h.Unseen, Unseen{What: "what sysctls " + p.File + " sets", Why: p.Why()})
		}
	}
}

// compare fills in what two looks show. It returns an error if there is nothing that both
// have seen.
func (h *Host) compare(before, after *look) error {
	h.noteMissed(before, after)
	inodes := after.inodes()
	owners, hidden, err := tracer.FindOwners(context.Background(), inodes)
	switch unowned := len(inodes) - len(owners); {
	case err != nil:
		h.cannotSee("the processes that hold sockets", err)
	case hidden > 0:
		h.cannotSee("which sockets some processes hold", errHidden(hidden))
	case unowned > 10+len(inodes)/100: // some have been closed since
		h.cannotSee(fmt.Sprintf("whose %d of %d sockets are", unowned, len(inodes)), errors.New("no process that /proc shows holds them"))
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
	if len(h.Namespaces) == 0 {
		return errors.New("no network namespace was there all the time, and could be looked at")
	}
	slices.SortFunc(h.Namespaces, func(a, b Netns) int {
		switch {
		case a.Host:
			return -1
		case b.Host:
			return 1
		}
		return cmp.Compare(a.Inode, b.Inode)
	})
	if host == 0 {
		h.Unseen = append(h.Unseen, Unseen{
			What: "for which network namespace the sysctl files are",
			Why:  "process 1 may not be looked into, which takes root, or CAP_SYS_PTRACE",
		})
	}
	h.measure()
	return nil
}

// noteMissed says what the looks could not see.
func (h *Host) noteMissed(looks ...*look) {
	missed, unseen := map[uint32]error{}, map[string]error{}
	inexact, hidden := map[uint32]bool{}, 0
	for _, l := range looks {
		for _, m := range l.missed.Netns {
			missed[m.Netns] = m.Err
		}
		for inode, s := range l.spaces {
			inexact[inode] = inexact[inode] || s.inexact
		}
		hidden = max(hidden, l.missed.HiddenProcesses)
		maps.Copy(unseen, l.unseen)
	}
	for _, inode := range slices.Sorted(maps.Keys(missed)) {
		h.cannotSee("some network namespaces", fmt.Errorf("%d, such as %d: %w", len(missed), inode, explained(missed[inode])))
		break
	}
	if hidden > 0 {
		h.cannotSee("the network namespaces of some processes", errHidden(hidden))
	}
	maps.DeleteFunc(inexact, func(_ uint32, is bool) bool { return !is })
	for _, inode := range slices.Sorted(maps.Keys(inexact)) {
		h.cannotSee("each socket exactly once", fmt.Errorf("the lists of %d network namespaces, such as %d, changed while the kernel made them", len(inexact), inode))
		break
	}
	for _, what := range slices.Sorted(maps.Keys(unseen)) {
		h.cannotSee(what, unseen[what])
	}
}

func errHidden(processes int) error {
	if os.Geteuid() == 0 {
		return fmt.Errorf("%d may not be looked into, not even by root as it is here", processes)
	}
	return fmt.Errorf("%d may not be looked into, which takes root, or CAP_SYS_PTRACE", processes)
}

// explained says what a lack of privilege is one of.
func explained(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return errors.New("to enter it takes root, or CAP_SYS_ADMIN")
	}
	return err
}

// measure fills in what TCP takes on the host, and how many files the processes of
// Lasting and of Listeners have open.
func (h *Host) measure() {
	minis := slices.ContainsFunc(h.Namespaces, func(n Netns) bool { return n.MiniSockets > 0 })
	memory, err := readMemory(minis)
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

// Shortest is how long is watched at the least: in less, what lasts cannot be told from
// what passes.
const Shortest = time.Second

// wait returns after d, or when ctx is done and the shortest time is over.
func wait(ctx context.Context, d time.Duration) {
	time.Sleep(min(d, Shortest))
	timer := time.NewTimer(d - Shortest)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
