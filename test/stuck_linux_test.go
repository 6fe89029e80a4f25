package test

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/btf"
	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/tracer"
)

// plant is a way to leave a socket in a state, with a peer that does not answer.
type plant struct {
	name  string
	state tracer.State

	// prepare is called a while before make, which brings the socket into
	// the state.
	prepare func(l *loop, r *remote, port uint16) end
	make    func(l *loop, r *remote, port uint16, e end)

	// older is what can be said of it if it is older than the tracer: how much
	// less than its age at most, or nothing.
	older slack
}

type slack struct {
	known bool
	off   time.Duration
}

// A FIN is repeated after 200 ms; a loaded machine is later. Before Linux 6.7 the
// kernel does not note when.
var (
	exactly  = slack{known: true, off: slow(40 * time.Millisecond)}
	repeated = slack{known: true, off: slow(800 * time.Millisecond)}
	nothing  = slack{}
)

func nobodyYet(*loop, *remote, uint16) end                { return end{} }
func connected(_ *loop, r *remote, port uint16) end       { return r.open(port) }
func closeIt(l *loop, _ *remote, _ uint16, e end)         { l.close(e) }
func peerCloses(_ *loop, r *remote, port uint16, _ end)   { r.fin(port) }
func halfOpen(_ *loop, r *remote, port uint16, _ end)     { r.syn(port); r.awaitSynAck(port) }
func startsConnect(_ *loop, r *remote, _ uint16, _ end)   { r.startConnect() }
func becomeConnected(_ *loop, r *remote, p uint16, _ end) { r.open(p) }

// unacknowledged has sent data that the peer does not acknowledge.
func unacknowledged(l *loop, r *remote, port uint16) end {
	e := r.open(port)
	_, err := unix.Write(e.fd, []byte("x"))
	l.must("write", err)
	return e
}

func acknowledged(l *loop, r *remote, port uint16) end {
	e := unacknowledged(l, r, port)
	r.ackUpTo(port, 1)
	return e
}

func inCloseWait(l *loop, r *remote, port uint16) end {
	e := r.open(port)
	r.fin(port)
	l.awaitState(e, tracer.StateCloseWait)
	return e
}

var plants = []plant{
	{"SYN_SENT", tracer.StateSynSent, nobodyYet, startsConnect, exactly},
	{"NEW_SYN_RECV", tracer.StateNewSynRecv, nobodyYet, halfOpen, exactly},
	{"ESTABLISHED", tracer.StateEstablished, nobodyYet, becomeConnected, exactly},
	{"CLOSE_WAIT", tracer.StateCloseWait, connected, peerCloses, exactly},
	// The acknowledgement in the FIN is older than the last.
	{"CLOSE_WAIT by a delayed FIN", tracer.StateCloseWait, acknowledged, peerCloses, exactly},
	{"FIN_WAIT1", tracer.StateFinWait1, connected, closeIt, repeated},
	{"FIN_WAIT1 after data", tracer.StateFinWait1, unacknowledged, closeIt, nothing},
	{"FIN_WAIT1 after data that is acknowledged late", tracer.StateFinWait1, unacknowledged, func(l *loop, r *remote, port uint16, e end) {
		l.close(e)
		r.ackUpTo(port, 1)
	}, nothing},
	{"LAST_ACK", tracer.StateLastAck, inCloseWait, closeIt, repeated},
	// Its FIN is repeated all the while.
	{"CLOSING", tracer.StateClosing, connected, func(l *loop, r *remote, port uint16, e end) {
		l.close(e)
		r.fin(port)
	}, nothing},
	{"FIN_WAIT2", tracer.StateFinWait2, connected, func(l *loop, r *remote, port uint16, e end) {
		l.must("shutdown", unix.Shutdown(e.fd, unix.SHUT_WR))
		r.ackUpTo(port, 1)
	}, exactly},
	{"FIN_WAIT2 of nobody", tracer.StateFinWait2, connected, func(l *loop, r *remote, port uint16, e end) {
		l.close(e)
		r.ackUpTo(port, 1)
	}, nothing},
}

// open makes a connection from that port of the remote.
func (r *remote) open(port uint16) (e end) {
	r.l.t.Helper()
	r.syn(port)
	r.ack(port)
	e.fd = r.l.acceptIn()
	return e
}

