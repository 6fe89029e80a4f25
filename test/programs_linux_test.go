package test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
	"github.com/finwait/finwait/test/internal/oracle"
	"github.com/finwait/finwait/tracer"
)

// programAddr is where servers listen in these tests, each in a namespace of its
// own.
const programAddr = "127.0.0.1:8080"

// This binary is also an HTTP server and client of package net/http: httpRole is
// serve, or get.
const httpRole = "FINWAIT_TEST_HTTP"

// Each request is made on a connection of its own.
const (
	curlRequests  = 200
	redisRequests = 2000
	httpRequests  = 500
)

// program is one end of what TestPrograms watches.
type program struct {
	comm string
	argv func(t *testing.T) []string
}

// TestPrograms watches programs that everybody knows, as they are. Each socket
// is followed from its birth to its end, by a path that there is, and belongs to
// who has opened it; and they are as many as the kernel has counted.
func TestPrograms(t *testing.T) {
	cases := []struct {
		name           string
		server, client program
		atLeast        int // connections
		// Why connections may end, beside by FIN. Both wrk and Go's client
		// close what they have not read to the end.
		reasons []tracer.Reason
	}{
		{"nginx and curl", program{"nginx", nginx}, program{"curl", curl}, curlRequests, nil},
		{"nginx and wrk", program{"nginx", nginx}, program{"wrk", wrk}, 20, []tracer.Reason{
			tracer.ReasonRSTSentUnreadData, tracer.ReasonRSTSentLateData, tracer.ReasonRSTReceived, tracer.ReasonClosed,
		}},
		{"redis", program{"redis-server", redisServer}, program{"redis-benchmark", redisBenchmark}, redisRequests, nil},
		{"Go, MPTCP", program{"finwait-serve", goHTTP("serve")}, program{"finwait-mptcp", goHTTP("mptcp")}, httpRequests, []tracer.Reason{
			tracer.ReasonRSTSentUnreadData, tracer.ReasonRSTSentLateData, tracer.ReasonRSTReceived,
		}},
		{"Go", program{"finwait-serve", goHTTP("serve")}, program{"finwait-get", goHTTP("get")}, httpRequests, []tracer.Reason{
			tracer.ReasonRSTSentUnreadData, tracer.ReasonRSTSentLateData, tracer.ReasonRSTReceived,
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w := newProgramWatch(t)
			w.run(c.server, c.client)
			events := w.events()
			n := tally(events)[tracer.Transition{Old: tracer.StateClose, New: tracer.StateSynSent}]
			qt.Check(t, qt.IsTrue(n >= uint64(c.atLeast)), qt.Commentf("%d connections", n))
			w.checkPrograms(events, c.server.comm, c.client.comm)
			w.checkReasons(events, append(c.reasons, tracer.ReasonFIN))
			w.checkEnds(events)
			w.checkCounters(events)
			if w.lost == 0 {
				w.checkGauges()
			}
		})
	}
}

// programWatch is what is watched in a namespace.
type programWatch struct {
	t     *testing.T
	rec   *recorder
	ns    *netns.NS
	known map[uint32]processInfo // by process id
	// How many transitions the kernel has hidden (see guarded), or has run no
	// program for, as the ledger says.
	lost int
}

func newProgramWatch(t *testing.T) *programWatch {
	t.Helper()
	ns := netns.New(t) // first: another may have had its number just before
	return &programWatch{t: t, rec: shared(t), ns: ns, known: map[uint32]processInfo{}}
}

// run has the client do all that it does with the server.
func (w *programWatch) run(server, client program) {
	w.t.Helper()
	s := w.start(server)
	w.await("listener", func(states map[tracer.State]int) bool { return states[tracer.StateListen] > 0 })
	c := w.start(client)
	for deadline := time.Now().Add(patience); !c.hasEnded(); time.Sleep(time.Millisecond) {
		w.learn(s)
		qt.Assert(w.t, qt.IsTrue(time.Now().Before(deadline)), qt.Commentf("%s does not end", client.comm))
	}
	qt.Check(w.t, qt.Equals(c.cmd.ProcessState.ExitCode(), 0), qt.Commentf("%s%s", c.stdout.String(), c.stderr.String()))
	qt.Assert(w.t, qt.IsNil(s.cmd.Process.Signal(unix.SIGTERM)))
	s.wait()
}

