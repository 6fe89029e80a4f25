package test

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/netns"
)

// The ports and names of the sockets that the filters are to tell apart.
const (
	portA, portB, actorsPort = 7001, 7002, 7003
	actorName                = "finwait-actor"
	actorsUID                = 65534
)

// filterTraffic is how many transitions makeFilterTraffic makes: a listener's
// two each, and five of each end of a connection.
const filterTraffic = 5*2 + (4*connections+1)*11

type filterTest struct {
	args []string
	keep func(*jsonRecord) bool
}

func filterTests() []filterTest {
	state := func(s string) func(*jsonRecord) bool {
		return func(r *jsonRecord) bool { return r.OldState == s || r.NewState == s }
	}
	is4 := func(a netip.Addr) bool { return a.Is4() && a.IsLoopback() }
	self := os.Getpid()
	return []filterTest{
		{[]string{"--state", "TIME_WAIT"}, state("TIME_WAIT")},
		{[]string{"--state", "listen,CLOSE-WAIT"}, func(r *jsonRecord) bool { return state("LISTEN")(r) || state("CLOSE_WAIT")(r) }},
		{[]string{"--transition", "FIN_WAIT2:TIME_WAIT"}, func(r *jsonRecord) bool { return r.OldState == "FIN_WAIT2" && r.NewState == "TIME_WAIT" }},
		{[]string{"--port", "7001,7003"}, func(r *jsonRecord) bool {
			return r.LocalPort == portA || r.RemotePort == portA || r.LocalPort == actorsPort || r.RemotePort == actorsPort
		}},
		{[]string{"--lport", "7001-7002"}, func(r *jsonRecord) bool { return r.LocalPort == portA || r.LocalPort == portB }},
		{[]string{"--lport", "10000-65535"}, func(r *jsonRecord) bool { return r.LocalPort >= 10000 }},
		{[]string{"--rport", "7002"}, func(r *jsonRecord) bool { return r.RemotePort == portB }},
		{[]string{"--addr", "127.0.0.0/8"}, func(r *jsonRecord) bool { return is4(r.LocalAddr) || is4(r.RemoteAddr) }},
		{[]string{"--addr", "::1"}, func(r *jsonRecord) bool { return r.LocalAddr == netip.IPv6Loopback() }},
		{[]string{"--pid", strconv.Itoa(self)}, func(r *jsonRecord) bool { return r.PID == self }},
		{[]string{"--comm", actorName}, func(r *jsonRecord) bool { return r.Comm == actorName }},
		{[]string{"--uid", strconv.Itoa(actorsUID)}, func(r *jsonRecord) bool { return r.UID != nil && *r.UID == actorsUID }},
		{[]string{"-4"}, func(r *jsonRecord) bool { return r.Family == "ipv4" }},
		{[]string{"-6"}, func(r *jsonRecord) bool { return r.Family == "ipv6" }},
		{[]string{"-4", "--lport", "7001", "--state", "TIME_WAIT", "--uid", "0"}, func(r *jsonRecord) bool {
			return r.Family == "ipv4" && r.LocalPort == portA && state("TIME_WAIT")(r) && *r.UID == 0
		}},
	}
}

// TestCommandFilters runs a finwait with each filter at the same time, and
// holds each to what the one without a filter saw.
func TestCommandFilters(t *testing.T) {
	netns.RequireRoot(t)
	ns := netns.New(t)
	tests := filterTests()
	all := traceIn(t, ns, "--format", "json")
	filtered := make([]*process, len(tests))
	for i, tt := range tests {
		filtered[i] = traceIn(t, ns, append([]string{"--format", "json"}, tt.args...)...)
	}
	makeFilterTraffic(t, ns)

	all.awaitLines(filterTraffic)
	truth := withPorts(parseJSON(t, all.stop().stdout))
	qt.Assert(t, qt.HasLen(truth, filterTraffic))
	for i, tt := range tests {
		want := keys(truth, tt.keep)
		qt.Check(t, qt.IsTrue(len(want) > 0 && len(want) < len(truth)), qt.Commentf("%v: %d of %d is no test", tt.args, len(want), len(truth)))
		filtered[i].awaitLines(len(want))
		res := filtered[i].stop()
		got := keys(parseJSON(t, res.stdout), func(*jsonRecord) bool { return true })
		qt.Check(t, qt.DeepEquals(got, want), qt.Commentf("%v", tt.args))
		n := ledger(t, res.stderr)
		qt.Check(t, qt.DeepEquals(n[1:3], []int{len(want), len(want)}), qt.Commentf("%v", tt.args))
	}
}