// fin closes the connection from the remote, and acknowledges nothing but the
// handshake.
func (r *remote) fin(port uint16) {
	r.l.t.Helper()
	r.segment(port, flagFIN|flagACK, remoteISN+1, r.awaitSynAck(port)+1)
}

// ackUpTo acknowledges n bytes, or a FIN after one less.
func (r *remote) ackUpTo(port uint16, n uint32) {
	r.l.t.Helper()
	r.segment(port, flagACK, remoteISN+1, r.awaitSynAck(port)+1+n)
}

// planted is when each was made, by the port of the remote, or of SYN_SENT by 0.
type planted map[uint16]struct {
	plant
	from, to time.Time
}

func plantAll(l *loop, r *remote) planted {
	l.listen()
	all, ends := planted{}, []end{}
	for i, p := range plants {
		ends = append(ends, p.prepare(l, r, remotePort+uint16(i)))
	}
	time.Sleep(500 * time.Millisecond) // so that what was before can be told
	for i, p := range plants {
		port := remotePort + uint16(i)
		from := time.Now()
		p.make(l, r, port, ends[i])
		if p.state == tracer.StateSynSent {
			port = silentPort
		}
		all[port] = struct {
			plant
			from, to time.Time
		}{p, from, time.Now()}
	}
	return all
}

func overAll(d time.Duration) *tracer.StuckOptions {
	over := map[tracer.State]time.Duration{}
	for _, p := range plants {
		over[p.state] = d
	}
	return &tracer.StuckOptions{Over: over}
}

func quietTracer(t *testing.T, l *loop) *tracer.Tracer {
	t.Helper()
	tr, err := tracer.New(&tracer.Options{
		Filter: tracer.Filter{Netns: []uint32{l.ns.Inode()}}, EventBuffer: 1 << 20, Evidence: wantedEvidence(t),
	})
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(tr.Close())) })
	_, err = tr.Gauges(t.Context()) // returns when what was there is claimed
	qt.Assert(t, qt.IsNil(err))
	return tr
}

func stuckOf(t *testing.T, tr *tracer.Tracer, opts *tracer.StuckOptions) *tracer.Stuck {
	t.Helper()
	s, err := tr.Stuck(t.Context(), opts)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsTrue(slices.IsSortedFunc(s.Sockets, func(a, b tracer.StuckSocket) int { return int(b.Age - a.Age) })))
	return s
}

// TestStuckStates has a socket in each state of which the tracer saw the entry:
// its age is exact.
func TestStuckStates(t *testing.T) {
	for _, family := range families {
		t.Run(family.String(), func(t *testing.T) {
			l, r := newRemoteLoop(t, family)
			tr := quietTracer(t, l)
			all := plantAll(l, r)
			const over = time.Second
			time.Sleep(over)
			s := stuckOf(t, tr, overAll(over))
			qt.Check(t, qt.HasLen(s.Sockets, len(plants)))
			qt.Check(t, qt.Equals(s.Maybe, tracer.StateCounts{}))
			for _, socket := range s.Sockets {
				p := all[socket.Remote.Port()]
				qt.Check(t, qt.Equals(socket.State, p.state))
				qt.Check(t, qt.IsFalse(socket.AtLeast), qt.Commentf("%s", p.name))
				since := s.Time.Add(-socket.Age)
				qt.Check(t, qt.IsTrue(since.After(p.from.Add(-clockSlack)) && since.Before(p.to.Add(slow(20*time.Millisecond)))),
					qt.Commentf("%s since %v after it was made", p.name, since.Sub(p.from)))
				if p.state != tracer.StateNewSynRecv { // it may not be known yet
					qt.Check(t, qt.Equals(socket.Owner.PID, uint32(os.Getpid())), qt.Commentf("%s", p.name))
				}
			}
			soon := stuckOf(t, tr, overAll(time.Minute))
			qt.Check(t, qt.HasLen(soon.Sockets, 0))
			qt.Check(t, qt.Equals(soon.Maybe, tracer.StateCounts{}))
		})
	}
}

