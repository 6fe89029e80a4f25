package traffic

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/tracer"
)

const (
	patience = 15 * time.Second
	pause    = 100 * time.Microsecond
)

// await waits until done says so.
func (r *rig) await(what string, done func() bool) {
	r.awaitEvery(pause, what, done)
}

func (r *rig) awaitEvery(pause time.Duration, what string, done func() bool) {
	for deadline := time.Now().Add(patience); !done(); time.Sleep(pause) {
		if time.Now().After(deadline) {
			must("wait for "+what, os.ErrDeadlineExceeded)
		}
	}
}

// again reports whether a call on a non-blocking socket is done. It fails the
// run on any error that does not mean "not yet".
func again(op string, err error) (done bool) {
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return false
	}
	must(op, err)
	return true
}

// awaitState waits until e is in the state. What was emitted on the way there
// has been emitted then: the kernel stores the state after the tracepoint.
func (r *rig) awaitState(e *end, want tracer.State) {
	r.await(fmt.Sprintf("%s in %s", e.Role, want), func() bool { return stateOf(e.fd) == want })
}

func stateOf(fd int) tracer.State {
	info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
	must("TCP_INFO", err)
	return tracer.State(info.State)
}

// awaitTable waits until the kernel's table of sockets says of e what done
// wants. It is for sockets that no descriptor leads to any more.
func (r *rig) awaitTable(what string, done func(table) bool) {
	r.awaitEvery(2*time.Millisecond, what, func() bool {
		t, err := readTable(r.family)
		must("read socket table", err)
		return done(t)
	})
}

// settle waits until every socket is where its walk ends, and its last
// transition has been reported.
func (r *rig) settle() {
	r.awaitTable("sockets at their ends", func(t table) bool {
		for _, s := range r.res.Sockets() {
			state, there := t[tuple{s.Local, s.Remote}]
			if there != s.EndsInTimeWait || there && state != tw {
				return false
			}
		}
		return true
	})
	drainSoftirqs()
}

// drainSoftirqs waits until every packet and timer that the kernel was working
// on when it was called is done with, because a socket is out of the table a
// moment before its transition to CLOSE is reported. Softirqs are RCU readers,
// and this is a grace period.
func drainSoftirqs() {
	const membarrierCmdGlobal = 1 // enum membarrier_cmd of include/uapi/linux/membarrier.h
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierCmdGlobal, 0, 0); errno != 0 {
		time.Sleep(20 * time.Millisecond) // nohz_full kernels have no such command
	}
}

// table is /proc/net/tcp or tcp6: every TCP socket that is in a state other
// than CLOSE, mini-sockets included.
type table map[tuple]tracer.State

type tuple struct{ local, remote netip.AddrPort }

func readTable(family tracer.Family) (table, error) {
	path := "/proc/thread-self/net/tcp"
	if family == tracer.FamilyIPv6 {
		path += "6"
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	t := table{}
	for i, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		fields := strings.Fields(line)
		if i == 0 || len(fields) < 4 {
			continue
		}
		local, err := parseEndpoint(fields[1])
		if err != nil {
			return nil, err
		}
		remote, err := parseEndpoint(fields[2])
		if err != nil {
			return nil, err
		}
		state, err := strconv.ParseUint(fields[3], 16, 8)
		if err != nil {
			return nil, err
		}
		t[tuple{local, remote}] = tracer.State(state)
	}
	return t, nil
}

// parseEndpoint parses "0100007F:1F90": words of the address as the CPU reads
// them, and the port.
func parseEndpoint(s string) (netip.AddrPort, error) {
	addr, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for i := 0; i+4 <= len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	ip, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("address %q", s)
	}
	p, err := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(ip, uint16(p)), err
}
