package tracer

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// TakeCensus counts the TCP sockets of the host per state. It loads no BPF
// program and needs no [Tracer]: it asks each network namespace over
// NETLINK_SOCK_DIAG.
//
// It needs no privilege for the caller's own namespace. To enter others it
// needs CAP_SYS_ADMIN, and to see the processes of other users
// CAP_SYS_PTRACE. What it could not read is in [Census.Missed] and is no
// error; there is an error if no namespace could be read, and it wraps
// [ErrNotSupported] if the kernel has no tcp_diag. If ctx is done first, the
// error is that of ctx.
//
// It is safe for concurrent use. It enters namespaces on threads of its own;
// the caller's thread stays where it is.
func TakeCensus(ctx context.Context, opts *CensusOptions) (*Census, error) {
	if opts == nil {
		opts = &CensusOptions{}
	}
	if err := opts.validate(); err != nil {
		return nil, err
	}
	c := &Census{Time: time.Now().UTC(), By: opts.By}
	spaces, err := censusNetns(opts.Netns, &c.Missed)
	if err != nil {
		return nil, fmt.Errorf("census: %w", err)
	}
	defer closeAllNetns(spaces)

	sum := newTally(opts.By)
	if err := c.read(ctx, spaces, sum); err != nil {
		return nil, fmt.Errorf("census: %w", err)
	}
	if opts.By == ByProcess {
		if err := c.assignProcesses(sum); err != nil {
			return nil, fmt.Errorf("census: %w", err)
		}
	}
	c.States = sum.states
	c.Groups = sum.sortedGroups()
	nameGroups(c.Groups, spaces)
	slices.Sort(c.Missed.Vanished)
	slices.Sort(c.Missed.Inexact)
	return c, nil
}

func censusNetns(scope NetnsScope, missed *CensusMissed) ([]netns, error) {
	if scope == AllNetns {
		return findNetns(missed)
	}
	self, err := threadNetns()
	if err != nil {
		return nil, err
	}
	return []netns{self}, nil
}

// read adds the sockets of all namespaces to sum and keeps the ledger.
func (c *Census) read(ctx context.Context, spaces []netns, sum *tally) error {
	var first error
	err := readNetns(ctx, spaces, sum.by, func(n *netns, t *tally, err error) {
		switch {
		case err != nil:
			first = cmp.Or(first, err)
			c.Missed.Netns = append(c.Missed.Netns, MissedNetns{Netns: n.inode, Name: n.name, Err: err})
			return
		case t.interrupted:
			c.Missed.Inexact = append(c.Missed.Inexact, n.inode)
		}
		c.Namespaces++
		sum.merge(t)
	})
	switch {
	case err != nil:
		return err
	case c.Namespaces == 0 && first != nil:
		return first
	case c.Namespaces == 0:
		return errors.New("no network namespace can be seen (is /proc mounted?)")
	}
	return nil
}

// nameGroups fills in the names of the groups' namespaces.
func nameGroups(groups []CensusGroup, spaces []netns) {
	names := make(map[uint32]string, len(spaces))
	for i := range spaces {
		names[spaces[i].inode] = spaces[i].name
	}
	for i := range groups {
		groups[i].NetnsName = names[groups[i].Netns]
	}
}

// assignProcesses gives the sockets that are files to the processes that hold
// them, each to the lowest PID.
func (c *Census) assignProcesses(sum *tally) error {
	unclaimed := make(map[uint32]State, len(sum.files))
	for _, f := range sum.files {
		if _, twice := unclaimed[f.inode]; twice {
			// Inode numbers wrap: whose this one is cannot be told.
			sum.group(groupKey{})[f.state]++
			continue
		}
		unclaimed[f.inode] = f.state
	}
	if len(unclaimed) > 0 {
		if err := c.claimFiles(sum, unclaimed); err != nil {
			return err
		}
	}
	for _, state := range unclaimed {
		sum.group(groupKey{})[state]++
	}
	return nil
}

// claimFiles moves sockets from unclaimed to the groups of the processes that
// have them open.
func (c *Census) claimFiles(sum *tally, unclaimed map[uint32]State) error {
	pids, err := listProcesses()
	if err != nil {
		return fmt.Errorf("find socket owners: %w", err)
	}
	dir := newDirReader()
	hidden := 0
	for _, pid := range pids {
		if len(unclaimed) == 0 {
			break
		}
		err := eachSocket(pid, dir, func(inode uint32) {
			if state, ok := unclaimed[inode]; ok {
				sum.group(groupKey{pid: pid})[state]++
				delete(unclaimed, inode)
			}
		})
		if isDenied(err) {
			hidden++
		}
	}
	// The processes that hide their namespaces are the same ones.
	c.Missed.HiddenProcesses = max(c.Missed.HiddenProcesses, hidden)
	return nil
}

// listProcesses returns the PIDs in /proc, lowest first.
func listProcesses() ([]uint32, error) {
	proc, err := unix.Open("/proc", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/proc", Err: err}
	}
	defer unix.Close(proc)
	var pids []uint32
	err = newDirReader().each(proc, func(name []byte) {
		if pid, ok := parseUint32(name); ok {
			pids = append(pids, pid)
		}
	})
	slices.Sort(pids)
	return pids, err
}

// eachSocket calls visit with the inode number of every socket that the process
// has open. A process that has ended has none, which is no error.
func eachSocket(pid uint32, dir *dirReader, visit func(inode uint32)) error {
	path := procPath(pid, "fd")
	fds, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fds)
	var link [64]byte
	return dir.each(fds, func(name []byte) {
		if !isNumber(name) {
			return
		}
		n, err := unix.Readlinkat(fds, string(name), link[:])
		if err != nil {
			return // closed meanwhile
		}
		if inode, ok := parseSocketLink(link[:n]); ok {
			visit(inode)
		}
	})
}

// parseSocketLink returns the inode number of "socket:[123]".
func parseSocketLink(link []byte) (uint32, bool) {
	number, ok := bytes.CutPrefix(link, []byte("socket:["))
	if !ok {
		return 0, false
	}
	number, ok = bytes.CutSuffix(number, []byte("]"))
	if !ok {
		return 0, false
	}
	return parseUint32(number)
}

func parseUint32(b []byte) (uint32, bool) {
	if !isNumber(b) || len(b) > 10 {
		return 0, false
	}
	var n uint64
	for _, c := range b {
		n = n*10 + uint64(c-'0')
	}
	return uint32(n), n <= 1<<32-1
}

// processName returns the process's name, or "" if it has ended.
func processName(pid uint32) string {
	name, err := os.ReadFile(procPath(pid, "comm"))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSuffix(name, []byte("\n")))
}

func procPath(pid uint32, file string) string {
	return "/proc/" + strconv.FormatUint(uint64(pid), 10) + "/" + file
}
