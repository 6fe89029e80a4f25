package tracer

import (
	"context"
	"errors"
	"fmt"
)

// Netns is a network namespace that is being visited. See [VisitNetns]. It is
// valid until visit returns, and not safe for concurrent use.
type Netns struct {
	// Inode is the namespace's inode number.
	Inode uint32
	// Name is the name under which it is mounted ("blue" of ip netns add blue),
	// or ""; with SelfNetns it is not looked for. Whoever mounted it chose the
	// name: it may hold any byte.
	Name string

	conn    *diagConn
	err     error // why there is no conn
	inexact bool  // what ListSockets has said
}

// VisitNetns calls visit for each network namespace of the scope, on a thread
// that is inside it. So visit can list its sockets ([Netns.ListSockets]) and read
// what the namespace has in /proc/thread-self/net and /proc/sys/net; /proc/net
// is that of the main thread, wherever that is.
//
// It calls visit for several namespaces at once, on up to GOMAXPROCS threads of
// its own: visit must be safe for concurrent use. A goroutine that visit starts
// is not in the namespace, and visit must leave the thread locked and where it
// is.
//
// It needs the privileges of [TakeCensus], and keeps the same ledger: an error of
// visit for a namespace goes to Netns of what it returns, and Inexact has the
// namespaces that ListSockets could not list exactly. There is an error if visit
// succeeded in none. If ctx is done first, the error is that of ctx, and the
// ledger is not complete.
//
// It is safe for concurrent use.
func VisitNetns(ctx context.Context, scope NetnsScope, visit func(*Netns) error) (CensusMissed, error) {
	var missed CensusMissed
	if err := visitNetns(ctx, scope, visit, &missed); err != nil {
		return missed, fmt.Errorf("visit network namespaces: %w", err)
	}
	missed.sort()
	return missed, nil
}

func visitNetns(ctx context.Context, scope NetnsScope, visit func(*Netns) error, missed *CensusMissed) error {
	if err := scope.validate(); err != nil {
		return err
	}
	spaces, err := censusNetns(scope, missed)
	if err != nil {
		return err
	}
	defer closeAllNetns(spaces)
	ledger := netnsLedger{missed: missed}
	newVisit := func() func(*netns) (bool, error) {
		buf := make([]byte, diagBufSize)
		return func(n *netns) (inexact bool, err error) {
			space := &Netns{Inode: n.inode, Name: n.name}
			space.open(buf)
			defer space.close()
			err = visit(space)
			return space.inexact, err
		}
	}
	if err := enterAll(ctx, spaces, newVisit, ledger.add); err != nil {
		return err
	}
	return ledger.err()
}

// open prepares ListSockets. A conn speaks for the namespace in which it was
// opened: whatever thread calls ListSockets, it lists the sockets of no other.
func (n *Netns) open(buf []byte) { n.conn, n.err = openDiag(buf) }

func (n *Netns) close() {
	if n.conn != nil {
		n.conn.Close()
	}
	n.conn, n.err = nil, errVisitEnded
}

var errVisitEnded = errors.New("list sockets: the visit to the network namespace has ended")

// ListSockets returns the TCP sockets of the namespace in no particular order:
// full ones, half-open connections and mini-sockets, IPv4 and IPv6. Those in
// CLOSE are not listed, as in a [Census]. It must be called before visit returns.
//
// The kernel has no way to stop the world for a list. While connections come
// and go, in whatever namespace, one that does may be in it or not, and seldom
// one is twice that has stayed, or is not. inexact says that the kernel did not vouch
// for the list, however often it was asked.
//
// A hundred thousand sockets take a tenth of a second or two, and some 14 MB.
func (n *Netns) ListSockets(ctx context.Context) (sockets []Socket, inexact bool, err error) {
	if n.err != nil {
		return nil, false, n.err
	}
	add := func(m diagMsg) {
		if m.state() != 0 {
			sockets = append(sockets, m.socket(n.Inode))
		}
	}
	inexact, err = untilExact(func() (bool, error) {
		sockets = sockets[:0]
		return n.conn.dump(ctx, listedStates|1<<StateTimeWait, add)
	})
	if err != nil {
		return nil, false, err
	}
	n.inexact = n.inexact || inexact
	return sockets, inexact, nil
}