// TestStuckOlder has the same sockets, older than the tracer. No age is more
// than is true.
func TestStuckOlder(t *testing.T) {
	for _, family := range families {
		t.Run(family.String(), func(t *testing.T) {
			noted := notesTimeouts(t)
			l, r := newRemoteLoop(t, family)
			all := plantAll(l, r)
			const over = 2 * time.Second
			time.Sleep(over + repeated.off)
			tr := quietTracer(t, l)
			s := stuckOf(t, tr, overAll(over))
			found, maybe := map[uint16]bool{}, tracer.StateCounts{}
			for _, socket := range s.Sockets {
				port := socket.Remote.Port()
				found[port] = true
				p := all[port]
				qt.Check(t, qt.Equals(socket.State, p.state))
				latest := time.Now()
				if p.older.known && (p.older != repeated || noted) {
					latest = p.to.Add(p.older.off)
				}
				checkLowerBound(t, p.name, s.Time, &socket, p.from, latest)
			}
			for port, p := range all {
				if p.older.known && (p.older != repeated || noted) {
					qt.Check(t, qt.IsTrue(found[port]), qt.Commentf("%s", p.name))
				}
				if !found[port] {
					maybe[p.state]++
				}
			}
			qt.Check(t, qt.Equals(s.Maybe, maybe))

			// That they were there when it had settled is known of all.
			time.Sleep(over)
			s = stuckOf(t, tr, overAll(over))
			qt.Check(t, qt.HasLen(s.Sockets, len(plants)))
			qt.Check(t, qt.Equals(s.Maybe, tracer.StateCounts{}))
			for _, socket := range s.Sockets {
				p := all[socket.Remote.Port()]
				checkLowerBound(t, p.name, s.Time, &socket, p.from, time.Now())
			}
		})
	}
}

// notesTimeouts tells whether the kernel notes when something was first repeated.
func notesTimeouts(t *testing.T) bool {
	t.Helper()
	kernel, err := btf.LoadKernelSpec()
	qt.Assert(t, qt.IsNil(err))
	var sock *btf.Struct
	qt.Assert(t, qt.IsNil(kernel.TypeByName("tcp_sock", &sock)))
	return slices.ContainsFunc(sock.Members, func(m btf.Member) bool { return m.Name == "rto_stamp" })
}

// checkLowerBound expects a socket to have been in its state since some moment
// between from, when it cannot have been, and to. An exact age may say so too.
func checkLowerBound(t *testing.T, name string, at time.Time, socket *tracer.StuckSocket, from, to time.Time) {
	t.Helper()
	since := at.Add(-socket.Age)
	early := since.Sub(from)
	exact := socket.State == tracer.StateSynSent || socket.State == tracer.StateNewSynRecv
	qt.Check(t, qt.Equals(socket.AtLeast, !exact), qt.Commentf("%s", name))
	qt.Check(t, qt.IsTrue(early > -2*time.Millisecond), qt.Commentf("%s is said to be there %v before it was", name, -early))
	qt.Check(t, qt.IsTrue(since.Before(to)), qt.Commentf("%s for %v at least, %v after it was made", name, socket.Age, at.Sub(from)))
}

// stuckRecord is a line of finwait stuck --format json.
type stuckRecord struct {
	Time       time.Time
	State      string
	AgeNS      int64 `json:"age_ns"`
	AtLeast    *bool `json:"age_at_least"`
	Cookie     string
	Netns      uint32
	Family     string
	LocalAddr  string `json:"local_addr"`
	LocalPort  uint16 `json:"local_port"`
	RemoteAddr string `json:"remote_addr"`
	RemotePort uint16 `json:"remote_port"`
	PID        int
	Comm       string
	UID        *int
	CgroupID   string `json:"cgroup_id"`
	Owner      string
	Role       string
}

func parseStuck(t *testing.T, lines string) (records []stuckRecord) {
	t.Helper()
	for line := range strings.Lines(lines) {
		var r stuckRecord
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		qt.Assert(t, qt.IsNil(d.Decode(&r)), qt.Commentf("%s", line))
		records = append(records, r)
	}
	return records
}

// leaked is when a leak's peers were closed, by their ports.
type leaked map[uint16][2]time.Time

// leak has the holder make connections that it does not close when they are.
func (l *loop) leak(h *holder, n int) leaked {
	l.t.Helper()
	_, err := fmt.Fprintln(h.stdin, n)
	l.must("tell holder", err)
	ends := leaked{}
	for range n {
		fd := l.acceptIn()
		port, from := l.peer(fd).Port(), time.Now()
		l.close(end{fd: fd})
		ends[port] = [2]time.Time{from, time.Now()}
	}
	h.expect("leaked")
	return ends
}

