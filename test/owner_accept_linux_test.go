package test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/tracer"
)

// What a stranger does that accepts from a listener that it has inherited.
const (
	acceptAndClose    = "accept, close last"
	acceptAndShutdown = "accept, close first"
	acceptAndExec     = "accept, become another program that closes last"
	closeInherited    = "close what the program before has accepted" // the other program
)

// strangerListener and the descriptors from strangerAccepted on are those of the
// listener and of what acceptAndExec accepts.
const (
	strangerListener = 3
	strangerAccepted = 100
)

// TestAcceptOwner has this process listen and another accept, in a thread of
// another name. A connection is the listener's until it is accepted. Then it is
// the acceptor's: at once with probes, and with timers when the acceptor shuts
// it down or closes it. A program that has taken the acceptor's place is never
// taken for who accepted it.
func TestAcceptOwner(t *testing.T) {
	cgroup := newCgroup(t, cgroupRoot(t))
	for _, call := range []string{acceptAndClose, acceptAndShutdown, acceptAndExec} {
		for _, family := range families {
			t.Run(call+"/"+family.String(), func(t *testing.T) {
				l := newStrangerLoop(t, family)
				rec := shared(t)
				acceptor, server := l.acceptByStranger(call, cgroup)
				n := connections*(len(clientThatClosesFirst)+len(serverThatClosesLast)) + len(listenerWalk)
				events := rec.await(n, patience, inNetns(l.ns.Inode()))
				rec.stop()
				byTime(events)
				qt.Check(t, qt.DeepEquals(countWalks(events), walkCounts{
					fmt.Sprint(tracer.RoleServer, server):        connections,
					fmt.Sprint(tracer.RoleClient, other(server)): connections,
					fmt.Sprint(tracer.RoleServer, listenerWalk):  1,
				}))
				checkAcceptOwners(t, events, acceptor, func(tr tracer.Transition) bool {
					if rec.tracer.Evidence() == tracer.EvidenceTimer {
						return call != acceptAndExec && afterAccept(tr)
					}
					return tr.New == tracer.StateCloseWait || afterAccept(tr)
				})
			})
		}
	}
}

var listenerWalk = path(tracer.StateClose, tracer.StateListen, tracer.StateClose)

// other is the walk of a server's peer, a client.
func other(server []tracer.Transition) []tracer.Transition {
	if slices.Equal(server, serverThatClosesFirst) {
		return clientThatClosesLast
	}
	return clientThatClosesFirst
}

// checkAcceptOwners expects accepted sockets to be the acceptor's where accepted
// says so, and all else to be this process's.
func checkAcceptOwners(t *testing.T, events []tracer.Event, acceptor tracer.Owner, accepted func(tracer.Transition) bool) {
	t.Helper()
	var mine []tracer.Event
	for cookie, walk := range walksOf(events) {
		for _, ev := range walk {
			if ev.Role != tracer.RoleServer || !accepted(ev.Transition) {
				qt.Check(t, qt.Not(qt.Equals(ev.Owner.Origin, tracer.OriginAccept)), qt.Commentf("%v of cookie %d", ev.Transition, cookie))
				mine = append(mine, ev)
				continue
			}
			qt.Check(t, qt.Equals(ev.Owner, acceptor), qt.Commentf("%v of cookie %d", ev.Transition, cookie))
		}
	}
	checkOwners(t, mine)
}

// acceptByStranger makes connections that a stranger accepts. It returns what
// the stranger should be known as, and what its sockets do.
func (l *loop) acceptByStranger(call, cgroup string) (tracer.Owner, []tracer.Transition) {
	l.t.Helper()
	l.listen()
	listener := os.NewFile(uintptr(l.listener.fd), "listener")
	s := newStranger(l, call, cgroup, listener)
	acceptor := ownerOf(s, tracer.OriginAccept)
	clients := l.dialAll()
	s.proceed()
	s.expect("accepted")
	server := serverThatClosesLast
	if call == acceptAndShutdown {
		server = serverThatClosesFirst
	} else {
		for _, c := range clients {
			l.must("shutdown", unix.Shutdown(c.fd, unix.SHUT_WR))
		}
	}
	s.proceed()
	if call == acceptAndExec {
		s.expect("ready")
		s.proceed()
	}
	for _, c := range clients {
		l.awaitEOF(c)
		l.close(c)
	}
	s.wait()
	l.must("close listener", listener.Close())
	return acceptor, server
}

// dialAll makes connections that nobody accepts yet.
func (l *loop) dialAll() (clients []end) {
	l.t.Helper()
	l.ns.Do(func() {
		for range connections {
			fd := l.socket()
			l.must("connect", unix.Connect(fd, sockaddrOf(l.listener.local)))
			clients = append(clients, end{fd: fd})
		}
	})
	return clients
}

// acceptInherited is what a stranger does that accepts.
func acceptInherited(call string) error {
	fds, err := acceptAllAt(strangerListener, strangerAccepted)
	if err != nil {
		return err
	}
	fmt.Println("accepted")
	if err := awaitWord(); err != nil {
		return err
	}
	if call == acceptAndExec {
		const exe = "/proc/self/exe" // where it lies may be closed to the stranger's user
		env := append(withoutStranger(os.Environ()), strangerCall+"="+closeInherited)
		return fmt.Errorf("exec: %w", unix.Exec(exe, []string{exe}, env))
	}
	for _, fd := range fds {
		if call == acceptAndShutdown {
			err = closeAsFirst(fd)
		} else {
			err = unix.Close(fd)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// acceptAllAt accepts all connections, on descriptors from first on, which last
// beyond an exec.
func acceptAllAt(listener, first int) (fds []int, err error) {
	for i := range connections {
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("accept: %w", err)
		}
		if err := errors.Join(unix.Dup3(fd, first+i, 0), unix.Close(fd)); err != nil {
			return nil, fmt.Errorf("move descriptor: %w", err)
		}
		fds = append(fds, first+i)
	}
	return fds, nil
}

func withoutStranger(env []string) (rest []string) {
	for _, v := range env {
		if !strings.HasPrefix(v, strangerCall+"=") {
			rest = append(rest, v)
		}
	}
	return rest
}

// closeAllInherited is what the program does that has taken a stranger's place.
func closeAllInherited() error {
	for i := range connections {
		if err := unix.Close(strangerAccepted + i); err != nil {
			return fmt.Errorf("close what was inherited: %w", err)
		}
	}
	return nil
}