// events returns all that was told of the programs, when that is over.
func (w *programWatch) events() []tracer.Event {
	w.t.Helper()
	w.await("end", func(states map[tracer.State]int) bool {
		delete(states, tracer.StateTimeWait)
		return len(states) == 0
	})
	time.Sleep(2 * tracer.SweepInterval)
	w.rec.catchUp()
	events := only(w.rec.seen(), inNetns(w.ns.Inode()))
	byTime(events)
	w.lost = w.rec.guards.hidden(w.t) + checkLost(w.t, w.rec.ledgerNow(), w.rec.before)
	return events
}

// longestWalk is how many transitions a connection has at most: so many may be
// without an owner for one that is lost, that of connect.
const longestWalk = 7

// checkLost expects nothing to be lost but for want of a program, which is rare,
// and returns how much that is. Since 7.0 a program can be put off while it runs,
// and where more processes want it than there are copies, the next is skipped.
func checkLost(t *testing.T, now, before tracer.Ledger) (lost int) {
	t.Helper()
	recursion, seen := now.Recursion-before.Recursion, now.Seen-before.Seen
	qt.Check(t, qt.Equals(now.Lost()-before.Lost(), recursion), qt.Commentf("%+v", now))
	qt.Check(t, qt.Equals(now.Impaired(), before.Impaired()), qt.Commentf("%+v", now))
	qt.Check(t, qt.IsTrue(recursion <= seen/1000), qt.Commentf("%d of %d", recursion, seen))
	return int(recursion)
}

// checkGauges holds the gauges to ss, and an audit to both.
func (w *programWatch) checkGauges() {
	w.t.Helper()
	checkGauges(w.t, w.rec.tracer, w.ns, fmt.Sprintf("after the programs; ledger %+v, last audit %+v", w.rec.ledgerNow(), w.rec.tracer.LastAudit()))
	audit, err := w.rec.tracer.Audit(w.t.Context())
	qt.Assert(w.t, qt.IsNil(err))
	for _, d := range audit.Differences {
		qt.Check(w.t, qt.Not(qt.Equals(d.Netns, w.ns.Inode())), qt.Commentf("%+v", d))
	}
}

// processInfo is what is known of a process.
type processInfo struct {
	comm string
	uid  uint32
}

// start starts a program, and ends it and its children with the test.
func (w *programWatch) start(p program) *process {
	w.t.Helper()
	argv := p.argv(w.t)
	cmd := w.ns.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	started := spawn(w.t, cmd)
	w.t.Cleanup(func() { _ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) })
	w.known[uint32(cmd.Process.Pid)] = processInfo{p.comm, uint32(os.Getuid())}
	return started
}

// await waits until the namespace's sockets are as done wants.
func (w *programWatch) await(what string, done func(map[tracer.State]int) bool) {
	w.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		states, err := oracle.SS(w.ns)
		qt.Assert(w.t, qt.IsNil(err))
		if done(states) {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("no %s: %v", what, states)
		}
	}
}

// learn notes what /proc says of the children of a process.
func (w *programWatch) learn(p *process) {
	pid := p.cmd.Process.Pid
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid)) // it may have ended
	for _, child := range strings.Fields(string(children)) {
		w.learnProcess(child)
	}
}