// beLeaker makes as many connections as each line of standard input says, and
// keeps them.
func beLeaker(connect func() (int, error)) error {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		n, err := strconv.Atoi(lines.Text())
		if err != nil {
			return err
		}
		for range n {
			if _, err := connect(); err != nil {
				return err
			}
		}
		fmt.Println("leaked")
	}
	return nil
}

// TestStuckLeak finds 100 connections that one process leaks among 10,000
// sockets that are well. Half of the leak is older than finwait.
func TestStuckLeak(t *testing.T) {
	netns.RequireRoot(t)
	const healthy, half = 5000, 50
	allowFiles(t, 2*healthy+1000)
	l := newLoop(t, tracer.FamilyIPv4)
	l.listen()
	l.connectMany(healthy)
	h := newHolder(l, holderLeak)
	older := l.leak(h, half)
	const over = time.Second
	time.Sleep(over + exactly.off)

	args := []string{"stuck", "--netns", inodeWord(l.ns), "--over", "CLOSE_WAIT:" + over.String() + ",30s,FIN_WAIT2:2m"}
	if word := os.Getenv(evidenceVar); word != "" {
		args = append(args, "--evidence", word)
	}
	once := finwait(t, append(args, "--format", "json")...)
	qt.Assert(t, qt.Equals(once.code, 0))
	qt.Check(t, qt.Equals(once.stderr, ""))
	checkLeak(t, l, h, parseStuck(t, once.stdout), older, true)

	p := spawn(t, exec.Command(binary(t), append(args, "--format", "json", "--interval", "200ms")...))
	p.awaitLines(half)
	newer := l.leak(h, half)
	last := func() []stuckRecord {
		out := p.stdout.String()
		return lastLook(parseStuck(t, out[:strings.LastIndexByte(out, '\n')+1]))
	}
	p.await("all", func() bool { return len(last()) >= 2*half })
	records := last()
	qt.Assert(t, qt.IsNil(p.cmd.Process.Signal(os.Interrupt)))
	res := p.wait()
	qt.Check(t, qt.Equals(res.code, 0))
	qt.Check(t, qt.Equals(res.stderr, ""))
	qt.Check(t, qt.HasLen(records, 2*half))
	isNewer := func(r stuckRecord) bool { return !newer[r.LocalPort][0].IsZero() }
	checkLeak(t, l, h, keep(records, isNewer), newer, false)
	checkLeak(t, l, h, keep(records, func(r stuckRecord) bool { return !isNewer(r) }), older, true)

	checkStuckByProcess(t, h, args, 2*half)
	checkStuckTable(t, h, args, 2*half)
	checkStuckFilters(t, h, args, 2*half)
}

// lastLook returns the records of the last look that is complete.
func lastLook(records []stuckRecord) []stuckRecord {
	if len(records) == 0 {
		return nil
	}
	at := records[len(records)-1].Time
	return keep(records, func(r stuckRecord) bool { return r.Time.Equal(at) })
}

func keep[T any](all []T, is func(T) bool) []T {
	return slices.DeleteFunc(slices.Clone(all), func(v T) bool { return !is(v) })
}

func checkLeak(t *testing.T, l *loop, h *holder, records []stuckRecord, ends leaked, older bool) {
	t.Helper()
	qt.Assert(t, qt.HasLen(records, len(ends)))
	seen := map[uint16]bool{}
	for _, r := range records {
		when, ok := ends[r.LocalPort]
		qt.Assert(t, qt.IsTrue(ok && !seen[r.LocalPort]), qt.Commentf("%+v", r))
		seen[r.LocalPort] = true
		qt.Check(t, qt.Equals(r.State, "CLOSE_WAIT"))
		qt.Check(t, qt.Equals(r.PID, h.cmd.Process.Pid))
		qt.Check(t, qt.Equals(r.Comm, holderComm))
		qt.Check(t, qt.Equals(r.Netns, l.ns.Inode()))
		qt.Check(t, qt.Equals(r.RemotePort, listenPort))
		owner, slack := "connect", slow(10*time.Millisecond)
		if older {
			owner, slack = "snapshot", exactly.off
		}
		qt.Check(t, qt.Equals(r.Owner, owner))
		qt.Check(t, qt.Equals(*r.AtLeast, older))
		since := r.Time.Add(-time.Duration(r.AgeNS))
		qt.Check(t, qt.IsTrue(since.After(when[0].Add(-clockSlack)) && since.Before(when[1].Add(slack))),
			qt.Commentf("since %v after its peer was closed, which took %v", since.Sub(when[0]), when[1].Sub(when[0])))
	}
}

