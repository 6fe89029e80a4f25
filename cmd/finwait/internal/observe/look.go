package observe

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
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
	inode    uint32 // which another may have, once it has ended
	cookie   uint64 // which no other has, 0 if it is not known
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
	if len(opts.Netns) == 0 {
		l.missed = missed // else it is about others
		return l, err
	}
	return l, errors.Join(err, l.noteAbsent(opts, missed.Netns))
}

// noteAbsent notes which of the namespaces that were asked for could not be looked at. It
// returns an error if none could be.
func (l *look) noteAbsent(opts *Options, missed []tracer.MissedNetns) error {
	for i, inode := range opts.Netns {
		if l.spaces[inode] != nil {
			continue
		}
		what, why := opts.nameNetns(i), errAbsent()
		if i := slices.IndexFunc(missed, func(m tracer.MissedNetns) bool { return m.Netns == inode }); i >= 0 {
			why = explained(missed[i].Err)
		}
		if len(l.spaces) == 0 {
			return fmt.Errorf("%s: %w", what, why)
		}
		l.unseen[what] = why
	}
	return nil
}

// nameNetns names a namespace of Netns as the user does, and by its inode number.
func (o *Options) nameNetns(i int) string {
	name := fmt.Sprintf("network namespace %d", o.Netns[i])
	if i < len(o.NetnsWords) && o.NetnsWords[i] != strconv.FormatUint(uint64(o.Netns[i]), 10) {
		name = fmt.Sprintf("network namespace %q (%d)", o.NetnsWords[i], o.Netns[i])
	}
	return name
}

// errAbsent says why a namespace may not have been found.
func errAbsent() error {
	if os.Geteuid() == 0 {
		return errors.New("no process is in it and it is mounted nowhere, as far as root can see here")
	}
	return errors.New("it is not there, or it is hidden: to find and to enter it takes root, or CAP_SYS_PTRACE and CAP_SYS_ADMIN")
}

// look reads all that the thread sees in its network namespace.
func (s *space) look(ctx context.Context, n *tracer.Netns) (unseen map[string]error, err error) {
	s.cookie = netnsCookie()
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

// hostRoot is the file system of process 1, as far as we may see it.
const hostRoot = "/proc/1/root"

// hostNetns returns the inode number of the namespace of process 1, for which the sysctl
// files are, 0 if it is not known. Without privileges it is hidden; but ours is it if it
// is the initial one, which alone has net.ipv4.tcp_mem (ipv4_table).
func hostNetns() uint32 {
	if inode := netnsOf("1"); inode != 0 {
		return inode
	}
	if sysctl.Exists("net.ipv4.tcp_mem") {
		return netnsOf("self")
	}
	return 0
}

// netnsOf returns the inode number of the network namespace of a process, 0 if it is
// not known.
func netnsOf(process string) (inode uint32) {
	link, err := os.Readlink("/proc/" + process + "/ns/net")
	if err != nil {
		return 0
	}
	if _, err := fmt.Sscanf(link, "net:[%d]", &inode); err != nil {
		return 0
	}
	return inode
}

// member returns a process that is in the namespace, and not only holds a socket of it;
// those that listen come first, for they stay.
func (n *Netns) member() uint32 {
	owners := []Process{}
	for i := range n.Listeners {
		owners = append(owners, n.Listeners[i].Owner)
	}
	for i := range n.Outgoing {
		owners = append(owners, n.Outgoing[i].Owner)
	}
	for i := range n.Lasting {
		owners = append(owners, n.Lasting[i].Owner)
	}
	asked := map[uint32]bool{0: true}
	for _, p := range owners {
		if asked[p.PID] {
			continue
		}
		asked[p.PID] = true
		if netnsOf(strconv.FormatUint(uint64(p.PID), 10)) == n.Inode {
			return p.PID
		}
	}
	return 0
}
