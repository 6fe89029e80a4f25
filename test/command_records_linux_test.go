package test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/finwait/finwait/test/internal/traffic"
	"github.com/finwait/finwait/tracer"
)

// jsonRecord is a line of --format json. What is not there stays zero, which
// only the fields may be that are pointers here.
type jsonRecord struct {
	Time       time.Time  `json:"time"`
	Cookie     string     `json:"cookie"`
	Netns      uint32     `json:"netns"`
	Family     string     `json:"family"`
	LocalAddr  netip.Addr `json:"local_addr"`
	LocalPort  uint16     `json:"local_port"`
	RemoteAddr netip.Addr `json:"remote_addr"`
	RemotePort uint16     `json:"remote_port"`
	OldState   string     `json:"old_state"`
	NewState   string     `json:"new_state"`
	DwellNS    *int64     `json:"dwell_ns"`
	PID        int        `json:"pid"`
	Comm       string     `json:"comm"`
	UID        *uint32    `json:"uid"`
	CgroupID   string     `json:"cgroup_id"`
	Container  string     `json:"container_id"`
	Pod        string     `json:"pod_uid"`
	Owner      string     `json:"owner"`
	Role       string     `json:"role"`
	Reason     string     `json:"reason"`
	Side       string     `json:"side"`
	Evidence   string     `json:"evidence"`
	Sampling   float64    `json:"sampling_ratio"`
}

// fields are the names of all fields, in the order in which they are written.
var fields = []string{
	"time", "cookie", "netns", "family", "local_addr", "local_port", "remote_addr", "remote_port",
	"old_state", "new_state", "dwell_ns", "pid", "comm", "uid", "cgroup_id",
	"container_id", "pod_uid", "owner", "role", "reason", "side", "evidence", "sampling_ratio",
}

func (r *jsonRecord) transition(t testing.TB) tracer.Transition {
	t.Helper()
	from, err := tracer.ParseState(r.OldState)
	qt.Assert(t, qt.IsNil(err))
	to, err := tracer.ParseState(r.NewState)
	qt.Assert(t, qt.IsNil(err))
	return tracer.Transition{Old: from, New: to}
}

// parseJSON decodes lines of --format json, and expects each to be an object
// with no other fields and none that is a zero in place of something unknown.
func parseJSON(t testing.TB, text string) []jsonRecord {
	t.Helper()
	var records []jsonRecord
	for line := range strings.Lines(text) {
		qt.Assert(t, qt.IsTrue(strings.HasSuffix(line, "}\n")), qt.Commentf("%q", line))
		dec := json.NewDecoder(strings.NewReader(line))
		dec.DisallowUnknownFields()
		var r jsonRecord
		qt.Assert(t, qt.IsNil(dec.Decode(&r)), qt.Commentf("%s", line))
		checkNoZero(t, line)
		records = append(records, r)
	}
	return records
}

func checkNoZero(t testing.TB, line string) {
	t.Helper()
	var all map[string]json.RawMessage
	qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(line), &all)))
	for name, value := range all {
		// Root is user 0, and what a timer shows has a timer's resolution.
		if name != "uid" && name != "dwell_ns" {
			qt.Assert(t, qt.IsFalse(slices.Contains([]string{`0`, `""`, `"0"`, `null`}, string(value))), qt.Commentf("%s in %s", name, line))
		}
	}
	for _, name := range []string{"time", "cookie", "netns", "family", "local_addr", "old_state", "new_state", "owner", "role", "evidence"} {
		qt.Assert(t, qt.IsNotNil(all[name]), qt.Commentf("no %s in %s", name, line))
	}
}

// recordsByCookie returns the records of each socket as they happened.
func recordsByCookie(records []jsonRecord) map[string][]jsonRecord {
	sorted := slices.Clone(records)
	slices.SortStableFunc(sorted, func(a, b jsonRecord) int { return a.Time.Compare(b.Time) })
	by := map[string][]jsonRecord{}
	for _, r := range sorted {
		by[r.Cookie] = append(by[r.Cookie], r)
	}
	return by
}

// checkRecords expects the transitions of res, each as it should be told, and
// no others. Every socket of res must have a cookie.
func checkRecords(t testing.TB, res *traffic.Result, records []jsonRecord) {
	t.Helper()
	by := recordsByCookie(records)
	for _, s := range res.Sockets() {
		cookie := strconv.FormatUint(s.Cookie, 10)
		var got []tracer.Transition
		for i, r := range by[cookie] {
			tr := r.transition(t)
			got = append(got, tr)
			checkRecord(t, r, s, tr, i == 0, res.Family)
		}
		qt.Assert(t, qt.DeepEquals(got, s.Want()), qt.Commentf("cookie %s", cookie))
		delete(by, cookie)
	}
	qt.Check(t, qt.HasLen(by, 0), qt.Commentf("sockets that nobody made"))
}

