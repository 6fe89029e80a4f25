package observe

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/finwait/finwait/cmd/finwait/internal/procnet"
	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
	"github.com/finwait/finwait/tracer"
)

// look is what a host has at one moment.
type look struct {
	at     time.Time
	spaces map[uint32]*space // by inode number
	missed tracer.CensusMissed
	unseen map[string]error // by what it is
}

// space is a network namespace at one moment.
type space struct {
	inode    uint32
	name     string
	inexact  bool
	sockets  []tracer.Socket
	sysctls  sysctl.Values
	noSysctl []string
	counters procnet.Counters
	tracked  *procnet.Conntrack // nil if the kernel has none
}

// takeLook looks at each network namespace that opts asks for. What the files set is of
// interest in the host's own.
func takeLook(ctx context.Context, opts *Options, files *sysctl.Files) (*look, error) {
	l := &look{at: time.Now(), spaces: map[uint32]*space{}, unseen: map[string]error{}}
	host := hostNetns()
	var mu sync.Mutex
	missed, err := tracer.VisitNetns(ctx, opts.Scope, func(n *tracer.Netns) error {
		if len(opts.Netns) > 0 && !slices.Contains(opts.Netns, n.Inode) {
			return nil
		}
		s := &space{inode: n.Inode, name: n.Name}
		unseen, err := s.look(ctx, n)
		if n.Inode == host && files != nil {
			s.readSet(files)
		}
		mu.Lock()
		defer mu.Unlock()
		for what, why := range unseen {
			l.unseen[what] = why
		}
		if err == nil {
			l.spaces[n.Inode] = s
		}
		return err
	})
	l.missed = missed
	if err == nil && len(l.spaces) == 0 {
		err = errors.New("no network namespace that was asked for can be looked at")
	}
	return l, err
}

// look reads all that the thread sees in its network namespace.
func (s *space) look(ctx context.Context, n *tracer.Netns) (unseen map[string]error, err error) {
	s.sysctls = sysctl.ReadValues(sysctl.Names)
	unseen = map[string]error{}
	if s.counters, err = procnet.ReadCounters(); err != nil {
		unseen["the kernel's counters"] = err
	}
	tracked, err := procnet.ReadConntrack()
	switch {
	case err == nil:
		s.tracked = &tracked
	case !errors.Is(err, fs.ErrNotExist):
		unseen["the table of connection tracking"] = err
	}
	s.sockets, s.inexact, err = n.ListSockets(ctx)
	return unseen, err
}

// readSet reads what runs of the sysctls that the files name, and which of them do not
// exist.
func (s *space) readSet(files *sysctl.Files) {
	keys := slices.Collect(files.Keys())
	for _, line := range files.Conf.Lines {
		keys = append(keys, line.Key)
	}
	for key, value := range sysctl.ReadValues(keys) {
		s.sysctls[key] = value
	}
	for _, key := range keys {
		if isPattern := strings.ContainsAny(key, "*?["); !isPattern && !sysctl.Exists(key) {
			s.noSysctl = append(s.noSysctl, key)
		}
	}
}

// inodes returns the inode numbers of the sockets that are files.
func (l *look) inodes() (all []uint32) {
	for _, s := range l.spaces {
		for i := range s.sockets {
			if inode := s.sockets[i].Inode; inode != 0 {
				all = append(all, inode)
			}
		}
	}
	return all
}

// hostNetns returns the inode number of the namespace of process 1, for which the sysctl
// files are; or our own, if that is hidden: the files that we read are beside it.
func hostNetns() uint32 {
	for _, path := range []string{"/proc/1/ns/net", "/proc/self/ns/net"} {
		var inode uint32
		if link, err := os.Readlink(path); err == nil {
			if _, err := fmt.Sscanf(link, "net:[%d]", &inode); err == nil {
				return inode
			}
		}
	}
	return 0
}
