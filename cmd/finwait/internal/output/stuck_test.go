package output

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

func owned(pid uint32, comm string) tracer.Owner {
	o := tracer.Owner{Origin: tracer.OriginConnect, PID: pid, UID: 1000, CgroupID: 7}
	o.SetComm(comm)
	return o
}

func stuckSockets() *tracer.Stuck {
	local, remote := netip.MustParseAddrPort("127.0.0.1:8080"), netip.MustParseAddrPort("127.0.0.1:45368")
	long := netip.MustParseAddrPort("255.255.255.255:65535")
	return &tracer.Stuck{
		Time: time.Date(2026, 11, 22, 10, 0, 0, 1, time.UTC),
		Sockets: []tracer.StuckSocket{
			{State: tracer.StateCloseWait, Age: 62 * time.Second, AtLeast: true, Cookie: 1 << 60, Netns: 3, Family: tracer.FamilyIPv4, Local: local, Remote: remote, Owner: owned(123, "nginx"), Role: tracer.RoleServer},
			{State: tracer.StateCloseWait, Age: 61 * time.Second, Cookie: 2, Netns: 3, Family: tracer.FamilyIPv4, Local: long, Remote: long, Owner: owned(4194303, "fifteen-bytes-x")},
			{State: tracer.StateLastAck, Age: 31 * time.Second, Cookie: 3, Netns: 3, Family: tracer.FamilyIPv4, Local: local, Remote: remote},
			{State: tracer.StateCloseWait, Age: time.Second, Cookie: 4, Netns: 3, Family: tracer.FamilyIPv6,
				Local: netip.MustParseAddrPort("[2001:db8:aaaa:bbbb:cccc:dddd:eeee:1]:8080"), Remote: netip.MustParseAddrPort("[2001:db8:aaaa:bbbb:cccc:dddd:eeee:2]:45368"), Owner: owned(123, "nginx")},
		},
	}
}

func stuckText(t *testing.T, format string, byProcess bool, s *tracer.Stuck) string {
	t.Helper()
	e, err := NewStuck(format, byProcess, Options{})
	qt.Assert(t, qt.IsNil(err))
	return string(e.AppendStuck(e.AppendHeader(nil), s))
}

func TestStuckFormats(t *testing.T) {
	for _, tt := range []struct {
		format    string
		byProcess bool
		want      string
	}{
		{"table", false, `
   AGE STATE        LOCAL           REMOTE          OWNER
≥62.0s CLOSE_WAIT   127.0.0.1:8080  127.0.0.1:45368 nginx/123
 61.0s CLOSE_WAIT   255.255.255.255:65535 255.255.255.255:65535 fifteen-bytes-x
 31.0s LAST_ACK     127.0.0.1:8080  127.0.0.1:45368 -
  1.0s CLOSE_WAIT   [2001:db8:aaaa:bbbb:cccc:dddd:eeee:1]:8080 [2001:db8:aaaa:bbbb:cccc:dddd:eeee:2]:45368 nginx/123
`},
		{"table", true, `
SOCKETS STATE        OLDEST OWNER
      2 CLOSE_WAIT   ≥62.0s nginx/123
      1 CLOSE_WAIT    61.0s fifteen-bytes-x/4194303
      1 LAST_ACK      31.0s -
`},
		{"csv", true, `
time,state,sockets,oldest_ns,oldest_at_least,pid,comm,uid
2026-11-22T10:00:00.000000001Z,CLOSE_WAIT,2,62000000000,true,123,nginx,1000
2026-11-22T10:00:00.000000001Z,CLOSE_WAIT,1,61000000000,false,4194303,fifteen-bytes-x,1000
2026-11-22T10:00:00.000000001Z,LAST_ACK,1,31000000000,false,,,
`},
		{"logfmt", true, `
time=2026-11-22T10:00:00.000000001Z state=CLOSE_WAIT sockets=2 oldest_ns=62000000000 oldest_at_least=true pid=123 comm=nginx uid=1000
time=2026-11-22T10:00:00.000000001Z state=CLOSE_WAIT sockets=1 oldest_ns=61000000000 oldest_at_least=false pid=4194303 comm=fifteen-bytes-x uid=1000
time=2026-11-22T10:00:00.000000001Z state=LAST_ACK sockets=1 oldest_ns=31000000000 oldest_at_least=false
`},
	} {
		t.Run(tt.format, func(t *testing.T) {
			qt.Check(t, qt.Equals("\n"+stuckText(t, tt.format, tt.byProcess, stuckSockets()), tt.want))
		})
	}
	_, err := NewStuck("yaml", false, Options{})
	qt.Check(t, qt.ErrorMatches(err, `unknown format "yaml" .*`))
}

