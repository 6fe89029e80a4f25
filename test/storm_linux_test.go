package test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/oracle"
	"github.com/finwait/finwait/tracer"
)

// stormFor is how long the storm lasts.
const stormFor = 30 * time.Second

// stormTally counts the events of one namespace.
type stormTally struct {
	cells   map[tracer.Transition]int
	reasons map[tracer.Reason]int
	ends    int
	unknown map[tracer.Transition]int // of the ends, those without a reason
	// recycled are the ends of a client's TIME_WAIT that connect took over.
	recycled int
}

func newStormTally() *stormTally {
	return &stormTally{
		cells: map[tracer.Transition]int{}, reasons: map[tracer.Reason]int{}, unknown: map[tracer.Transition]int{},
	}
}

func (s *stormTally) add(ev *tracer.Event) {
	s.cells[ev.Transition]++
	if ev.New == tracer.StateClose {
		s.ends++
		s.reasons[ev.Reason]++
		if ev.Reason == tracer.ReasonUnknown {
			s.unknown[ev.Transition]++
		}
	}
	if ev.Reason == tracer.ReasonReused && ev.Role == tracer.RoleClient {
		s.recycled++
	}
}

func (s *stormTally) count(from, to tracer.State) int {
	return s.cells[tracer.Transition{Old: from, New: to}]
}

// TestStorm opens and closes connections in every way at once, on all CPUs: with
// fewer mini-sockets than are asked for, ports that are used again, a flood of
// SYNs, and namespaces that come and go. The tracer starts in the middle of it.
// In the end, what it has counted is what the kernel has.
func TestStorm(t *testing.T) {
	netns.RequireRoot(t)
	old := newStorm(t, tracer.FamilyIPv4)
	old.start()
	time.Sleep(3 * time.Second)

	recorders := recordAll(t, 64<<20)
	guards := watchGuards(t)
	anew := []*storm{newStorm(t, tracer.FamilyIPv4), newStorm(t, tracer.FamilyIPv6)}
	for _, s := range anew {
		s.start()
	}
	churn := startChurn(t)
	stop := logAudits(t, recorders)
	defer stop()
	time.Sleep(stormFor)
	all := append([]*storm{old}, anew...)
	for _, s := range all {
		s.end()
	}
	t.Logf("%d namespaces came and went", churn())
	for _, s := range all {
		s.l.awaitHalfOpen(0)
	}
	time.Sleep(3 * time.Second) // what is on its way to CLOSE gets there

	hidden := guards.hidden(t)
	for _, rec := range recorders {
		checkStorm(t, rec, all, anew, hidden)
	}
}