func makeFilterTraffic(t testing.TB, ns *netns.NS) {
	t.Helper()
	connectIn(t, ns, portA, connections, unix.AF_INET, serverFirst)
	connectIn(t, ns, portB, connections, unix.AF_INET, clientFirst)
	connectIn(t, ns, portA, connections, unix.AF_INET6, clientFirst)
	connectIn(t, ns, portB, connections, unix.AF_INET6, serverFirst)
	runActor(t, ns, actorName, strconv.Itoa(actorsUID))
}

// runActor makes a connection from a process of that name.
func runActor(t testing.TB, ns *netns.NS, name, uid string) {
	t.Helper()
	qt.Assert(t, qt.Equals(runCommand(t, actor(t, ns, name, uid)), result{}))
}

func actor(t testing.TB, ns *netns.NS, name, uid string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	qt.Assert(t, qt.IsNil(err))
	path := filepath.Join(t.TempDir(), name) // a process is named after the path it is started by
	qt.Assert(t, qt.IsNil(os.Symlink(self, path)))
	cmd := ns.Command(path)
	cmd.Env = append(os.Environ(), actorPort+"="+strconv.Itoa(actorsPort), actorUID+"="+uid)
	return cmd
}

// withPorts gives each record the local port that its socket got: a filter by
// it holds a transition back until the port is known.
func withPorts(records []jsonRecord) []jsonRecord {
	ports := map[string]uint16{}
	for _, r := range records {
		ports[r.Cookie] = max(ports[r.Cookie], r.LocalPort)
	}
	records = slices.Clone(records)
	for i := range records {
		records[i].LocalPort = ports[records[i].Cookie]
	}
	return records
}

// keys says of which sockets and transitions the kept records are.
func keys(records []jsonRecord, keep func(*jsonRecord) bool) []string {
	all := []string{}
	for _, r := range records {
		if keep(&r) {
			all = append(all, r.Cookie+" "+r.OldState+":"+r.NewState)
		}
	}
	slices.Sort(all)
	return all
}

// TestCommandCgroup runs a process in a cgroup below the one that is asked for.
func TestCommandCgroup(t *testing.T) {
	netns.RequireRoot(t)
	parent, child := newCgroups(t)
	ns := netns.New(t)
	all := traceIn(t, ns, "--format", "json")
	byName := traceIn(t, ns, "--format", "json", "--cgroup", filepath.Base(parent))
	byPath := traceIn(t, ns, "--format", "json", "--cgroup", child)
	connectIn(t, ns, portA, 1, unix.AF_INET, clientFirst)
	runActorIn(t, ns, child)

	const each = 2 + 11 // of a listener and of a connection
	all.awaitLines(2 * each)
	isActor := func(r *jsonRecord) bool { return r.Comm == actorName }
	want := keys(parseJSON(t, all.stop().stdout), isActor)
	qt.Assert(t, qt.HasLen(want, each))
	for _, p := range []*process{byName, byPath} {
		p.awaitLines(each)
		qt.Check(t, qt.DeepEquals(keys(parseJSON(t, p.stop().stdout), isActor), want))
		qt.Check(t, qt.Equals(strings.Count(p.stdout.String(), "\n"), each))
	}
}

// runActorIn makes a connection from a process in that cgroup.
func runActorIn(t testing.TB, ns *netns.NS, cgroup string) {
	t.Helper()
	cmd := actor(t, ns, actorName, "")
	dir, err := os.Open(cgroup)
	qt.Assert(t, qt.IsNil(err))
	defer dir.Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	qt.Assert(t, qt.Equals(runCommand(t, cmd), result{}))
}

// newCgroups makes a version 2 cgroup and one below it.
func newCgroups(t testing.TB) (parent, child string) {
	t.Helper()
	parent = newTopCgroup(t)
	child = filepath.Join(parent, "child")
	makeCgroup(t, child)
	return parent, child
}

func makeCgroup(t testing.TB, path string) {
	t.Helper()
	qt.Assert(t, qt.IsNil(os.Mkdir(path, 0o755)))
	t.Cleanup(func() { os.Remove(path) })
}

// newTopCgroup makes a version 2 cgroup below the root.
func newTopCgroup(t testing.TB) string {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err != nil {
			continue
		}
		parent, err := os.MkdirTemp(root, "finwait-test")
		if err != nil {
			t.Skip(err) // read-only, in a container
		}
		t.Cleanup(func() { os.Remove(parent) })
		return parent
	}
	t.Skip("no version 2 cgroups")
	return ""
}
