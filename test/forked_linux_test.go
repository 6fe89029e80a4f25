package test

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A forked process is a copy of one thread of a Go program, without the runtime
// that it needs: no other thread, no scheduler, a heap that may be locked. So it
// calls the kernel and nothing else, from functions that are nosplit, which the
// runtime does not get hold of. In return it is made in a moment, and its life
// is system calls alone.

// What a forked process does with a socket that is to end.
const (
	endByClose   = iota // closes it
	endByHeir           // closes its copy, and a child that has inherited the socket closes it
	endByStrange        // the same with a process that got it through a UNIX socket
	endByExit           // ends with the socket open
	endByExec           // becomes another program, with the socket closed on exec
	numEnds
)

// deed is what a forked process says that it has done. Cookie is of the socket,
// Listener of the one it was accepted from.
type deed struct {
	Cookie, Listener uint64
	PID, Cgroup      uint32
	Call             uint32 // a tracer.Origin, or failedCall
	End              uint32
}

// failedCall is the Call of a process that gives up: Cookie is the number of the
// system call that failed, and Listener why.
const failedCall = 255

// A forked process is known by its process id, in its name and its user too.
const (
	forkedName = "storm-"
	forkedUID  = 100_000
)

const (
	numCgroups   = 2
	clientFirst0 = 'c' // the client is going to close first
	serverFirst0 = 's'
)

// forked is all the memory that a forked process has. It is filled before.
var forked struct {
	domain, addrLen uintptr
	addr            [unix.SizeofSockaddrInet6]byte
	deeds, ready    uintptr // descriptors
	cgroups         [numCgroups]uint64
	workers         int // processes that accept, beside the one that listens; 0 if it does itself
	accepts         int // connections that each of them accepts
	connects        int // connections that each client makes

	// Its own.
	deed    deed
	turn    uint32 // which cgroup the last that it has forked is in
	random  uint32
	clone   [11]uint64 // struct clone_args
	name    [16]byte
	mode    [1]byte
	pair    [2]int32
	message unix.Msghdr
	iovec   unix.Iovec
	control struct {
		header unix.Cmsghdr
		fd     [2]int32
	}
	program [16]byte
	argv    [2]uintptr
	one     int32
	size    uint32
	timeout unix.Timeval
}

// layForked fills in what is the same for all.
func layForked() {
	f := &forked
	f.one, f.timeout.Sec = 1, 30
	copy(f.program[:], "/bin/true")
	f.argv[0] = uintptr(unsafe.Pointer(&f.program))
	f.iovec = unix.Iovec{Base: &f.mode[0], Len: 1}
	f.control.header = unix.Cmsghdr{Len: unix.SizeofCmsghdr + 4, Level: unix.SOL_SOCKET, Type: unix.SCM_RIGHTS}
	f.message = unix.Msghdr{Iov: &f.iovec, Iovlen: 1, Control: (*byte)(unsafe.Pointer(&f.control))}
	f.message.SetControllen(int(unsafe.Sizeof(f.control)))
}

// call makes a system call that must not fail.
//
//go:nosplit
//go:norace
func call(nr, a, b, c, d, e uintptr) uintptr {
	r, _, errno := syscall.RawSyscall6(nr, a, b, c, d, e, 0)
	if errno != 0 {
		forked.deed.Call, forked.deed.Cookie, forked.deed.Listener = failedCall, uint64(nr), uint64(errno)
		tellDeed()
		exit(1)
	}
	return r
}

//go:nosplit
//go:norace
func exit(code uintptr) { syscall.RawSyscall6(unix.SYS_EXIT_GROUP, code, 0, 0, 0, 0, 0) }

//go:nosplit
//go:norace
func tellDeed() {
	syscall.RawSyscall6(unix.SYS_WRITE, forked.deeds, uintptr(unsafe.Pointer(&forked.deed)), unsafe.Sizeof(forked.deed), 0, 0, 0)
}

// fork makes another process, in which it returns 0. Which cgroup that is in
// goes by turns.
//
//go:nosplit
//go:norace
func fork() uintptr {
	forked.turn = (forked.turn + 1) % numCgroups
	forked.clone[0] = unix.CLONE_INTO_CGROUP
	forked.clone[4] = uint64(unix.SIGCHLD)
	forked.clone[10] = forked.cgroups[forked.turn]
	return call(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&forked.clone)), unsafe.Sizeof(forked.clone), 0, 0, 0)
}

// become gives a process that was just forked an identity of its own.
//
//go:nosplit
//go:norace
func become() {
	pid := call(unix.SYS_GETPID, 0, 0, 0, 0, 0)
	forked.deed.PID, forked.deed.Cgroup = uint32(pid), forked.turn
	forked.random = uint32(pid)*2654435761 | 1
	digits := 1
	for n := pid; n >= 10; n /= 10 {
		digits++
	}
	forked.name = [16]byte{'s', 't', 'o', 'r', 'm', '-'}
	for i := len(forkedName) + digits - 1; i >= len(forkedName); i-- {
		forked.name[i] = '0' + byte(pid%10)
		pid /= 10
	}
	call(unix.SYS_PRCTL, unix.PR_SET_NAME, uintptr(unsafe.Pointer(&forked.name)), 0, 0, 0)
	call(unix.SYS_SETRESUID, forkedUID+uintptr(forked.deed.PID), ^uintptr(0), ^uintptr(0), 0, 0)
}

// chance returns a number below n.
//
//go:nosplit
//go:norace
func chance(n uint32) uint32 {
	forked.random ^= forked.random << 13
	forked.random ^= forked.random >> 17
	forked.random ^= forked.random << 5
	return forked.random % n
}

