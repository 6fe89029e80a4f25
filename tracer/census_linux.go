package tracer

import (
	"context"
	"fmt"
	"time"
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
		if err := c.assignProcesses(ctx, sum); err != nil {
			return nil, fmt.Errorf("census: %w", err)
		}
	}
	c.States = sum.states
	c.Groups = sum.sortedGroups()
	nameGroups(c.Groups, spaces)
	c.Missed.sort()
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
	ledger := netnsLedger{missed: &c.Missed}
	err := readNetns(ctx, spaces, sum.by, func(n *netns, t *tally, err error) {
		ledger.add(n, err == nil && t.interrupted, err)
		if err == nil {
			sum.merge(t)
		}
	})
	if err != nil {
		return err
	}
	c.Namespaces = ledger.read
	return ledger.err()
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
func (c *Census) assignProcesses(ctx context.Context, sum *tally) error {
	owners := make(map[uint32]Process, len(sum.files))
	for _, f := range sum.files {
		owners[f.inode] = Process{}
	}
	hidden, err := claimSockets(ctx, owners)
	if err != nil {
		return err
	}
	// The processes that hide their namespaces are the same ones.
	c.Missed.HiddenProcesses = max(c.Missed.HiddenProcesses, hidden)
	for _, f := range sum.files {
		sum.group(groupKey{pid: owners[f.inode].PID})[f.state]++
		// Inode numbers wrap: whose another with the same is cannot be told.
		delete(owners, f.inode)
	}
	return nil
}
