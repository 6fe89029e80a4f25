package test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/tracer"
)

// A holder is this binary run once more as another process, of another name,
// that has sockets open until it is told to end.
//
// holderDo says how it comes by them: keep what it has inherited, take what is
// passed to it over its descriptor 3, open a connection to holderAddr and pass it
// on, or leak as many connections as it is told.
const (
	holderDo   = "FINWAIT_TEST_HOLDER"
	holderAddr = "FINWAIT_TEST_HOLDER_ADDR"

	holderKeep = "keep"
	holderTake = "take"
	holderOpen = "open"
	holderLeak = "leak"

	holderComm = "finwait-holder"
	holderFD   = 3
)

type holder struct {
	t     testing.TB
	cmd   *exec.Cmd
	lines *bufio.Scanner
	stdin io.WriteCloser
	conn  int // our end of what descriptors are passed over
}

// newHolder starts a holder in the namespace, which inherits the descriptors.
func newHolder(l *loop, do string, inherit ...int) *holder {
	l.t.Helper()
	exe, err := os.Executable()
	l.must("executable", err)
	name := filepath.Join(l.t.TempDir(), holderComm)
	l.must("symlink", os.Symlink(exe, name))
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	l.must("socketpair", err)
	l.t.Cleanup(func() { unix.Close(pair[0]) })

	h := &holder{t: l.t, cmd: l.ns.Command(name), conn: pair[0]}
	theirs := os.NewFile(uintptr(pair[1]), "theirs")
	defer theirs.Close()
	h.cmd.ExtraFiles = append(h.cmd.ExtraFiles, theirs)
	for _, fd := range inherit {
		copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		l.must("dup", err)
		file := os.NewFile(uintptr(copied), "socket")
		defer file.Close()
		h.cmd.ExtraFiles = append(h.cmd.ExtraFiles, file)
	}
	at := netip.AddrPortFrom(l.addr, listenPort)
	h.cmd.Env = append(os.Environ(), holderDo+"="+do, holderAddr+"="+at.String())
	h.cmd.Stderr = os.Stderr
	h.stdin, err = h.cmd.StdinPipe()
	l.must("pipe", err)
	stdout, err := h.cmd.StdoutPipe()
	l.must("pipe", err)
	h.lines = bufio.NewScanner(stdout)
	l.must("start holder", h.cmd.Start())
	l.t.Cleanup(func() { _ = h.cmd.Process.Kill() })
	h.expect("ready")
	return h
}

func (h *holder) expect(line string) {
	h.t.Helper()
	qt.Assert(h.t, qt.IsTrue(h.lines.Scan()), qt.Commentf("holder has ended before it was %s", line))
	qt.Assert(h.t, qt.Equals(h.lines.Text(), line))
}

// give passes a socket to the holder.
func (h *holder) give(fd int) {
	h.t.Helper()
	qt.Assert(h.t, qt.IsNil(sendFD(h.conn, fd)))
	h.expect("held")
}

// take receives a socket that the holder has opened.
func (h *holder) take() int {
	h.t.Helper()
	h.expect("held")
	fd, err := receiveFD(h.conn)
	qt.Assert(h.t, qt.IsNil(err))
	return fd
}

// end has the holder end, and with it what it alone has open.
func (h *holder) end() {
	h.t.Helper()
	h.stdin.Close()
	qt.Assert(h.t, qt.IsNil(h.cmd.Wait()))
}

// owner is what a tracer should say of a socket that is the holder's.
func (h *holder) owner() tracer.Owner {
	h.t.Helper()
	return snapshotOwner(h.t, h.cmd.Process.Pid)
}

// snapshotOwner is the process as the owner of a socket that it had open.
func snapshotOwner(t testing.TB, pid int) tracer.Owner {
	t.Helper()
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	qt.Assert(t, qt.IsNil(err))
	owner := tracer.Owner{Origin: tracer.OriginSnapshot, PID: uint32(pid), CgroupID: cgroupID(t, cgroupOf(t, pid))}
	owner.SetComm(string(comm[:len(comm)-1]))
	return owner
}

// beHolder is all that a holder does.
func beHolder(do, addr string) error {
	fmt.Println("ready")
	switch do {
	case holderTake:
		go func() {
			for {
				if _, err := receiveFD(holderFD); err != nil {
					return
				}
				fmt.Println("held")
			}
		}()
	case holderOpen:
		fd, err := connectOut(addr)
		if err != nil {
			return err
		}
		if err := sendFD(holderFD, fd); err != nil {
			return err
		}
		fmt.Println("held")
	case holderLeak:
		return beLeaker(func() (int, error) { return connectOut(addr) })
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

func connectOut(addr string) (int, error) {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return 0, err
	}
	domain := unix.AF_INET
	if at.Addr().Is6() {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	if err := unix.Connect(fd, sockaddrOf(at)); err != nil {
		return 0, fmt.Errorf("connect: %w", err)
	}
	return fd, nil
}

func sendFD(over, fd int) error {
	if err := unix.Sendmsg(over, []byte{0}, unix.UnixRights(fd), nil, 0); err != nil {
		return fmt.Errorf("pass a descriptor: %w", err)
	}
	return nil
}

func receiveFD(over int) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(over, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("receive a descriptor: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return 0, errors.New("no descriptor has come")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return 0, errors.New("no descriptor has come")
	}
	return fds[0], nil
}