func checkStuckByProcess(t *testing.T, h *holder, args []string, n int) {
	t.Helper()
	res := finwait(t, append(args, "--by", "process", "--format", "csv")...)
	qt.Assert(t, qt.Equals(res.code, 0))
	rows, err := csv.NewReader(strings.NewReader(res.stdout)).ReadAll()
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(rows, 2))
	qt.Check(t, qt.DeepEquals(rows[0], strings.Split("time,state,sockets,oldest_ns,oldest_at_least,pid,comm,uid", ",")))
	row := rows[1]
	qt.Check(t, qt.DeepEquals([]string{row[1], row[2], row[4], row[5], row[6], row[7]},
		[]string{"CLOSE_WAIT", strconv.Itoa(n), "true", strconv.Itoa(h.cmd.Process.Pid), holderComm, "0"}))
}

func checkStuckTable(t *testing.T, h *holder, args []string, n int) {
	t.Helper()
	res := finwait(t, args...)
	lines := strings.Split(strings.TrimSuffix(res.stdout, "\n"), "\n")
	qt.Assert(t, qt.HasLen(lines, 1+n))
	qt.Check(t, qt.Matches(lines[0], ` *AGE +STATE +LOCAL +REMOTE +OWNER`))
	want := fmt.Sprintf(` *≥[0-9.]+s CLOSE_WAIT +127\.0\.0\.1:\d+ +127\.0\.0\.1:%d +%s/%d`, listenPort, holderComm, h.cmd.Process.Pid)
	for _, line := range lines[1:] {
		qt.Assert(t, qt.Matches(line, want))
		qt.Check(t, qt.IsTrue(len([]rune(line)) < 80))
	}
}

func checkStuckFilters(t *testing.T, h *holder, args []string, n int) {
	t.Helper()
	pid := strconv.Itoa(h.cmd.Process.Pid)
	for _, c := range []struct {
		flags string
		want  int
	}{
		{"--pid " + pid, n}, {"--comm " + holderComm, n}, {"--uid 0 -4", n}, {"--rport 4321", n}, {"--addr 127.0.0.1", n},
		{"--pid 1", 0}, {"--comm nobody", 0}, {"--uid 65534", 0}, {"-6", 0}, {"--lport 4321", 0}, {"--addr 10.0.0.0/8", 0},
	} {
		res := finwait(t, slices.Concat(args, []string{"--format", "logfmt"}, strings.Fields(c.flags))...)
		qt.Check(t, qt.Equals(res.code, 0))
		qt.Check(t, qt.Equals(res.stderr, ""))
		qt.Check(t, qt.Equals(strings.Count(res.stdout, " state=CLOSE_WAIT age_ns="), c.want), qt.Commentf("%s", c.flags))
		qt.Check(t, qt.Equals(strings.Count(res.stdout, "\n"), c.want), qt.Commentf("%s", c.flags))
	}
}

// allowFiles raises the number of files that this process may have open.
func allowFiles(t *testing.T, n uint64) {
	t.Helper()
	var limit unix.Rlimit
	qt.Assert(t, qt.IsNil(unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)))
	if limit.Cur >= n {
		return
	}
	raised := unix.Rlimit{Cur: n, Max: max(n, limit.Max)}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &raised); err != nil {
		t.Skipf("open %d files: %v", n, err)
	}
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) })
}

// connectMany makes n connections, which last as long as the test.
func (l *loop) connectMany(n int) {
	l.t.Helper()
	l.ns.Do(func() {
		for range n {
			fd := l.socket()
			l.must("connect", unix.Connect(fd, sockaddrOf(l.listener.local)))
			server := l.accept()
			l.t.Cleanup(func() { unix.Close(fd); unix.Close(server) })
		}
	})
}