func TestStuckSocketRecord(t *testing.T) {
	one := stuckSockets()
	one.Sockets = one.Sockets[:1]
	qt.Check(t, qt.Equals(stuckText(t, "json", false, one), `{"time":"2026-11-22T10:00:00.000000001Z","state":"CLOSE_WAIT",`+
		`"age_ns":62000000000,"age_at_least":true,"cookie":"1152921504606846976","netns":3,"family":"ipv4",`+
		`"local_addr":"127.0.0.1","local_port":8080,"remote_addr":"127.0.0.1","remote_port":45368,`+
		`"pid":123,"comm":"nginx","uid":1000,"cgroup_id":"7","owner":"connect","role":"server"}`+"\n"))
	qt.Check(t, qt.Equals(stuckText(t, "logfmt", false, one), `time=2026-11-22T10:00:00.000000001Z state=CLOSE_WAIT `+
		`age_ns=62000000000 age_at_least=true cookie=1152921504606846976 netns=3 family=ipv4 `+
		`local_addr=127.0.0.1 local_port=8080 remote_addr=127.0.0.1 remote_port=45368 `+
		`pid=123 comm=nginx uid=1000 cgroup_id=7 owner=connect role=server`+"\n"))
	qt.Check(t, qt.Equals(stuckText(t, "csv", false, one), "time,state,age_ns,age_at_least,cookie,netns,family,"+
		"local_addr,local_port,remote_addr,remote_port,pid,comm,uid,cgroup_id,container_id,pod_uid,owner,role\n"+
		"2026-11-22T10:00:00.000000001Z,CLOSE_WAIT,62000000000,true,1152921504606846976,3,ipv4,"+
		"127.0.0.1,8080,127.0.0.1,45368,123,nginx,1000,7,,,connect,server\n"))
}

// TestStuckHostileComm lets nothing through that a process may have as its name.
func TestStuckHostileComm(t *testing.T) {
	for _, comm := range []string{"\x1b[31mred", "=cmd()", "a,\"b\"\n", "\u202egnp.exe", "\xff\xfe"} {
		s := stuckSockets()
		s.Sockets = s.Sockets[:1]
		s.Sockets[0].Owner.SetComm(comm)
		for _, format := range Formats {
			for _, byProcess := range []bool{false, true} {
				text := strings.TrimSuffix(stuckText(t, format, byProcess, s), "\n")
				lines := strings.Split(text, "\n")
				last := lines[len(lines)-1]
				qt.Check(t, qt.IsTrue(utf8.ValidString(last)))
				qt.Check(t, qt.IsFalse(strings.ContainsFunc(last, func(r rune) bool { return !unicode.IsPrint(r) })), qt.Commentf("%q", last))
				if format == "json" {
					qt.Check(t, qt.IsTrue(json.Valid([]byte(last))), qt.Commentf("%s", last))
				}
				if format == "csv" {
					qt.Check(t, qt.IsFalse(strings.Contains(last, ",=")), qt.Commentf("%s", last))
				}
				if format != "json" && format != "csv" && format != "logfmt" {
					qt.Check(t, qt.IsTrue(utf8.RuneCountInString(last) < defaultWidth), qt.Commentf("%s", last))
				}
			}
		}
	}
}