// did says that the process has opened, accepted or listened on the socket.
//
//go:nosplit
//go:norace
func did(origin uint32, fd uintptr, end uint32) {
	forked.size = 8
	call(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_COOKIE, uintptr(unsafe.Pointer(&forked.deed.Cookie)), uintptr(unsafe.Pointer(&forked.size)))
	forked.deed.Call, forked.deed.End = origin, end
	tellDeed()
}

//go:nosplit
//go:norace
func openSocket() uintptr {
	fd := call(unix.SYS_SOCKET, forked.domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0, 0, 0)
	setOption(fd, unix.SO_REUSEADDR, unsafe.Pointer(&forked.one), 4)
	setOption(fd, unix.SO_RCVTIMEO, unsafe.Pointer(&forked.timeout), unsafe.Sizeof(forked.timeout))
	setOption(fd, unix.SO_SNDTIMEO, unsafe.Pointer(&forked.timeout), unsafe.Sizeof(forked.timeout))
	return fd
}

//go:nosplit
//go:norace
func setOption(fd, option uintptr, value unsafe.Pointer, size uintptr) {
	call(unix.SYS_SETSOCKOPT, fd, unix.SOL_SOCKET, option, uintptr(value), size)
}

//go:nosplit
//go:norace
func closeFD(fd uintptr) { call(unix.SYS_CLOSE, fd, 0, 0, 0, 0) }

// readByte reads a byte, or 0 at the end.
//
//go:nosplit
//go:norace
func readByte(fd uintptr) byte {
	forked.mode[0] = 0
	call(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&forked.mode)), 1, 0, 0)
	return forked.mode[0]
}

//go:nosplit
//go:norace
func writeByteTo(fd uintptr, b byte) {
	forked.mode[0] = b
	call(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&forked.mode)), 1, 0, 0)
}

// forkServer makes a process that listens. It accepts, or ends at once and
// leaves that to children.
//
//go:nosplit
//go:norace
func forkServer() {
	if fork() != 0 {
		return
	}
	become()
	l := openSocket()
	call(unix.SYS_BIND, l, uintptr(unsafe.Pointer(&forked.addr)), forked.addrLen, 0, 0)
	call(unix.SYS_LISTEN, l, 128, 0, 0, 0)
	did(didListen, l, 0)
	forked.deed.Listener = forked.deed.Cookie
	writeByteTo(forked.ready, 'l')
	for i := 0; i < forked.workers; i++ {
		if fork() == 0 {
			become()
			acceptSome(l)
		}
	}
	if forked.workers == 0 {
		acceptSome(l)
	}
	exit(0)
}

//go:nosplit
//go:norace
func acceptSome(l uintptr) {
	for left := forked.accepts; left > 0; left-- {
		fd := call(unix.SYS_ACCEPT4, l, 0, 0, unix.SOCK_CLOEXEC, 0)
		end := chooseEnd(left)
		did(didAccept, fd, end)
		if readByte(fd) == clientFirst0 {
			readByte(fd)
		}
		finish(fd, end)
	}
	exit(0)
}

// forkClient makes a process that connects.
//
//go:nosplit
//go:norace
func forkClient() {
	if fork() != 0 {
		return
	}
	become()
	for left := forked.connects; left > 0; left-- {
		fd := openSocket()
		call(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&forked.addr)), forked.addrLen, 0, 0)
		end := chooseEnd(left)
		did(didConnect, fd, end)
		if chance(2) == 0 {
			writeByteTo(fd, clientFirst0)
		} else {
			writeByteTo(fd, serverFirst0)
			readByte(fd)
		}
		finish(fd, end)
	}
	exit(0)
}

// chooseEnd chooses how a socket ends. A process can end with its last alone:
// others may wait for what it has still to do.
//
//go:nosplit
//go:norace
func chooseEnd(left int) uint32 {
	if left == 1 {
		return chance(numEnds)
	}
	return chance(endByExit)
}

//go:nosplit
//go:norace
func finish(fd uintptr, end uint32) {
	switch end {
	case endByClose:
		closeFD(fd)
	case endByExit:
		exit(0)
	case endByExec:
		call(unix.SYS_EXECVE, uintptr(unsafe.Pointer(&forked.program)), uintptr(unsafe.Pointer(&forked.argv)), 0, 0, 0)
	default:
		give(fd, end)
	}
}

// give has another process close the socket, when this one has closed it.
//
//go:nosplit
//go:norace
func give(fd uintptr, end uint32) {
	call(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0, uintptr(unsafe.Pointer(&forked.pair)), 0)
	if fork() == 0 {
		become()
		receive(fd, end)
	}
	if end == endByStrange {
		forked.control.fd[0] = int32(fd)
		call(unix.SYS_SENDMSG, uintptr(forked.pair[0]), uintptr(unsafe.Pointer(&forked.message)), 0, 0, 0)
	}
	closeFD(fd)
	writeByteTo(uintptr(forked.pair[0]), 'g')
	closeFD(uintptr(forked.pair[0]))
	closeFD(uintptr(forked.pair[1]))
}

//go:nosplit
//go:norace
func receive(fd uintptr, end uint32) {
	if end == endByStrange {
		closeFD(fd) // what it has inherited
		call(unix.SYS_RECVMSG, uintptr(forked.pair[1]), uintptr(unsafe.Pointer(&forked.message)), unix.MSG_CMSG_CLOEXEC, 0, 0)
		fd = uintptr(forked.control.fd[0])
	}
	readByte(uintptr(forked.pair[1]))
	closeFD(fd)
	exit(0)
}
