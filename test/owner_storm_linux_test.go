package test

import (
	"bytes"
	endian "encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/tracer"
)

// What a forked process may have done, as an event's origin says it.
const (
	didConnect = uint32(tracer.OriginConnect)
	didListen  = uint32(tracer.OriginListen)
	didAccept  = uint32(tracer.OriginAccept)
)

// A swarm is this binary run once more to fork processes, some hundred a second,
// that make connections to each other. swarmPort is the port that they use, and
// swarmCount how many connections they make.
//
// A bystander is one that does as it likes in the same namespace: it has
// connections of its own, and never sleeps.
const (
	swarmAddr  = "FINWAIT_TEST_SWARM_ADDR"
	swarmCount = "FINWAIT_TEST_SWARM_COUNT"

	bystanderAddr = "FINWAIT_TEST_BYSTANDER_ADDR"
	bystanderComm = "bystander"
)

// A round has as many connections on either side.
const (
	roundWorkers    = 3
	acceptsOfWorker = 8
	roundClients    = 6
	roundSize       = roundWorkers * acceptsOfWorker
)

// TestOwnerStorm has thousands of processes, each of another name and user, that
// live for a moment: they listen, accept, connect, pass sockets on and end. Each
// says of which sockets it has done what. All have ended when the events are
// read, and of each is known what it was.
func TestOwnerStorm(t *testing.T) {
	perSwarm := 2600
	if os.Getenv("FINWAIT_VM") != "" {
		perSwarm = 260
	}
	cgroups := make([]string, numCgroups)
	for i := range cgroups {
		cgroups[i] = newCgroup(t, cgroupRoot(t))
	}
	spaces := map[tracer.Family]*netns.NS{}
	filter := tracer.Filter{}
	for _, family := range families {
		spaces[family] = netns.New(t)
		filter.Netns = append(filter.Netns, spaces[family].Inode())
	}
	tr, err := tracer.New(&tracer.Options{Filter: filter, EventBuffer: 128 << 20, Evidence: wantedEvidence(t)})
	qt.Assert(t, qt.IsNil(err))
	defer tr.Close()
	guards := watchGuards(t)

	s := newOwnerStorm(t, cgroups)
	var swarms []*exec.Cmd
	for _, family := range families {
		for range 2 {
			swarms = append(swarms, s.startSwarm(spaces[family], family, perSwarm))
		}
		s.startBystander(spaces[family], family)
	}
	for _, swarm := range swarms {
		qt.Assert(t, qt.IsNil(swarm.Wait()))
	}
	s.endBystanders()
	time.Sleep(2 * tracer.SweepInterval)
	events := drainAll(t, tr)
	ledger, err := tr.Ledger()
	qt.Assert(t, qt.IsNil(err))
	lost := guards.hidden(t) + checkLost(t, ledger, tracer.Ledger{})
	s.readDeeds()
	s.check(events, tr.Evidence(), lost)
}

// ownerStorm is what the processes of a storm have done, by the cookies of
// their sockets.
type ownerStorm struct {
	t          *testing.T
	cgroups    []string
	deeds      *os.File
	ports      uint16
	bystanders []*exec.Cmd

	connected, listened, accepted map[uint64]deed
}