func checkRecord(t testing.TB, r jsonRecord, s *traffic.Socket, tr tracer.Transition, first bool, family tracer.Family) {
	t.Helper()
	want := r // time, dwell, netns and the cgroup are looked at elsewhere
	want.Family = family.String()
	want.LocalAddr, want.LocalPort = s.Local.Addr(), s.Local.Port()
	want.RemoteAddr, want.RemotePort = s.Remote.Addr(), s.Remote.Port()
	if s.Remote.Port() == 0 {
		want.RemoteAddr = netip.Addr{} // a listener has none
	}
	if tr.New == tracer.StateSynSent {
		want.LocalPort = 0 // the kernel has not chosen it yet
		want.LocalAddr = r.LocalAddr
	}
	want.PID, want.Comm, want.UID = os.Getpid(), ownComm(t), new(uint32)
	want.Owner = map[tracer.Role]string{tracer.RoleClient: "connect", tracer.RoleServer: "listen"}[s.Role]
	if r.Owner == "accept" && tr.Old != tracer.StateClose && tr.Old != tracer.StateListen {
		want.Owner = r.Owner
	}
	want.Role = s.Role.String()
	want.Evidence = "kernel"
	if !told(tr.Old) || !told(tr.New) {
		want.Evidence = r.Evidence
		qt.Check(t, qt.Not(qt.Equals(r.Evidence, "kernel")))
	}
	qt.Assert(t, qt.CmpEquals(r, want, cmpopts.EquateComparable(netip.Addr{})))
	qt.Check(t, qt.Equals(r.Reason != "", tr.New == tracer.StateClose), qt.Commentf("%q of %v", r.Reason, tr))
	qt.Check(t, qt.Equals(r.DwellNS == nil, first), qt.Commentf("dwell of %v", tr))
	qt.Check(t, qt.IsTrue(time.Since(r.Time).Abs() < 10*time.Minute && r.Time.Location() == time.UTC), qt.Commentf("%v", r.Time))
}

func ownComm(t testing.TB) string {
	t.Helper()
	comm, err := os.ReadFile("/proc/self/comm")
	qt.Assert(t, qt.IsNil(err))
	return strings.TrimSuffix(string(comm), "\n")
}

// closeOrder says which end of a connection closes first.
type closeOrder bool

const (
	clientFirst closeOrder = false
	serverFirst closeOrder = true
)

// connectTo makes n connections to a listener of its own on the port of the
// loopback address, in the namespace of the thread, and returns the cookies of
// the servers. It differs from package traffic in that the port is known before.
func connectTo(port uint16, n, family int, order closeOrder) (servers []uint64, err error) {
	var addr unix.Sockaddr = &unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}}
	if family == unix.AF_INET6 {
		addr = &unix.SockaddrInet6{Port: int(port), Addr: [16]byte{15: 1}}
	}
	l, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(l)
	_ = unix.SetsockoptInt(l, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) // bind says if it is needed
	if err := unix.Bind(l, addr); err != nil {
		return nil, fmt.Errorf("bind: %w", err)
	}
	if err := unix.Listen(l, n); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	for range n {
		cookie, err := connectOnce(l, family, addr, order)
		if err != nil {
			return nil, err
		}
		servers = append(servers, cookie)
	}
	return servers, nil
}

func connectOnce(l, family int, addr unix.Sockaddr, order closeOrder) (cookie uint64, err error) {
	c, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	if err := unix.Connect(c, addr); err != nil {
		return 0, errorAndClose("connect", err, c)
	}
	s, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
	if err != nil {
		return 0, errorAndClose("accept", err, c)
	}
	cookie, err = unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return 0, errorAndClose("SO_COOKIE", err, c, s)
	}
	first, second := c, s
	if order == serverFirst {
		first, second = s, c
	}
	if err := unix.Close(first); err != nil {
		return 0, errorAndClose("close", err, second)
	}
	if _, err := unix.Read(second, make([]byte, 1)); err != nil { // waits for the FIN
		return 0, errorAndClose("read", err, second)
	}
	return cookie, unix.Close(second)
}

func errorAndClose(op string, err error, fds ...int) error {
	for _, fd := range fds {
		unix.Close(fd)
	}
	return fmt.Errorf("%s: %w", op, err)
}
