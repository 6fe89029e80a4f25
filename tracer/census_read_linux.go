package tracer

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// dumpAttempts is how often a namespace is read that keeps changing under the
// dump before its counts are taken as they are.
const dumpAttempts = 4

// listedStates are the states that the kernel always lists one by one;
// TIME_WAIT, of which there are the most, is listed only where it has to be.
const listedStates = 1<<StateEstablished | 1<<StateSynSent | 1<<StateSynRecv |
	1<<StateFinWait1 | 1<<StateFinWait2 | 1<<StateCloseWait | 1<<StateLastAck |
	1<<StateListen | 1<<StateClosing

// readNetns counts the sockets of each namespace and calls done with what came
// of it, as enterAll does.
func readNetns(ctx context.Context, spaces []netns, by Dimension, done func(*netns, *tally, error)) error {
	newVisit := func() func(*netns) (*tally, error) {
		r := &netnsReader{tally: newTally(by), buf: make([]byte, diagBufSize)}
		return func(n *netns) (*tally, error) { return r.tally, r.visit(ctx, n) }
	}
	return enterAll(ctx, spaces, newVisit, done)
}

// netnsReader counts the sockets of one namespace after the other.
type netnsReader struct {
	tally *tally
	buf   []byte
}

// visit counts the sockets of the namespace that the thread is in.
func (r *netnsReader) visit(ctx context.Context, n *netns) error {
	conn, err := openDiag(r.buf)
	if err != nil {
		return err
	}
	defer conn.Close()
	r.tally.interrupted, err = untilExact(func() (bool, error) {
		r.tally.reset(n.inode)
		return r.count(ctx, conn)
	})
	return err
}

// untilExact dumps again as long as the kernel says that its tables changed
// meanwhile, and reports whether the last dump was no better.
func untilExact(dump func() (interrupted bool, err error)) (inexact bool, err error) {
	for range dumpAttempts {
		interrupted, err := dump()
		if err != nil || !interrupted {
			return false, err
		}
	}
	return true, nil
}

// count adds the namespace's sockets to the tally.
func (r *netnsReader) count(ctx context.Context, conn *diagConn) (interrupted bool, err error) {
	l := lister{ctx: ctx, conn: conn, tally: r.tally}
	switch r.tally.by {
	case ByListener:
		// All listeners must be known before the first connection is placed.
		l.list(1 << StateListen)
		l.list(listedStates&^(1<<StateListen) | 1<<StateTimeWait)
	case ByRemote:
		l.list(listedStates | 1<<StateTimeWait)
	default:
		l.list(listedStates)
		// The sum can be less than the orphans that were listed a moment
		// before, or be hidden. Then there is nothing for it but to list.
		if sum, err := readMiniSockets(); err != nil || !r.tally.addMiniSockets(sum) {
			l.list(1 << StateTimeWait)
		}
	}
	return l.interrupted, l.err
}

// lister runs dumps into a tally until one fails.
type lister struct {
	ctx         context.Context
	conn        *diagConn
	tally       *tally
	interrupted bool
	err         error
}

func (l *lister) list(states uint32) {
	if l.err != nil {
		return
	}
	interrupted, err := l.conn.dump(l.ctx, states, l.tally.add)
	l.interrupted = l.interrupted || interrupted
	l.err = err
}

// readMiniSockets returns the number of mini-sockets in the namespace of the
// calling thread, as the kernel keeps it: TIME_WAIT and orphaned FIN_WAIT2,
// IPv4 and IPv6.
func readMiniSockets() (uint64, error) {
	// The file of the thread, since /proc/net is that of the main thread.
	const path = "/proc/thread-self/net/sockstat"
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var buf [1024]byte
	n, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, buf[:]) })
	if err != nil {
		return 0, &os.PathError{Op: "read", Path: path, Err: err}
	}
	sum, ok := parseSockstat(buf[:n])
	if !ok {
		return 0, fmt.Errorf("read %s: no tw in it", path)
	}
	return sum, nil
}

// parseSockstat returns the number after tw in the line of TCP.
func parseSockstat(data []byte) (uint64, bool) {
	for line := range bytes.Lines(data) {
		rest, isTCP := bytes.CutPrefix(line, []byte("TCP:"))
		if !isTCP {
			continue
		}
		// TCP: inuse 1 orphan 0 tw 2 alloc 1 mem 43
		_, rest, found := bytes.Cut(rest, []byte(" tw "))
		number, _, _ := bytes.Cut(rest, []byte(" "))
		n, ok := parseUint32(number)
		return uint64(n), found && ok
	}
	return 0, false
}