// logAudits logs every audit that finds something, until it is stopped.
func logAudits(t *testing.T, recorders []*recorder) (stop func()) {
	done, ended := make(chan bool), make(chan bool)
	go func() {
		defer close(ended)
		seen := map[time.Time]bool{}
		for {
			for _, rec := range recorders {
				a := rec.tracer.LastAudit()
				if found := len(a.Differences) + int(a.Claimed.Total()+a.Stale); found > 0 && !seen[a.Time] {
					t.Logf("by %v: audit %+v", rec.tracer.Evidence(), a)
				}
				seen[a.Time] = true
			}
			select {
			case <-done:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	return func() { close(done); <-ended }
}

// checkStorm holds what a tracer has counted to the kernel. The kernel may have
// hidden some transitions from all programs (see guarded): then it takes an audit
// to be right.
func checkStorm(t *testing.T, rec *recorder, all, anew []*storm, hidden int) {
	t.Helper()
	tr := rec.tracer
	if hidden > 0 {
		t.Logf("the kernel has hidden %d transitions from BPF; an audit has to put that right", hidden)
		for range 2 { // what has gone unnoticed is removed at the second
			_, err := tr.Audit(t.Context())
			qt.Assert(t, qt.IsNil(err))
		}
	}
	for i, s := range all {
		checkGauges(t, tr, s.l.ns, fmt.Sprintf("namespace %d after the storm, by %v", i, tr.Evidence()))
	}
	checkAudit(t, rec)
	checkAudit(t, rec)
	for _, s := range anew {
		s.timeWaits = s.countTimeWaits()
		s.states = gaugesOf(t, tr, s.l.ns)
	}
	qt.Assert(t, qt.IsNil(tr.Detach()))
	<-rec.ended
	ledger := rec.ledgerNow()
	t.Logf("by %v: %+v; last audit %+v", tr.Evidence(), ledger, tr.LastAudit())
	qt.Check(t, qt.Equals(ledger.Impaired(), 0))
	qt.Check(t, qt.Equals(ledger.NetnsFull, 0))
	tallies := tallyStorms(rec, all)
	for _, n := range tallies {
		t.Logf("%d ends by %v: %v", n.ends, tr.Evidence(), n.reasons)
		without := 0
		for _, ends := range n.unknown {
			without += ends
		}
		// A mini-socket that ends before it is claimed, while the claiming walk
		// holds it, is freed by the walk, which does not know why.
		qt.Check(t, qt.IsTrue(without <= hidden+n.ends/1000), qt.Commentf("ends without a reason: %v", n.unknown))
	}
	inChurn := tally(only(rec.seen(), func(ev *tracer.Event) bool {
		return isClosing(ev) && ev.Reason == tracer.ReasonUnknown && ev.Owner.PID == uint32(os.Getpid())
	}))
	qt.Check(t, qt.IsTrue(sum(inChurn) <= hidden), qt.Commentf("ends without a reason: %v", inChurn))
	if hidden > 0 {
		return
	}
	qt.Check(t, qt.Equals(ledger.Lost(), 0))
	qt.Check(t, qt.Equals(ledger.Corrected, 0))
	for _, s := range anew {
		if s.countTimeWaits() != s.timeWaits {
			t.Log("TIME_WAIT has ended while the tracer was detached")
			continue
		}
		checkIdentities(t, s, tallies[s.l.ns.Inode()])
	}
}

// tallyStorms counts the events of each storm, by namespace.
func tallyStorms(rec *recorder, storms []*storm) map[uint32]*stormTally {
	tallies := map[uint32]*stormTally{}
	for _, s := range storms {
		tallies[s.l.ns.Inode()] = newStormTally()
	}
	for _, ev := range rec.seen() {
		if tally := tallies[ev.Netns]; tally != nil {
			tally.add(&ev)
		}
	}
	return tallies
}

// checkIdentities holds what was counted in a namespace to what the kernel
// counts of it, from its beginning.
func checkIdentities(t *testing.T, s *storm, n *stormTally) {
	t.Helper()
	snmp, err := oracle.SNMP(s.l.ns)
	qt.Assert(t, qt.IsNil(err))
	t.Logf("%v: %d connections", s.l.addr, snmp["Tcp"]["PassiveOpens"])
	const (
		closed, synSent, synRecv, newSyn = tracer.StateClose, tracer.StateSynSent, tracer.StateSynRecv, tracer.StateNewSynRecv
		estab, closeWait, fin2, closing  = tracer.StateEstablished, tracer.StateCloseWait, tracer.StateFinWait2, tracer.StateClosing
		tw                               = tracer.StateTimeWait
	)
	equal := func(what string, got, want int) {
		t.Helper()
		qt.Check(t, qt.Equals(got, want), qt.Commentf("%s, %v", what, s.l.addr))
	}
	equal("PassiveOpens", n.count(newSyn, synRecv)+n.count(closed, synRecv), snmp["Tcp"]["PassiveOpens"])
	equal("EstabResets", n.count(estab, closed)+n.count(closeWait, closed), snmp["Tcp"]["EstabResets"])
	equal("TCPTimeWaitOverflow", n.reasons[tracer.ReasonTimeWaitRefused], snmp["TcpExt"]["TCPTimeWaitOverflow"])
	equal("TWRecycled", n.recycled, snmp["TcpExt"]["TWRecycled"])
	equal("half-open connections", n.count(closed, newSyn)-n.count(newSyn, synRecv)-n.count(newSyn, closed), 0)
	for _, state := range tracer.States() {
		in, out := 0, 0
		for tr, count := range n.cells {
			if tr.New == state {
				in += count
			}
			if tr.Old == state {
				out += count
			}
		}
		if state != closed {
			equal("sockets in "+state.String(), in-out, s.states[state])
		}
	}
	equal("tw", n.count(fin2, tw)+n.count(closing, tw)-n.count(tw, closed), s.timeWaits)
	qt.Check(t, qt.IsTrue(snmp["TcpExt"]["TCPTimeWaitOverflow"] > 0), qt.Commentf("the storm has not filled the buckets"))
	qt.Check(t, qt.IsTrue(snmp["TcpExt"]["TWRecycled"] > 0), qt.Commentf("the storm has used no port again"))
	qt.Check(t, qt.IsTrue(n.reasons[tracer.ReasonTimeoutHandshake]+n.reasons[tracer.ReasonQueueFull] > 0), qt.Commentf("the storm has flooded nobody"))
}

// storm is what happens in one namespace.
type storm struct {
	t      *testing.T
	l      *loop
	remote *remote
	flood  end // the listener that the remote floods
	over   atomic.Bool
	work   sync.WaitGroup

	// When the tracer was detached.
	states    map[tracer.State]int
	timeWaits int
}

func (s *storm) countTimeWaits() int {
	s.t.Helper()
	sockstat, err := oracle.Sockstat(s.l.ns)
	qt.Assert(s.t, qt.IsNil(err))
	return sockstat["TCP"]["tw"]
}

func newStorm(t *testing.T, family tracer.Family) *storm {
	t.Helper()
	s := &storm{t: t}
	s.l, s.remote = newRemoteLoop(t, family)
	for name, value := range map[string]string{
		"net.ipv4.tcp_max_tw_buckets":  "64",
		"net.ipv4.tcp_tw_reuse":        "1",
		"net.ipv4.ip_local_port_range": "20000 20199",
		"net.ipv4.tcp_fin_timeout":     "1",
		"net.ipv4.tcp_synack_retries":  "1",
		"net.ipv4.tcp_max_syn_backlog": "128",
		"net.core.somaxconn":           "256",
	} {
		s.l.ns.Sysctl(name, value)
	}
	if _, err := os.Stat("/proc/sys/net/ipv4/tcp_tw_reuse_delay"); err == nil {
		s.l.ns.Sysctl("net.ipv4.tcp_tw_reuse_delay", "1")
	}
	s.l.listen()
	s.flood = s.l.listener
	return s
}

// stormWorkers is how many make connections in a namespace, each on a listener
// of its own.
const stormWorkers = 3

func (s *storm) start() {
	for i := range uint16(stormWorkers) {
		s.work.Go(func() {
			s.l.ns.Do(func() { s.connections(listenPort + 1 + i) })
		})
	}
	s.work.Go(s.synFlood)
}

func (s *storm) end() {
	s.over.Store(true)
	s.work.Wait()
	s.l.close(s.flood)
}

// synFlood sends SYNs that nobody follows up, and gives some of them up.
func (s *storm) synFlood() {
	for port := uint16(remotePort); !s.over.Load(); port++ {
		if port < remotePort {
			port = remotePort
		}
		s.remote.syn(port)
		if port%3 == 0 {
			s.remote.rst(port)
		}
		if port%64 == 0 {
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// connections opens and closes connections to a listener on the port, in the
// namespace of the thread.
func (s *storm) connections(port uint16) {
	r := rand.New(rand.NewPCG(uint64(port), 0))
	for !s.over.Load() {
		w := &stormWork{s: s, r: r, at: sockaddrOf(s.l.addrPort(port))}
		w.listener = w.socket()
		if unix.Bind(w.listener, w.at) != nil || unix.Listen(w.listener, 16) != nil {
			s.t.Errorf("listen on port %d", port)
			return
		}
		for range 200 {
			if s.over.Load() {
				break
			}
			w.connection()
		}
		// With connections in its queue, and others on their way.
		for range 3 {
			w.begin()
		}
		w.close(w.listener)
		w.closeHeld(0)
	}
}

// stormWork makes connections one after the other and keeps some for later.
type stormWork struct {
	s        *storm
	r        *rand.Rand
	at       unix.Sockaddr
	listener int
	held     []int
}

func (w *stormWork) socket() int {
	fd, err := unix.Socket(w.s.l.domain(), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		w.s.t.Errorf("socket: %v", err)
	}
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	return fd
}

func (w *stormWork) close(fd int) { unix.Close(fd) }

func (w *stormWork) begin() int {
	fd := w.socket()
	unix.Connect(fd, w.at) // done soon, or never: both are part of it
	return fd
}

// await waits a moment for an event on fd.
func await(fd int, events int16) bool {
	n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, 50)
	return n > 0
}

// closeHeld ends what was kept for later, but for the last of it.
func (w *stormWork) closeHeld(but int) {
	for len(w.held) > but {
		w.close(w.held[0])
		w.held = w.held[1:]
	}
}

func (w *stormWork) reset(fd int) {
	unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	w.close(fd)
}

// connection makes a connection and ends it in one way or another.
func (w *stormWork) connection() {
	way := w.r.IntN(12)
	if way == 0 { // refused
		fd := w.socket()
		unix.Connect(fd, sockaddrOf(w.s.l.addrPort(9)))
		w.close(fd)
		return
	}
	client := w.begin()
	if way == 1 { // abandoned while it is made
		w.close(client)
	}
	if !await(w.listener, unix.POLLIN) {
		if way != 1 {
			w.close(client)
		}
		return
	}
	server, _, err := unix.Accept4(w.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err != nil {
		if way != 1 {
			w.close(client)
		}
		return
	}
	w.finish(way, client, server)
}

func (w *stormWork) finish(way, client, server int) {
	data := []byte("storm")
	switch way {
	case 1:
		w.close(server)
	case 2, 3: // the client first
		w.close(client)
		await(server, unix.POLLIN)
		w.close(server)
	case 4: // the server first
		w.close(server)
		await(client, unix.POLLIN)
		w.close(client)
	case 5:
		w.reset(client)
		w.close(server)
	case 6:
		w.close(client)
		w.reset(server)
	case 7: // unread data
		unix.Write(client, data)
		await(server, unix.POLLIN)
		w.close(server)
		w.close(client)
	case 8: // orphan, whose peer closes later or never
		w.close(client)
		w.held = append(w.held, server)
		w.closeHeld(16)
	case 9: // half-closed, and read on
		unix.Shutdown(client, unix.SHUT_WR)
		await(server, unix.POLLIN)
		unix.Write(server, data)
		w.close(server)
		await(client, unix.POLLIN)
		unix.Read(client, make([]byte, 16))
		w.close(client)
	case 10: // both at once
		done := make(chan bool)
		go func() { w.close(client); close(done) }()
		w.close(server)
		<-done
	case 11: // one socket twice
		disconnect(client)
		w.close(server)
		unix.Connect(client, w.at)
		w.held = append(w.held, client)
		w.closeHeld(16)
	}
}

func disconnect(fd int) {
	unspec := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspec)), unsafe.Sizeof(unspec))
}

// startChurn has namespaces come and go, with connections in them, until what
// it returns is called, which says how many there were.
func startChurn(t *testing.T) func() int {
	var over atomic.Bool
	number := make(chan int)
	go func() {
		// The thread ends with the goroutine: it is in another namespace.
		runtime.LockOSThread()
		n := 0
		for ; !over.Load(); n++ {
			if err := netns.Unshare(); err != nil {
				t.Error(err)
				break
			}
			visitNamespace(t)
			time.Sleep(20 * time.Millisecond)
		}
		number <- n
	}()
	return func() int { over.Store(true); return <-number }
}

// visitNamespace leaves connections in TIME_WAIT, FIN_WAIT2 and reset in the
// thread's namespace.
func visitNamespace(t *testing.T) {
	at := &unix.SockaddrInet4{Port: listenPort, Addr: [4]byte{127, 0, 0, 1}}
	socket := func() int {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
		}
		return fd
	}
	listener := socket()
	if err := unix.Bind(listener, at); err != nil {
		t.Error(err)
	}
	if err := unix.Listen(listener, 16); err != nil {
		t.Error(err)
	}
	for range 5 {
		client := socket()
		if err := unix.Connect(client, at); err != nil {
			t.Error(err)
		}
		unix.Close(client)
	}
	unix.Close(listener) // with connections in its queue
}
