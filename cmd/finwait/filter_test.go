package main

import (
	"net/netip"
	"os"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/finwait/finwait/tracer"
)

func parseTraceArgs(t *testing.T, args ...string) (tracer.Filter, error) {
	t.Helper()
	cmd := newTraceCommand()
	var flags filterFlags
	cmd.ResetFlags()
	flags.add(cmd)
	qt.Assert(t, qt.IsNil(cmd.ParseFlags(args)))
	return flags.parse(cmd.Flags())
}

func TestFilterFlags(t *testing.T) {
	self, err := inodeOf("/proc/self/ns/net")
	qt.Assert(t, qt.IsNil(err))
	for _, test := range []struct {
		args []string
		want tracer.Filter
	}{
		{nil, tracer.Filter{}},
		{[]string{"--state", "time_wait,FIN-WAIT-2", "--state", "ESTAB"}, tracer.Filter{States: []tracer.State{tracer.StateTimeWait, tracer.StateFinWait2, tracer.StateEstablished}}},
		{[]string{"--transition", "FIN_WAIT2->TIME_WAIT"}, tracer.Filter{Transitions: []tracer.Transition{{Old: tracer.StateFinWait2, New: tracer.StateTimeWait}}}},
		{[]string{"--port", "80,8000-8999", "--lport=1", "--rport", "65535"}, tracer.Filter{
			Ports: []tracer.PortRange{{First: 80, Last: 80}, {First: 8000, Last: 8999}}, LocalPorts: []tracer.PortRange{{First: 1, Last: 1}}, RemotePorts: []tracer.PortRange{{First: 65535, Last: 65535}},
		}},
		{[]string{"--addr", "10.0.0.0/8,::1,192.0.2.7"}, tracer.Filter{Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("192.0.2.7/32")}}},
		{[]string{"--netns", "self,4026531840"}, tracer.Filter{Netns: []uint32{uint32(self), 4026531840}}},
		{[]string{"--pid", "1,2", "--uid", "0,root", "--comm", "nginx", "--cgroup", "77"}, tracer.Filter{PIDs: []uint32{1, 2}, UIDs: []uint32{0, 0}, Comms: []string{"nginx"}, Cgroups: []uint64{77}}},
		{[]string{"-4"}, tracer.Filter{Family: tracer.FamilyIPv4}},
		{[]string{"--ipv6"}, tracer.Filter{Family: tracer.FamilyIPv6}},
	} {
		got, err := parseTraceArgs(t, test.args...)
		qt.Assert(t, qt.IsNil(err), qt.Commentf("%v", test.args))
		qt.Check(t, qt.CmpEquals(got, test.want, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Prefix{})), qt.Commentf("%v", test.args))
	}
}

func TestFilterFlagMistakes(t *testing.T) {
	for message, args := range map[string][]string{
		`--port: "70000" is not a port \(1 to 65535\).*`:         {"--port", "70000"},
		`--lport: "0" is not a port.*`:                           {"--lport", "0"},
		`--rport: "9-8" is not a port.*`:                         {"--rport", "9-8"},
		`--addr: "10.0.0.0/33" is not an address or a network.*`: {"--addr", "10.0.0.0/33"},
		`--addr: "fe80::1%lo" is not an address.*`:               {"--addr", "fe80::1%lo"},
		`--state: unknown TCP state "X".*`:                       {"--state", "X"},
		`--state is empty.*`:                                     {"--state", ""},
		`--transition: transition "LISTEN" has no arrow.*`:       {"--transition", "LISTEN"},
		`--netns: network namespace "nosuch": .*`:                {"--netns", "nosuch"},
		`--pid: "-1" is not a process id`:                        {"--pid", "-1"},
		`--uid: "nosuch-user" is not a user id.*`:                {"--uid", "nosuch-user"},
		`--comm: "sixteen-letters!" is not a process name.*`:     {"--comm", "sixteen-letters!"},
		`--cgroup: "nosuch" is not the id or the path.*`:         {"--cgroup", "nosuch"},
		`--ipv4 and --ipv6 contradict each other.*`:              {"-4", "-6"},
	} {
		_, err := parseTraceArgs(t, args...)
		qt.Check(t, qt.ErrorMatches(err, message))
		var usage *usageError
		qt.Check(t, qt.ErrorAs(err, &usage))
	}
}

// A cgroup is found by its path in full and below the file system's root.
func TestParseCgroup(t *testing.T) {
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(root + "/cgroup.controllers"); err != nil {
			continue
		}
		want, err := inodeOf(root)
		qt.Assert(t, qt.IsNil(err))
		got, err := parseCgroup(root)
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.Equals(got, want))
		return
	}
	t.Skip("no version 2 cgroup file system")
}

func FuzzFilterValues(f *testing.F) {
	for _, s := range []string{"80", "1-65535", "10.0.0.0/8", "::ffff:1.2.3.4", "self", "0", "-", "99999999999999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := parsePorts(s); err == nil {
			qt.Assert(t, qt.IsTrue(r.First > 0 && r.First <= r.Last))
		}
		if p, err := parsePrefix(s); err == nil {
			qt.Assert(t, qt.IsTrue(p.IsValid()))
		}
		if c, err := parseComm(s); err == nil {
			qt.Assert(t, qt.Equals(c, s))
		}
		_, _ = parsePID(s)
		_, _ = parseUID(s)
	})
}