func newOwnerStorm(t *testing.T, cgroups []string) *ownerStorm {
	t.Helper()
	deeds, err := os.OpenFile(filepath.Join(t.TempDir(), "deeds"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { deeds.Close() })
	return &ownerStorm{
		t: t, cgroups: cgroups, deeds: deeds, ports: listenPort,
		connected: map[uint64]deed{}, listened: map[uint64]deed{}, accepted: map[uint64]deed{},
	}
}

// loopback is a loopback address with a port that nothing else has.
func (s *ownerStorm) loopback(family tracer.Family) string {
	s.ports++
	addr := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if family == tracer.FamilyIPv6 {
		addr = netip.IPv6Loopback()
	}
	return netip.AddrPortFrom(addr, s.ports).String()
}

func (s *ownerStorm) start(ns *netns.NS, env []string, files ...*os.File) *exec.Cmd {
	s.t.Helper()
	exe, err := os.Executable()
	qt.Assert(s.t, qt.IsNil(err))
	cmd := ns.Command(exe)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = files
	qt.Assert(s.t, qt.IsNil(cmd.Start()))
	s.t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd
}

func (s *ownerStorm) startSwarm(ns *netns.NS, family tracer.Family, count int) *exec.Cmd {
	s.t.Helper()
	files := []*os.File{s.deeds}
	for _, cgroup := range s.cgroups {
		dir, err := os.Open(cgroup)
		qt.Assert(s.t, qt.IsNil(err))
		defer dir.Close()
		files = append(files, dir)
	}
	return s.start(ns, []string{swarmAddr + "=" + s.loopback(family), swarmCount + "=" + strconv.Itoa(count)}, files...)
}

func (s *ownerStorm) startBystander(ns *netns.NS, family tracer.Family) {
	s.t.Helper()
	s.bystanders = append(s.bystanders, s.start(ns, []string{bystanderAddr + "=" + s.loopback(family)}))
}

func (s *ownerStorm) endBystanders() {
	for _, b := range s.bystanders {
		_ = b.Process.Kill()
		_ = b.Wait() // it was killed
	}
}

func (s *ownerStorm) readDeeds() {
	s.t.Helper()
	text, err := os.ReadFile(s.deeds.Name())
	qt.Assert(s.t, qt.IsNil(err))
	for r := bytes.NewReader(text); r.Len() > 0; {
		var d deed
		qt.Assert(s.t, qt.IsNil(endian.Read(r, endian.NativeEndian, &d)))
		switch d.Call {
		case didConnect:
			s.connected[d.Cookie] = d
		case didListen:
			s.listened[d.Cookie] = d
		case didAccept:
			s.accepted[d.Cookie] = d
		default:
			s.t.Errorf("process %d: system call %d: %v", d.PID, d.Cookie, unix.Errno(d.Listener))
		}
	}
}

// owner is what is to be known of who has done that.
func (s *ownerStorm) owner(d deed) tracer.Owner {
	s.t.Helper()
	o := tracer.Owner{Origin: tracer.Origin(d.Call), PID: d.PID, UID: forkedUID + d.PID, CgroupID: cgroupID(s.t, s.cgroups[d.Cgroup])}
	o.SetComm(forkedName + strconv.FormatUint(uint64(d.PID), 10))
	return o
}

// want is the owner that an event should have, given that it says that origin.
func (s *ownerStorm) want(ev *tracer.Event) (owner tracer.Owner, known bool) {
	if d, ok := s.connected[ev.Cookie]; ok {
		return s.owner(d), true
	}
	if d, ok := s.listened[ev.Cookie]; ok {
		return s.owner(d), true
	}
	d, ok := s.accepted[ev.Cookie]
	if !ok {
		return tracer.Owner{}, false
	}
	if ev.Owner.Origin != tracer.OriginAccept {
		d = s.listened[d.Listener]
	}
	return s.owner(d), true
}

// afterAccept tells whether no process can have made a socket do that before one
// has accepted it.
func afterAccept(tr tracer.Transition) bool {
	switch tr.Old {
	case tracer.StateFinWait1, tracer.StateFinWait2, tracer.StateClosing, tracer.StateTimeWait, tracer.StateLastAck:
		return true
	}
	return tr.New == tracer.StateFinWait1 || tr.New == tracer.StateLastAck
}

// ownerTally counts events. Blank are those without an owner, less what may be
// for want of what is lost.
type ownerTally struct {
	all, wrong, blank int
	// Of accepted sockets.
	server, known, after, knownAfter int
	byAcceptor, unknownByAcceptor    int // those that their acceptor has closed
}

func (s *ownerStorm) check(events []tracer.Event, evidence tracer.Evidence, lost int) {
	t := s.t
	t.Helper()
	n, acceptors := ownerTally{}, map[uint64]bool{}
	for _, ev := range events {
		n.add(&ev, s.accepted[ev.Cookie])
		if a := s.accepted[ev.Cookie]; a.Call == didAccept && ev.Owner.Origin == tracer.OriginAccept {
			acceptors[ev.Cookie] = true
		}
		if !s.isRight(&ev) {
			n.wrong++
		}
	}
	n.blank = max(0, n.blank-longestWalk*lost)
	t.Logf("%d connections by %v; %+v", len(s.accepted), evidence, n)
	t.Logf("no owner: %.3f %% of transitions; acceptor known: %.1f %% of connections, %.1f %% of their transitions, %.1f %% of those after the process's first call",
		percent(n.blank, n.all), percent(len(acceptors), len(s.accepted)), percent(n.known, n.server), percent(n.knownAfter, n.after))
	const most = 0.1
	qt.Check(t, qt.Equals(n.wrong, 0))
	qt.Check(t, qt.IsTrue(n.byAcceptor > 0))
	qt.Check(t, qt.IsTrue(percent(n.blank, n.all) < most))
	qt.Check(t, qt.IsTrue(percent(n.unknownByAcceptor, n.byAcceptor) < most))
	if evidence == tracer.EvidenceProbe {
		qt.Check(t, qt.IsTrue(percent(n.after-n.knownAfter, n.after) < most))
	}
	s.checkEnds(events, lost)
}

// isRight tells whether an event names nobody, or who it should. What none of the
// processes has said to be its own is a bystander's.
func (s *ownerStorm) isRight(ev *tracer.Event) bool {
	s.t.Helper()
	want, known := s.want(ev)
	right := ev.Owner.Origin == tracer.OriginUnknown || ev.Owner == want
	if !known {
		right = right || slices.ContainsFunc(s.bystanders, func(b *exec.Cmd) bool {
			return ev.Owner.PID == uint32(b.Process.Pid) && string(ev.Owner.Comm()) == bystanderComm
		})
	}
	if !right {
		s.t.Logf("%v of cookie %d: owner %+v, want %+v", ev.Transition, ev.Cookie, ev.Owner, want)
	}
	return right
}

// add counts an event of a socket, which a process has accepted in a.
func (n *ownerTally) add(ev *tracer.Event, a deed) {
	n.all++
	if ev.Owner.Origin == tracer.OriginUnknown {
		n.blank++
	}
	if a.Call != didAccept {
		return
	}
	known := 0
	if ev.Owner.Origin == tracer.OriginAccept {
		known = 1
	}
	n.server++
	n.known += known
	if !afterAccept(ev.Transition) {
		return
	}
	n.after++
	n.knownAfter += known
	if a.End == endByClose || a.End == endByExit {
		n.byAcceptor++
		n.unknownByAcceptor += 1 - known
	}
}

func percent(n, of int) float64 { return 100 * float64(n) / float64(max(of, 1)) }

// checkEnds expects every socket to have been told to its end.
func (s *ownerStorm) checkEnds(events []tracer.Event, lost int) {
	s.t.Helper()
	ended := map[uint64]bool{}
	for _, ev := range events {
		ended[ev.Cookie] = ev.New == tracer.StateClose || ev.New == tracer.StateTimeWait
	}
	missing := 0
	for _, deeds := range []map[uint64]deed{s.connected, s.listened, s.accepted} {
		for cookie := range deeds {
			if !ended[cookie] {
				missing++
			}
		}
	}
	s.t.Logf("%d sockets without an end; %d transitions are lost", missing, lost)
	qt.Check(s.t, qt.IsTrue(missing <= lost))
	qt.Check(s.t, qt.Equals(len(s.connected), len(s.accepted)))
}

// beSwarm forks processes until they have made as many connections.
func beSwarm(addr, count string) error {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	// What is forked has no runtime that could deal with a signal.
	runtime.LockOSThread()
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &all, nil); err != nil {
		return fmt.Errorf("block signals: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("adopt orphans: %w", err)
	}
	var ready [2]int
	if err := unix.Pipe2(ready[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	layForked()
	setForkedAddr(at)
	forked.deeds, forked.ready = 3, uintptr(ready[1])
	for i := range forked.cgroups {
		forked.cgroups[i] = uint64(4 + i)
	}
	for round := 0; round*roundSize < n; round++ {
		if err := forkRound(round, ready[0]); err != nil {
			return err
		}
	}
	return nil
}

func setForkedAddr(at netip.AddrPort) {
	forked.domain, forked.addrLen = unix.AF_INET, unix.SizeofSockaddrInet4
	tail := at.Addr().AsSlice()
	if at.Addr().Is6() {
		forked.domain, forked.addrLen = unix.AF_INET6, unix.SizeofSockaddrInet6
		tail = append(make([]byte, 4), tail...) // the flow label
	}
	endian.NativeEndian.PutUint16(forked.addr[:], uint16(forked.domain))
	endian.BigEndian.PutUint16(forked.addr[2:], at.Port())
	copy(forked.addr[4:], tail)
}

// forkRound has a server and some clients live and end. Every other server has
// children that accept.
func forkRound(round, ready int) error {
	forked.workers, forked.accepts = roundWorkers, acceptsOfWorker
	if round%2 == 1 {
		forked.workers, forked.accepts = 0, roundSize
	}
	forked.connects = roundSize / roundClients
	forkServer()
	if _, err := unix.Read(ready, make([]byte, 1)); err != nil {
		return fmt.Errorf("wait for listener: %w", err)
	}
	for range roundClients {
		forkClient()
	}
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.ECHILD) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("wait: %w", err)
		}
		if status != 0 {
			return fmt.Errorf("a process has ended with status %#x", status)
		}
	}
}

// beBystander connects to itself until it is killed, and is busy meanwhile.
func beBystander(addr string) error {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return err
	}
	if err := os.WriteFile("/proc/self/comm", []byte(bystanderComm), 0); err != nil {
		return err
	}
	var busy atomic.Uint64
	go func() {
		for {
			busy.Add(1)
		}
	}()
	domain := unix.AF_INET
	if at.Addr().Is6() {
		domain = unix.AF_INET6
	}
	for {
		if _, err := connectTo(at.Port(), 10, domain, clientFirst); err != nil {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}
