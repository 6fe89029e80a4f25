package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
	"github.com/finwait/finwait/tracer"
)

// kernelDefaults are those of Linux 6.18 on a host with 262,144 slots in its table of
// connections.
var kernelDefaults = sysctl.Values{
	"net.core.somaxconn":                                 "4096",
	"net.ipv4.ip_local_port_range":                       "32768 60999",
	"net.ipv4.ip_local_reserved_ports":                   "",
	"net.ipv4.tcp_abort_on_overflow":                     "0",
	"net.ipv4.tcp_ehash_entries":                         "262144",
	"net.ipv4.tcp_fin_timeout":                           "60",
	"net.ipv4.tcp_keepalive_time":                        "7200",
	"net.ipv4.tcp_max_orphans":                           "131072",
	"net.ipv4.tcp_max_syn_backlog":                       "2048",
	"net.ipv4.tcp_max_tw_buckets":                        "131072",
	"net.ipv4.tcp_rfc1337":                               "0",
	"net.ipv4.tcp_syncookies":                            "1",
	"net.ipv4.tcp_timestamps":                            "1",
	"net.ipv4.tcp_tw_reuse":                              "2",
	"net.netfilter.nf_conntrack_tcp_timeout_established": "432000",
	"net.netfilter.nf_conntrack_tcp_timeout_time_wait":   "120",
}

const tuning = "/etc/sysctl.d/99-tuning.conf"

// lines are those of a file, from line 1 on.
func lines(file string, texts ...string) (all []sysctl.Line) {
	for i, text := range texts {
		key, value, set := strings.Cut(text, " = ")
		bare, isExclude := strings.CutPrefix(key, "-")
		all = append(all, sysctl.Line{Key: bare, Value: value, File: file, Number: i + 1, Exclude: isExclude && !set})
	}
	return all
}

// configured is a host with those sysctls in its own namespace, and those lines.
func configured(running sysctl.Values, set ...sysctl.Line) *observe.Host {
	values := maps.Clone(kernelDefaults)
	maps.Copy(values, running)
	return &observe.Host{
		Namespaces: []observe.Netns{{Inode: 1, Host: true, Sysctls: values}},
		Settings:   &sysctl.Files{Lines: set},
	}
}

// applied is a host whose files say so, and that runs so.
func applied(set ...sysctl.Line) *observe.Host {
	h := configured(nil, set...)
	for _, line := range set {
		if last, ok := h.Settings.Last(line.Key); ok && line.Key != keyRecycle {
			h.Namespaces[0].Sysctls[line.Key] = last.Value
		}
	}
	h.Namespaces[0].NoSysctl = []string{keyRecycle}
	return h
}

