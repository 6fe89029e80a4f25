package test

import (
	endian "encoding/binary"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/tracer"
)

// heldCases are ends that have to wait: a process holds the socket's lock when
// they come, and makes them when it lets go (release_sock: the backlog, and
// tcp_release_cb for the timers).
var heldCases = []reasonCase{
	{name: "reset while held", remote: true, provoke: func(c *closings) {
		c.whileHeld(0, nil, func(e end, port uint16) {
			c.r.say(port, flagRST, 1, 0)
			c.expect(e, estab, tracer.ReasonRSTReceived, peer)
		})
	}},
	{name: "reset while held in FIN_WAIT1", remote: true, provoke: func(c *closings) {
		c.whileHeld(0, func(e end, _ uint16) { c.shutdown(e, unix.SHUT_WR) }, func(e end, port uint16) {
			c.r.say(port, flagRST, 1, 0)
			c.expect(e, finWait1, tracer.ReasonRSTReceived, local)
		})
	}},
	{name: "data after shutdown while held", remote: true, provoke: func(c *closings) {
		c.whileHeld(0, func(e end, _ uint16) { c.shutdown(e, unix.SHUT_RDWR) }, func(e end, port uint16) {
			c.r.say(port, flagACK, 1, 1, 'y')
			c.expect(e, finWait2, tracer.ReasonRSTSentLateData, local)
		})
	}},
	{name: "last segment while held", remote: true, provoke: func(c *closings) {
		c.whileHeld(0, c.toLastAck, func(e end, port uint16) {
			c.r.say(port, flagACK, 2, 1)
			c.expect(e, lastAck, tracer.ReasonFIN, peer)
		})
	}},
	{name: "data beyond the FIN while held", remote: true, provoke: func(c *closings) {
		c.whileHeld(0, c.toLastAck, func(e end, port uint16) {
			c.r.say(port, flagACK, 1, 0, []byte("xyz")...)
			c.expect(e, lastAck, tracer.ReasonRSTSentLateData, peer)
		})
	}},
	{name: "no answer to data while held", remote: true, provoke: func(c *closings) {
		c.giveUpSoon()
		c.whileHeld(2*time.Second, func(e end, _ uint16) { c.write(e, 1) }, func(e end, _ uint16) {
			c.expect(e, estab, tracer.ReasonTimeoutRetransmit, noSide)
		})
	}},
	{name: "no answer to the last FIN while held", remote: true, provoke: func(c *closings) {
		c.giveUpSoon()
		c.whileHeld(2*time.Second, c.toLastAck, func(e end, _ uint16) {
			c.expect(e, lastAck, tracer.ReasonTimeoutRetransmit, peer)
		})
	}},
	{name: "no answer to data within TCP_USER_TIMEOUT while held", remote: true, provoke: func(c *closings) {
		c.whileHeld(2*time.Second, func(e end, _ uint16) {
			c.setTCP(e, unix.TCP_USER_TIMEOUT, 1500)
			c.write(e, 1)
		}, func(e end, _ uint16) { c.expect(e, estab, tracer.ReasonTimeoutUser, noSide) })
	}},
}

// toLastAck has the remote, which has sent a byte, close first.
func (c *closings) toLastAck(e end, port uint16) {
	c.t.Helper()
	c.r.say(port, flagFIN|flagACK, 1, 0)
	c.awaitState(e, closeWait)
	c.shutdown(e, unix.SHUT_WR)
}

// awaitRepetition waits until something is sent again.
func (c *closings) awaitRepetition(e end) {
	c.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		info, err := unix.GetsockoptTCPInfo(e.fd, unix.SOL_TCP, unix.TCP_INFO)
		c.must("TCP_INFO", err)
		if info.Retransmits > 0 || tracer.State(info.State) == tracer.StateClose {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatal("nothing has been sent again")
		}
	}
}