func (w *programWatch) learnProcess(pid string) {
	status, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
	if err != nil {
		return // it has ended
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	n, err1 := strconv.ParseUint(pid, 10, 32)
	uid, err2 := strconv.ParseUint(strings.Fields(fields["Uid"] + " ")[0], 10, 32)
	if errors.Join(err1, err2) == nil {
		w.known[uint32(n)] = processInfo{fields["Name"], uint32(uid)}
	}
}

// checkPrograms expects clients to be the one program's, and the rest to be the
// other's or its children's.
func (w *programWatch) checkPrograms(events []tracer.Event, server, client string) {
	w.t.Helper()
	known, blank := 0, 0
	for _, ev := range events {
		if ev.Owner.Origin == tracer.OriginUnknown {
			blank++
			continue
		}
		want, comm := w.known[ev.Owner.PID], server
		if ev.Role == tracer.RoleClient {
			comm = client
		}
		ok := string(ev.Owner.Comm()) == comm && want.comm == comm && ev.Owner.UID == want.uid
		qt.Assert(w.t, qt.IsTrue(ok), qt.Commentf("%v %v: owner %+v, process %+v", ev.Role, ev.Transition, ev.Owner, want))
		if ev.Owner.Origin == tracer.OriginAccept {
			known++
		}
	}
	w.t.Logf("%d transitions, %d of sockets whose acceptor is known; %d lost", len(events), known, w.lost)
	qt.Check(w.t, qt.IsTrue(blank <= longestWalk*w.lost), qt.Commentf("%d without an owner", blank))
}

// checkReasons expects every connection to have ended for one of the reasons.
func (w *programWatch) checkReasons(events []tracer.Event, reasons []tracer.Reason) {
	w.t.Helper()
	ends := map[string]int{}
	for _, ev := range events {
		want := reasons
		switch {
		case ev.New != tracer.StateClose:
			continue
		case ev.Old == tracer.StateListen:
			want = []tracer.Reason{tracer.ReasonClosed}
		case ev.Old == tracer.StateTimeWait:
			// The reset answers an acknowledgement that came when its socket was
			// gone, which happens if both close at once (RFC 1337).
			want = []tracer.Reason{tracer.ReasonExpired, tracer.ReasonReused, tracer.ReasonRSTReceived}
		}
		ends[fmt.Sprint(ev.Role, " ", ev.Old, " ", ev.Reason, " ", ev.Side)]++
		qt.Check(w.t, qt.IsTrue(slices.Contains(want, ev.Reason)), qt.Commentf("%v %v: %v", ev.Role, ev.Transition, ev.Reason))
	}
	w.t.Logf("%v", ends)
}

// checkEnds expects each socket's transitions to be legal, to follow each other,
// and to lead from birth to the end.
func (w *programWatch) checkEnds(events []tracer.Event) {
	w.t.Helper()
	var broken []string
	for cookie, walk := range walksOf(events) {
		if !isWhole(walk) {
			broken = append(broken, fmt.Sprint(cookie, transitions(walk)))
		}
	}
	qt.Check(w.t, qt.IsTrue(len(broken) <= w.lost), qt.Commentf("%v", broken))
}

func isWhole(walk []tracer.Event) bool {
	state := tracer.StateClose
	for _, ev := range walk {
		if ev.Old != state || !slices.Contains(tracer.LegalTransitions(), ev.Transition) {
			return false
		}
		state = ev.New
	}
	return state == tracer.StateClose || state == tracer.StateTimeWait
}

// checkCounters holds the events of a namespace to what the kernel has counted
// in it.
func (w *programWatch) checkCounters(events []tracer.Event) {
	w.t.Helper()
	snmp, err := oracle.SNMP(w.ns)
	qt.Assert(w.t, qt.IsNil(err))
	n, late := newStormTally(), 0
	for _, ev := range events {
		n.add(&ev)
		if ev.Reason == tracer.ReasonRSTSentLateData && ev.Evidence == tracer.EvidenceKernel {
			late++ // a mini-socket's answer is not counted
		}
	}
	const (
		closed, synSent, synRecv, newSyn = tracer.StateClose, tracer.StateSynSent, tracer.StateSynRecv, tracer.StateNewSynRecv
		estab, closeWait                 = tracer.StateEstablished, tracer.StateCloseWait
	)
	for _, c := range []struct {
		got         int
		group, name string
	}{
		{n.count(closed, synSent), "Tcp", "ActiveOpens"},
		{n.count(newSyn, synRecv) + n.count(closed, synRecv), "Tcp", "PassiveOpens"},
		{n.count(estab, closed) + n.count(closeWait, closed), "Tcp", "EstabResets"},
		{n.reasons[tracer.ReasonRSTSentUnreadData], "TcpExt", "TCPAbortOnClose"},
		{n.reasons[tracer.ReasonRSTSentLinger] + late, "TcpExt", "TCPAbortOnData"},
		{n.recycled, "TcpExt", "TWRecycled"},
	} {
		off := max(c.got-snmp[c.group][c.name], snmp[c.group][c.name]-c.got)
		qt.Check(w.t, qt.IsTrue(off <= w.lost), qt.Commentf("%s: %d, not %d", c.name, c.got, snmp[c.group][c.name]))
	}
}

// requireProgram returns the path of a program, and skips the test where there
// is none. On a machine that promises to have all it fails instead.
func requireProgram(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("CI_PRIVILEGED") == "1" {
		t.Fatalf("%s is not installed; test/all.sh says what the tests need", name)
	}
	t.Skipf("%s is not installed", name)
	return ""
}

const nginxConf = `
daemon off;
user nobody nogroup;
worker_processes 2;
pid %[1]s/pid;
events { worker_connections 1024; }
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	keepalive_timeout 0;
	server {
		listen %[2]s;
		location / { return 200 "hello"; }
	}
}
`

// nginx listens in its master and accepts in its workers.
func nginx(t *testing.T) []string {
	path, dir := requireProgram(t, "nginx"), t.TempDir()
	conf := filepath.Join(dir, "nginx.conf")
	qt.Assert(t, qt.IsNil(os.WriteFile(conf, fmt.Appendf(nil, nginxConf, dir, programAddr), 0o600)))
	return []string{path, "-c", conf, "-p", dir, "-e", "stderr"}
}

// curl makes each of its requests on another connection.
func curl(t *testing.T) []string {
	return []string{requireProgram(t, "curl"), "-sS", "-o", "/dev/null", "-H", "Connection: close", fmt.Sprintf("http://%s/[1-%d]", programAddr, curlRequests)}
}

func wrk(t *testing.T) []string {
	return []string{requireProgram(t, "wrk"), "-t2", "-c20", "-d1s", "-H", "Connection: close", "http://" + programAddr + "/"}
}

func redisServer(t *testing.T) []string {
	host, port, _ := net.SplitHostPort(programAddr)
	return []string{requireProgram(t, "redis-server"), "--bind", host, "--port", port, "--save", "", "--dir", t.TempDir()}
}

// redisBenchmark makes a connection for each request.
func redisBenchmark(t *testing.T) []string {
	host, port, _ := net.SplitHostPort(programAddr)
	return []string{requireProgram(t, "redis-benchmark"), "-h", host, "-p", port, "-k", "0", "-n", strconv.Itoa(redisRequests), "-c", "20", "-t", "ping_mbulk", "-q"}
}

// goHTTP is this binary in that role, under a name that says so.
func goHTTP(role string) func(t *testing.T) []string {
	return func(t *testing.T) []string {
		exe, err := os.Executable()
		qt.Assert(t, qt.IsNil(err))
		name := filepath.Join(t.TempDir(), "finwait-"+role)
		qt.Assert(t, qt.IsNil(os.Symlink(exe, name)))
		return []string{"env", httpRole + "=" + role, name}
	}
}

// beHTTP is a server until it is ended by a signal, or a client.
func beHTTP(role string) error {
	if role == "serve" {
		return http.ListenAndServe(programAddr, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "hello") // the client sees if it has not come
		}))
	}
	var dialer net.Dialer
	dialer.SetMultipathTCP(role == "mptcp")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dialer.DialContext}}
	done := make(chan error)
	for range httpRequests {
		go func() { done <- get(client) }()
	}
	var errs []error
	for range httpRequests {
		errs = append(errs, <-done)
	}
	return errors.Join(errs...)
}

func get(client *http.Client) error {
	resp, err := client.Get("http://" + programAddr + "/")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