func idsOf(findings []Finding) (ids []string) {
	for _, f := range findings {
		ids = append(ids, f.Rule.ID)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// The advice that has gone round since 2008, with what was added to it.
func TestJudgeTheAdvice(t *testing.T) {
	h := applied(lines(tuning,
		"net.ipv4.tcp_syncookies = 1", "net.ipv4.tcp_tw_reuse = 1", "net.ipv4.tcp_tw_recycle = 1", "net.ipv4.tcp_fin_timeout = 30",
		"net.ipv4.tcp_keepalive_time = 1200", "net.ipv4.ip_local_port_range = 1024 65000",
		"net.ipv4.tcp_max_syn_backlog = 8192", "net.ipv4.tcp_max_tw_buckets = 5000", "vm.swappiness = 1")...)
	want := []struct {
		verdict Verdict
		rule    string
	}{
		{VerdictDefault, ""}, {VerdictEffective, ""}, {VerdictNoEffect, sysctlRecycle}, {VerdictNoEffect, sysctlFinTimeout},
		{VerdictEffective, ""}, {VerdictEffective, ""}, {VerdictNoEffect, sysctlSynBacklog}, {VerdictHarmful, sysctlMaxTimeWait},
	}
	got := Judge(h)
	qt.Assert(t, qt.HasLen(got, len(want)))
	for i, j := range got {
		qt.Check(t, qt.Equals(j.Line.Number, i+1))
		qt.Check(t, qt.Equals(j.Verdict, want[i].verdict), qt.Commentf("%s: %s", j.Key, j.Why))
		qt.Check(t, qt.Equals(j.Rule, want[i].rule), qt.Commentf("%s", j.Key))
		qt.Check(t, qt.IsTrue(strings.HasSuffix(j.Why, ".") && !strings.ContainsAny(j.Why, "\n\t")), qt.Commentf("%q", j.Why))
	}
	qt.Check(t, qt.Equals(got[2].Running, ""))
	qt.Check(t, qt.Equals(got[3].Running, "30"))
	qt.Check(t, qt.DeepEquals(idsOf(Diagnose(h)), []string{sysctlFinTimeout, sysctlMaxTimeWait, sysctlSynBacklog, sysctlRecycle}))
}

func TestVerdictString(t *testing.T) {
	qt.Check(t, qt.Equals(fmt.Sprint(VerdictDefault, VerdictNoEffect, VerdictUnknown), "default no-effect unknown"))
}

// Each verdict by where a line stands.
func TestJudgeByPlace(t *testing.T) {
	h := applied(slices.Concat(
		lines("/etc/sysctl.d/10-a.conf", "net.ipv4.tcp_syn_retries = 3", "net.ipv4.tcp_retries2 = 8", "net.ipv4.tcp_typo = 1", "net.ipv4.tcp_synack_retries = 5"),
		lines("/etc/sysctl.d/20-b.conf", "net.ipv4.tcp_syn_retries = 2", "net.ipv4.tcp_retries2 = 8"),
		lines("/etc/sysctl.d/30-c.conf", "net.ipv4.tcp_orphan_retries = 2", "-net.ipv4.tcp_orphan_retries"),
	)...)
	n := &h.Namespaces[0]
	n.NoSysctl = []string{"net.ipv4.tcp_typo"}
	n.Sysctls["net.ipv4.tcp_retries2"] = "15"
	h.Settings.Systemd = true
	h.Settings.Conf = sysctl.Conf{Exists: true, Lines: lines(sysctlConf, "net.ipv4.tcp_tw_reuse = 1", "vm.swappiness = 1")}
	var got []string
	for _, j := range Judge(h) {
		got = append(got, fmt.Sprintf("%s %s %v %s", where(j.Line), j.Key, j.Verdict, j.Rule))
	}
	qt.Check(t, qt.DeepEquals(got, []string{
		"/etc/sysctl.d/10-a.conf:1 net.ipv4.tcp_syn_retries overridden sysctl-overridden",
		"/etc/sysctl.d/10-a.conf:2 net.ipv4.tcp_retries2 overridden ",
		"/etc/sysctl.d/10-a.conf:3 net.ipv4.tcp_typo unknown sysctl-unknown",
		"/etc/sysctl.d/10-a.conf:4 net.ipv4.tcp_synack_retries default ",
		"/etc/sysctl.d/20-b.conf:1 net.ipv4.tcp_syn_retries effective ",
		"/etc/sysctl.d/20-b.conf:2 net.ipv4.tcp_retries2 effective sysctl-not-applied",
		"/etc/sysctl.d/30-c.conf:1 net.ipv4.tcp_orphan_retries overridden ",
		"/etc/sysctl.d/30-c.conf:2 net.ipv4.tcp_orphan_retries overridden ",
		"/etc/sysctl.conf:1 net.ipv4.tcp_tw_reuse no-effect sysctl-conf-not-read",
	}))
	qt.Check(t, qt.DeepEquals(idsOf(Diagnose(h)), []string{sysctlConfNotRead, sysctlNotApplied, sysctlOverridden, sysctlUnknown}))
}

// settingTests are just above and just below what decides.
var settingTests = []struct {
	name    string
	running sysctl.Values
	set     []sysctl.Line
	change  func(*observe.Netns)
	want    []string
}{
	{name: "a host as it comes"},
	{name: "lines of defaults", set: lines(tuning, "net.ipv4.tcp_syncookies = 1", "net.ipv4.tcp_tw_reuse = 2", "net.ipv4.tcp_max_syn_backlog = 2048",
		"net.ipv4.tcp_max_tw_buckets = 131072", "net.ipv4.ip_local_port_range = 32768\t60999", "net.ipv4.tcp_fin_timeout = 0x3c")},
	{name: "not about TCP", set: lines(tuning, "vm.swappiness = 1", "net.core.rmem_max = 1", "sunrpc.tcp_slot_table_entries = 1")},
	{name: "unknown, and not about TCP", set: lines(tuning, "net.ipv6.conf.all.typo = 1"), change: lacks("net.ipv6.conf.all.typo")},

	{name: "fin_timeout runs", running: sysctl.Values{"net.ipv4.tcp_fin_timeout": "59"}, want: []string{sysctlFinTimeout}},
	{name: "fin_timeout longer", running: sysctl.Values{"net.ipv4.tcp_fin_timeout": "61"}},
	{name: "fin_timeout and few orphans", running: sysctl.Values{"net.ipv4.tcp_fin_timeout": "30"}, change: orphans(24), want: []string{sysctlFinTimeout}},
	{name: "fin_timeout and many orphans", running: sysctl.Values{"net.ipv4.tcp_fin_timeout": "30"}, change: orphans(25)},
	{name: "fin_timeout that is so low that orphans are few", running: sysctl.Values{"net.ipv4.tcp_fin_timeout": "1"}, change: orphans(1)},
	{name: "fin_timeout set, and few orphans by default", running: sysctl.Values{"net.ipv4.tcp_fin_timeout": "60"}, change: orphans(49),
		set: lines(tuning, "net.ipv4.tcp_fin_timeout = 30"), want: []string{sysctlFinTimeout}},

	{name: "reuse without timestamps", running: sysctl.Values{"net.ipv4.tcp_tw_reuse": "1", "net.ipv4.tcp_timestamps": "0"},
		want: []string{sysctlTimestampsOff, sysctlReuseNoTimestamps}},
	{name: "the default without timestamps", running: sysctl.Values{"net.ipv4.tcp_timestamps": "0"}, want: []string{sysctlTimestampsOff}},
	{name: "a file wants reuse on loopback, without timestamps", running: sysctl.Values{"net.ipv4.tcp_timestamps": "0"},
		set: lines(tuning, "net.ipv4.tcp_tw_reuse = 2"), want: []string{sysctlTimestampsOff, sysctlReuseNoTimestamps}},
	{name: "timestamps without offsets", running: sysctl.Values{"net.ipv4.tcp_timestamps": "2"}},
	{name: "reuse and nothing in TIME_WAIT", running: sysctl.Values{"net.ipv4.tcp_tw_reuse": "1"}},
	{name: "reuse and inbound", running: sysctl.Values{"net.ipv4.tcp_tw_reuse": "1"}, change: timeWaits(1, ""), want: []string{sysctlReuseInbound}},
	{name: "reuse and outgoing on loopback", running: sysctl.Values{"net.ipv4.tcp_tw_reuse": "1"}, change: timeWaits(1, "127.0.0.1:80"), want: []string{sysctlReuseInbound}},
	{name: "reuse and outgoing", running: sysctl.Values{"net.ipv4.tcp_tw_reuse": "1"}, change: timeWaits(1, "192.0.2.1:80")},
	{name: "no reuse", running: sysctl.Values{"net.ipv4.tcp_tw_reuse": "0"}, change: timeWaits(1, "")},

	{name: "buckets lowered", running: sysctl.Values{"net.ipv4.tcp_max_tw_buckets": "131071"}, want: []string{sysctlMaxTimeWait}},
	{name: "buckets raised", running: sysctl.Values{"net.ipv4.tcp_max_tw_buckets": "131073"}},
	{name: "buckets of a table of one's own", running: sysctl.Values{"net.ipv4.tcp_max_tw_buckets": "512", "net.ipv4.tcp_ehash_entries": "1024"}},
	{name: "buckets of the host's table", running: sysctl.Values{"net.ipv4.tcp_max_tw_buckets": "512", "net.ipv4.tcp_ehash_entries": "-262144"}, want: []string{sysctlMaxTimeWait}},
	{name: "buckets and nothing to compare with", running: sysctl.Values{"net.ipv4.tcp_max_tw_buckets": "512", "net.ipv4.tcp_ehash_entries": ""}},

	{name: "rfc1337", running: sysctl.Values{"net.ipv4.tcp_rfc1337": "1"}, want: []string{sysctlRFC1337}},
	{name: "abort", running: sysctl.Values{"net.ipv4.tcp_abort_on_overflow": "1"}, want: []string{sysctlAbortOnOverflow}},
	{name: "no cookies", running: sysctl.Values{"net.ipv4.tcp_syncookies": "0"}, want: []string{sysctlSyncookiesOff}},
	{name: "nothing but cookies", running: sysctl.Values{"net.ipv4.tcp_syncookies": "2"}, want: []string{sysctlSyncookiesAlways}},

	{name: "SYN backlog runs", running: sysctl.Values{"net.ipv4.tcp_max_syn_backlog": "2049"}},
	{name: "SYN backlog set", running: sysctl.Values{"net.ipv4.tcp_max_syn_backlog": "2049"}, set: lines(tuning, "net.ipv4.tcp_max_syn_backlog = 2049"), want: []string{sysctlSynBacklog}},
	{name: "SYN backlog set, and nothing to compare with", running: sysctl.Values{"net.ipv4.tcp_max_syn_backlog": "65536", "net.ipv4.tcp_ehash_entries": ""},
		set: lines(tuning, "net.ipv4.tcp_max_syn_backlog = 65536")},
	{name: "SYN backlog lower", running: sysctl.Values{"net.ipv4.tcp_max_syn_backlog": "2047"}, set: lines(tuning, "net.ipv4.tcp_max_syn_backlog = 2047")},
	{name: "SYN backlog without cookies", running: sysctl.Values{"net.ipv4.tcp_max_syn_backlog": "2049", "net.ipv4.tcp_syncookies": "0"},
		set: lines(tuning, "net.ipv4.tcp_max_syn_backlog = 2049"), want: []string{sysctlSyncookiesOff}},

	{name: "ports below", running: sysctl.Values{"net.ipv4.ip_local_port_range": "8081 60999"}, change: listens(8080)},
	{name: "ports within", running: sysctl.Values{"net.ipv4.ip_local_port_range": "8080 60999"}, change: listens(8080), want: []string{sysctlPortRange}},
	{name: "ports above", running: sysctl.Values{"net.ipv4.ip_local_port_range": "32768 61000"}, change: listens(61000), want: []string{sysctlPortRange}},
	{name: "ports of any", running: sysctl.Values{"net.ipv4.ip_local_port_range": "1024 65535"}, change: listens(32768, 60999)},
	{name: "ports reserved", running: sysctl.Values{"net.ipv4.ip_local_port_range": "1024 65535", "net.ipv4.ip_local_reserved_ports": "8079-8081"}, change: listens(8080)},
	{name: "ports not understood", running: sysctl.Values{"net.ipv4.ip_local_port_range": "1024"}, change: listens(8080)},

	{name: "keepalive in time", running: sysctl.Values{"net.netfilter.nf_conntrack_tcp_timeout_established": "7200"}, change: tracks(1)},
	{name: "keepalive late", running: sysctl.Values{"net.netfilter.nf_conntrack_tcp_timeout_established": "7199"}, change: tracks(1), want: []string{sysctlKeepaliveConntrack}},
	{name: "keepalive late and nothing tracked", running: sysctl.Values{"net.netfilter.nf_conntrack_tcp_timeout_established": "7199"}, change: tracks(0)},

	{name: "unknown", set: lines(tuning, "net.ipv4.tcp_typo = 1"), change: lacks("net.ipv4.tcp_typo"), want: []string{sysctlUnknown}},
	{name: "known, and not to be read", set: lines(tuning, "net.ipv4.tcp_fastopen_key = 1")},
	{name: "recycle", set: lines(tuning, "net.ipv4.tcp_tw_recycle = 0"), change: lacks(keyRecycle), want: []string{sysctlRecycle}},
	{name: "overridden", running: sysctl.Values{"net.ipv4.tcp_syn_retries": "3"},
		set: lines(tuning, "net.ipv4.tcp_syn_retries = 2", "net.ipv4.tcp_syn_retries = 3"), want: []string{sysctlOverridden}},
	{name: "said twice", running: sysctl.Values{"net.ipv4.tcp_syn_retries": "3"}, set: lines(tuning, "net.ipv4.tcp_syn_retries = 3", "net.ipv4.tcp_syn_retries = 0x3")},
	{name: "a vendor's line overridden", running: sysctl.Values{"net.ipv4.tcp_syn_retries": "3"},
		set: slices.Concat(lines("/usr/lib/sysctl.d/50-v.conf", "net.ipv4.tcp_syn_retries = 2"), lines(tuning, "net.ipv4.tcp_syn_retries = 3"))},
	{name: "a vendor's line overrides", running: sysctl.Values{"net.ipv4.tcp_syn_retries": "3"},
		set:  slices.Concat(lines("/etc/sysctl.d/10-a.conf", "net.ipv4.tcp_syn_retries = 2"), lines("/usr/lib/sysctl.d/50-v.conf", "net.ipv4.tcp_syn_retries = 3")),
		want: []string{sysctlOverridden}},
	{name: "not applied", running: sysctl.Values{"net.ipv4.tcp_syn_retries": "3"}, set: lines(tuning, "net.ipv4.tcp_syn_retries = 4"), want: []string{sysctlNotApplied}},
	{name: "applied in another order", running: sysctl.Values{"net.ipv4.tcp_allowed_congestion_control": "reno cubic"},
		set: lines(tuning, "net.ipv4.tcp_allowed_congestion_control = cubic  reno")},
	{name: "not applied, but for one", running: sysctl.Values{"net.ipv4.tcp_allowed_congestion_control": "reno cubic"},
		set: lines(tuning, "net.ipv4.tcp_allowed_congestion_control = cubic reno bbr"), want: []string{sysctlNotApplied}},
	{name: "not applied, in an order that counts", running: sysctl.Values{"net.ipv4.tcp_rmem": "1 3 2"},
		set: lines(tuning, "net.ipv4.tcp_rmem = 1 2 3"), want: []string{sysctlNotApplied}},
	{name: "not applied, by a pattern", running: sysctl.Values{"net.ipv4.tcp_syn_retries": "3"}, set: lines(tuning, "net.ipv4.tcp_syn* = 1"),
		want: []string{sysctlNotApplied}},
}

func lacks(key string) func(*observe.Netns) {
	return func(n *observe.Netns) { n.NoSysctl = []string{key} }
}

func orphans(count int) func(*observe.Netns) {
	return func(n *observe.Netns) {
		n.Lasting = []observe.Lasting{
			{State: tracer.StateFinWait2, Orphan: true, Sockets: count - 1, New: 1},
			{State: tracer.StateFinWait2, Sockets: 19}, {State: tracer.StateLastAck, Orphan: true, Sockets: 1000},
		}
	}
}

func timeWaits(inbound int, outgoing string) func(*observe.Netns) {
	return func(n *observe.Netns) {
		n.TimeWaitInbound = inbound
		if outgoing != "" {
			n.Outgoing = []observe.Outgoing{{Local: addr("192.0.2.7"), Remote: addrPort(outgoing), TimeWait: []time.Duration{time.Second}}}
		}
	}
}

func listens(ports ...uint16) func(*observe.Netns) {
	return func(n *observe.Netns) {
		for _, port := range ports {
			n.Listeners = append(n.Listeners, observe.Listener{Local: netip.AddrPortFrom(netip.IPv4Unspecified(), port)},
				observe.Listener{Local: netip.AddrPortFrom(netip.IPv6Unspecified(), port)})
		}
	}
}

func tracks(entries uint64) func(*observe.Netns) {
	return func(n *observe.Netns) { n.Conntrack = &observe.Conntrack{Entries: entries, Max: 262144} }
}

func addr(text string) netip.Addr         { return netip.MustParseAddr(text) }
func addrPort(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }

func TestSettings(t *testing.T) {
	for _, test := range settingTests {
		t.Run(test.name, func(t *testing.T) {
			h := configured(test.running, test.set...)
			// Lines are applied, unless the test says what runs.
			for key := range h.Settings.Keys() {
				if _, says := test.running[key]; !says && kernelDefaults[key] != "" {
					last, _ := h.Settings.Last(key)
					h.Namespaces[0].Sysctls[key] = last.Value
				}
			}
			if test.change != nil {
				test.change(&h.Namespaces[0])
			}
			findings := Diagnose(h)
			qt.Check(t, qt.DeepEquals(idsOf(findings), test.want), qt.Commentf("%+v", findings))
			for _, j := range Judge(h) {
				qt.Check(t, qt.IsTrue(j.Rule == "" || slices.Contains(test.want, j.Rule)), qt.Commentf("%+v", j))
				qt.Check(t, qt.IsTrue(j.Why != ""))
			}
		})
	}
}

// What is not there is not judged.
func TestSettingsAbsent(t *testing.T) {
	bad := lines(tuning, "net.ipv4.tcp_tw_recycle = 1", "net.ipv4.tcp_fin_timeout = 30", "net.ipv4.tcp_max_tw_buckets = 5")
	for _, h := range []*observe.Host{
		{},
		{Settings: &sysctl.Files{Lines: bad}},
		{Settings: &sysctl.Files{Lines: bad}, Namespaces: []observe.Netns{{Inode: 2, Sysctls: kernelDefaults}}},
		{Namespaces: []observe.Netns{{Inode: 1, Host: true}}},
	} {
		qt.Check(t, qt.HasLen(Diagnose(h), 0))
		qt.Check(t, qt.HasLen(Judge(h), 0))
	}
	// Without the size of the table the limit is compared with that of orphans, unless
	// that is set.
	h := &observe.Host{
		Settings:   &sysctl.Files{},
		Memory:     observe.Memory{MaxOrphans: 131072},
		Namespaces: []observe.Netns{{Inode: 1, Host: true, Sysctls: sysctl.Values{"net.ipv4.tcp_max_tw_buckets": "131071"}}},
	}
	qt.Check(t, qt.DeepEquals(idsOf(Diagnose(h)), []string{sysctlMaxTimeWait}))
	h.Settings.Lines = lines(tuning, "net.ipv4.tcp_max_orphans = 131072")
	qt.Check(t, qt.HasLen(Diagnose(h), 0))
}

// A finding says which line it is about, what that overrides, what runs, and what to do.
func TestSettingsFinding(t *testing.T) {
	h := applied(slices.Concat(
		lines("/usr/lib/sysctl.d/50-v.conf", "net.ipv4.tcp_fin_timeout = 20"),
		lines(tuning, "# by whom?", "net.ipv4.tcp_fin_timeout = 30"),
	)...)
	h.Namespaces[0].Sysctls["net.ipv4.tcp_fin_timeout"] = "45"
	findings := Diagnose(h)
	i := slices.IndexFunc(findings, func(f Finding) bool { return f.Rule.ID == sysctlFinTimeout })
	qt.Assert(t, qt.IsTrue(i >= 0))
	f := findings[i]
	qt.Check(t, qt.Equals(f.Subject, "net.ipv4.tcp_fin_timeout"))
	qt.Check(t, qt.Equals(f.Summary, "net.ipv4.tcp_fin_timeout = 30 (/etc/sysctl.d/99-tuning.conf:2): from the next start (45 runs now) it does not shorten TIME_WAIT"))
	qt.Check(t, qt.DeepEquals(f.Facts, []Fact{
		{"sysctl", "net.ipv4.tcp_fin_timeout"}, {"value", "30"}, {"running", "45"}, {"default", "60"},
		{"file", tuning}, {"line", 2}, {"overrides", "/usr/lib/sysctl.d/50-v.conf:1"}, {"fin_wait2_orphans", 0},
	}))
	qt.Assert(t, qt.HasLen(f.Sysctls, 1))
	qt.Check(t, qt.Equals(f.Sysctls[0].Line, "net.ipv4.tcp_fin_timeout = 60"))
	qt.Check(t, qt.StringContains(f.Sysctls[0].Note, "in place of /etc/sysctl.d/99-tuning.conf:2, for without it another"))
	qt.Check(t, qt.StringContains(f.Advice()[0], "in place of /etc/sysctl.d/99-tuning.conf:2: without it another"))
	qt.Check(t, qt.HasLen(f.Once, 0))
	// There is one finding of a line.
	qt.Check(t, qt.IsFalse(slices.Contains(idsOf(findings), sysctlNotApplied)))
}

// Without systemd what is in /etc/sysctl.conf is read.
func TestSettingsWithoutSystemd(t *testing.T) {
	h := configured(nil)
	h.Settings.Conf = sysctl.Conf{Exists: true, Lines: lines(sysctlConf, "net.ipv4.tcp_tw_reuse = 1")}
	qt.Check(t, qt.HasLen(Diagnose(h), 0))
	qt.Check(t, qt.HasLen(Judge(h), 0))
	h.Settings.Systemd = true
	qt.Check(t, qt.Equals(Diagnose(h)[0].Summary, "/etc/sysctl.conf sets 1 sysctl of TCP, and systemd-sysctl does not read it"))
	qt.Check(t, qt.HasLen(Judge(h), 1))
}

// A line to reserve ports has those that are reserved already.
func TestSettingsReservedPorts(t *testing.T) {
	h := applied(lines(tuning, "net.ipv4.ip_local_port_range = 1024 65000", "net.ipv4.ip_local_reserved_ports = 9000-9010,7000")...)
	listens(8081, 8080, 3306, 9005, 22, 40000)(&h.Namespaces[0])
	findings := Diagnose(h)
	qt.Assert(t, qt.HasLen(findings, 1))
	qt.Check(t, qt.Equals(findings[0].Sysctls[0].Line, "net.ipv4.ip_local_reserved_ports = 3306,7000,8080-8081,9000-9010"))
	qt.Check(t, qt.StringContains(findings[0].Sysctls[0].Note, "in place of /etc/sysctl.d/99-tuning.conf:2"))
}

// Many lines, or many namespaces, are no more than a screen.
func TestSettingsFold(t *testing.T) {
	h := configured(nil)
	for i := range 300 {
		values := maps.Clone(kernelDefaults)
		values["net.ipv4.tcp_fin_timeout"] = "30"
		h.Namespaces = append(h.Namespaces, observe.Netns{Inode: uint32(i + 2), Sysctls: values})
	}
	findings := Diagnose(h)
	qt.Assert(t, qt.HasLen(findings, 1))
	qt.Check(t, qt.Equals(findings[0].Netns.Inode, 2))
	qt.Check(t, qt.StringContains(findings[0].Summary, "299 other network namespaces"))

	var texts []string
	for i := range 23 {
		texts = append(texts, fmt.Sprintf("net.ipv4.tcp_typo%02d = 1", i))
	}
	h = configured(nil, lines(tuning, texts...)...)
	for _, line := range h.Settings.Lines {
		h.Namespaces[0].NoSysctl = append(h.Namespaces[0].NoSysctl, line.Key)
	}
	findings = Diagnose(h)
	qt.Assert(t, qt.HasLen(findings, handful+1))
	last := findings[handful]
	qt.Check(t, qt.Matches(last.Summary, `the same of 18 more: net.ipv4.tcp_typo05, .*, net.ipv4.tcp_typo09 and 13 more`))
	qt.Check(t, qt.StringContains(fmt.Sprint(fact(&last, "sysctl")), "tcp_typo22"))
	qt.Check(t, qt.Equals(last.Subject, "net.ipv4.tcp_typo05 and 17 more"))
	qt.Check(t, qt.Equals(last.Facts[0], Fact{"more", 18}))
	qt.Check(t, qt.Equals(last.Folded(), 18))
	qt.Check(t, qt.Equals(findings[0].Folded(), 0))
	qt.Check(t, qt.HasLen(Judge(h), 23))
}

// A line that helps goes where another does not override it.
func TestInstead(t *testing.T) {
	h := configured(nil, slices.Concat(
		lines(sysctl.Cmdline, "net.ipv4.tcp_retries1 = 4"),
		lines("/usr/lib/sysctl.d/50-v.conf", "net.ipv4.tcp_syn_retries = 2", "net.ipv4.tcp_sack = 1", "net.ipv4.tcp_key* = 1"),
		lines("/etc/sysctl.d/60-a.conf", "net.ipv4.tcp_sack = 0"),
		lines("/usr/lib/sysctl.d/95-v.conf", "net.ipv4.tcp_dsack = 1"),
		lines(tuning, "net.ipv4.tcp_fin_timeout = 30"),
	)...)
	for key, want := range map[string]string{
		"net.ipv4.tcp_fin_timeout":    tuning + ":1",
		"net.ipv4.tcp_sack":           "/etc/sysctl.d/60-a.conf:1",
		"net.ipv4.tcp_dsack":          "/usr/lib/sysctl.d/95-v.conf:1",
		"net.ipv4.tcp_syn_retries":    "",
		"net.ipv4.tcp_keepalive_time": "",
		"net.ipv4.tcp_retries1":       "",
		"net.ipv4.tcp_retries2":       "",
	} {
		qt.Check(t, qt.Equals(Instead(h, &Setting{Line: key + " = 1"}, "/etc/sysctl.d/90-tcp.conf"), want), qt.Commentf("%s", key))
	}
	qt.Check(t, qt.Equals(Instead(&observe.Host{}, &Setting{Line: "a = 1"}, tuning), ""))
}

// Why something does not exist is said as far as it can be.
func TestNoSysctlReason(t *testing.T) {
	for key, says := range map[string]string{
		"net.ipv4.tcp_mem":                          "the whole host's",
		"net.ipv4.tcp_typo":                         "mistyped, or this kernel",
		"net.netfilter.nf_conntrack_max":            "connection tracking is not loaded",
		"net.ipv4.netfilter.ip_conntrack_tcp_loose": "since Linux 4.9",
	} {
		qt.Check(t, qt.StringContains(noSysctlReason(settingOf(key)), says), qt.Commentf("%s", key))
		qt.Check(t, qt.IsTrue(bearsOnTCP(key)), qt.Commentf("%s", key))
	}
}

// A line that is no assignment sets nothing.
func TestSettingsNotUnderstood(t *testing.T) {
	h := configured(nil)
	h.Settings.Problems = []sysctl.Problem{
		{File: tuning, Number: 3, Text: "net.ipv4.tcp_syncookies 0", Err: errors.New("no assignment")},
		{File: tuning, Number: 4, Text: "vm.swappiness 0", Err: errors.New("no assignment")},
		{File: "/etc/sysctl.d/gone.conf", Err: fs.ErrNotExist},
	}
	findings := Diagnose(h)
	qt.Assert(t, qt.HasLen(findings, 1))
	qt.Check(t, qt.Equals(findings[0].Rule.ID, sysctlUnknown))
	qt.Check(t, qt.Equals(findings[0].Subject, tuning+":3"))
}

// Files may hold anything.
func TestSettingsHostile(t *testing.T) {
	hostile := "\x1b[2J\xff=" + strings.Repeat("9", 1000)
	for i := range settings {
		key := settings[i].key
		h := configured(sysctl.Values{key: hostile}, lines(tuning, key+" = "+hostile)...)
		listens(8080)(&h.Namespaces[0])
		tracks(1)(&h.Namespaces[0])
		Diagnose(h)
		qt.Check(t, qt.IsTrue(len(Judge(h)) == 1))
	}
}

// The table has each sysctl once, and what it says has an end.
func TestSettingsTable(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range settings {
		qt.Check(t, qt.IsFalse(seen[s.key]), qt.Commentf("%s", s.key))
		seen[s.key] = true
		qt.Check(t, qt.IsTrue(s.does == "" || strings.HasSuffix(s.does, ".")), qt.Commentf("%s", s.key))
		qt.Check(t, qt.IsTrue(bearsOnTCP(s.key)), qt.Commentf("%s", s.key))
	}
}