// whileHeld makes connections and has something happen to them while the lock of
// each is held: by a process that reads a byte from it into memory that is not
// there yet (userfaultfd). before comes before that. If it is held for long, that
// is from when something had to be sent again, and so that timers run meanwhile.
func (c *closings) whileHeld(long time.Duration, before, during func(e end, port uint16)) {
	c.t.Helper()
	h := newLockHolder(c.loop, connections)
	var all []end
	c.remotes(func(e end, port uint16) {
		c.r.say(port, flagACK, 0, 0, 'x')
		c.awaitUnread(e)
		c.closeLate(e)
		all = append(all, e)
	})
	for _, e := range all {
		if before != nil {
			before(e, e.remote.Port())
		}
	}
	for _, e := range all {
		if long > 0 {
			c.awaitRepetition(e)
		}
		h.hold(e)
		during(e, e.remote.Port())
	}
	time.Sleep(long)
	h.release()
}

// lockHolder holds locks of sockets.
type lockHolder struct {
	l       *loop
	uffd    int
	memory  []byte // a page for each socket
	readers []chan bool
}

// Of linux/userfaultfd.h.
const (
	uffdAPI         = 0xaa
	uffdioAPI       = 0xc018aa3f
	uffdioRegister  = 0xc020aa00
	uffdioZeroPage  = 0xc020aa04
	uffdModeMissing = 1
)

type uffdRange struct{ start, len, mode, result uint64 }

func newLockHolder(l *loop, sockets int) *lockHolder {
	l.t.Helper()
	h := &lockHolder{l: l}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		l.must("userfaultfd", errno)
	}
	h.uffd = int(fd)
	l.t.Cleanup(func() { unix.Close(h.uffd) })
	api := struct{ api, features, ioctls uint64 }{api: uffdAPI}
	h.ioctl(uffdioAPI, unsafe.Pointer(&api))
	var err error
	h.memory, err = unix.Mmap(-1, 0, sockets*unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	l.must("mmap", err)
	l.t.Cleanup(func() { unix.Munmap(h.memory) })
	h.over(uffdioRegister, uffdModeMissing, h.memory)
	return h
}

func (h *lockHolder) ioctl(request uintptr, arg unsafe.Pointer) {
	h.l.t.Helper()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(h.uffd), request, uintptr(arg)); errno != 0 {
		h.l.t.Fatalf("userfaultfd ioctl %#x: %v", request, errno)
	}
}

// over does something to some of the memory.
func (h *lockHolder) over(request uintptr, mode uint64, memory []byte) {
	h.l.t.Helper()
	r := uffdRange{start: uint64(uintptr(unsafe.Pointer(&memory[0]))), len: uint64(len(memory)), mode: mode}
	h.ioctl(request, unsafe.Pointer(&r))
}

// hold returns when the socket's lock is held: tcp_recvmsg copies, and waits for
// the page.
func (h *lockHolder) hold(e end) {
	h.l.t.Helper()
	page := h.page(len(h.readers))
	done := make(chan bool)
	h.readers = append(h.readers, done)
	go func() {
		defer close(done)
		unix.Read(e.fd, page[:1])
	}()
	for h.nextFault() != uintptr(unsafe.Pointer(&page[0])) {
		// A signal has another reader try again.
	}
}

// nextFault returns the address of the next access to memory that is not there.
func (h *lockHolder) nextFault() uintptr {
	h.l.t.Helper()
	const address = 16
	fault := make([]byte, 32) // struct uffd_msg
	h.l.must("read userfaultfd", uninterrupted(func() error {
		_, err := unix.Read(h.uffd, fault)
		return err
	}))
	return uintptr(endian.NativeEndian.Uint64(fault[address:]))
}

// release lets go of all at once: as many processes wake.
func (h *lockHolder) release() {
	h.l.t.Helper()
	h.over(uffdioZeroPage, 0, h.memory)
	for _, done := range h.readers {
		<-done
	}
}

func (h *lockHolder) page(i int) []byte {
	size := unix.Getpagesize()
	return h.memory[i*size : (i+1)*size]
}
