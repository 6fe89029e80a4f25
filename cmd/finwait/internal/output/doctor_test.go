package output

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/cmd/finwait/internal/doctor"
	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
	"github.com/finwait/finwait/tracer"
)

// The rules are made up: their text is not what is tested.
var (
	portsRule = &doctor.Rule{
		ID: "ports-gone", Title: "No ports are left", Worst: doctor.Critical, When: "There are no ports.", Why: "Connections fail.",
		Application: []string{"Keep connections open, in a pool of them, which is what any library for the protocol has had for many years.", "Second advice."},
		Sysctls:     []doctor.Setting{{Line: "net.ipv4.ip_local_port_range = 1024 65535", Note: "more ports"}},
		Useless:     []string{"net.ipv4.tcp_fin_timeout: no port is free sooner."},
		Check:       "finwait doctor.", References: []string{"RFC 6056 section 3.2"},
	}
	leakRule = &doctor.Rule{
		ID: "leak", Title: "Sockets are not closed", Worst: doctor.Warning, When: "They stay.", Why: "Files run out.",
		Application: []string{"Close them."}, Check: "finwait stuck.", References: []string{"tcp(7)"},
	}
	noteRule = &doctor.Rule{
		ID: "note", Title: "Many of something", Worst: doctor.Info, When: "There are many.", Why: "It is good to know.",
		Application: []string{"Nothing."}, Check: "finwait count.", References: []string{"tcp(7)"},
	}
)

var doctorBegan = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func healthyHost() *observe.Host {
	h := &observe.Host{
		Began: doctorBegan, Ended: doctorBegan.Add(10 * time.Second),
		Namespaces: []observe.Netns{{Inode: 4026531840, Host: true}, {Inode: 4026532200, Name: "blue", Path: "/run/netns/blue"}, {Inode: 4026532300, Member: 4711}},
		Traffic: &observe.Traffic{
			Source: observe.SourceKernel, Since: doctorBegan, Until: doctorBegan.Add(10 * time.Second), Opened: 10_130,
		},
	}
	h.Namespaces[0].States[tracer.StateEstablished] = 120
	h.Namespaces[0].States[tracer.StateTimeWait] = 40_000
	h.Namespaces[1].States[tracer.StateTimeWait] = 990
	h.Namespaces[2].States[tracer.StateListen] = 7
	return h
}

func sickHost() (*observe.Host, []doctor.Finding) {
	h := healthyHost()
	blue, other := &h.Namespaces[1], &h.Namespaces[2]
	finding := func(r *doctor.Rule, n *observe.Netns, summary string) doctor.Finding {
		return doctor.Finding{Rule: r, Severity: r.Worst, Netns: n, Subject: "10.0.0.1 → 10.0.0.2:443", Summary: summary}
	}
	findings := []doctor.Finding{
		finding(portsRule, &h.Namespaces[0], "10.0.0.1 → 10.0.0.2:443: 28,101 of 28,232 ports are taken, and at 120 a second the rest is gone in 1.1 s"),
		finding(portsRule, blue, "second"), finding(portsRule, other, "third"), finding(portsRule, blue, "fourth"), finding(portsRule, blue, "fifth"),
		finding(leakRule, other, "java/4711 holds 23 sockets in CLOSE_WAIT"),
		finding(noteRule, nil, "40,990 of something"),
	}
	findings[2].Sysctls = []doctor.Setting{
		{Line: "net.ipv4.ip_local_port_range = 2048 65535", Note: "two\n\t\tlines"}, {Line: "net.ipv4.tcp_mem = 1 2 3", Note: "for all"}, {Line: "net.ipv4.tcp_tw_reuse = 1", Note: "more"},
	}
	findings[0].Facts = []doctor.Fact{
		{Name: "ports", Value: uint64(28101)}, {Name: "time_left_seconds", Value: 1.1}, {Name: "never_seconds", Value: math.Inf(1)}, {Name: "known", Value: true},
	}
	h.Traffic.Lost, h.Traffic.Unplaced = 23, 1
	h.Unseen = []observe.Unseen{{What: "the processes that hold sockets", Why: "12 processes may not be looked into; run as root, which is what it takes"}}
	return h, findings
}

func TestDoctorHealthy(t *testing.T) {
	h := healthyHost()
	text := string(AppendDoctorText(nil, h, nil, Options{}))
	qt.Check(t, qt.Equals(text, "healthy: 10 s watched, 3 network namespaces, 41,117 sockets (TIME_WAIT 40,990,\n"+
		"  ESTABLISHED 120, LISTEN 7), 1,013 sockets opened/s\n"))

	h.Unseen = []observe.Unseen{{What: "a", Why: "b"}}
	text = string(AppendDoctorText(nil, h, nil, Options{}))
	qt.Check(t, qt.Matches(text, `(?s)healthy as far as can be seen: .*\n\nNot seen:\n  a: b\n`))

	// What is not known is not there.
	h = &observe.Host{Began: doctorBegan, Ended: doctorBegan.Add(1500 * time.Millisecond), Namespaces: make([]observe.Netns, 1)}
	qt.Check(t, qt.Equals(string(AppendDoctorText(nil, h, nil, Options{})), "healthy: 1.5 s watched, 1 network namespace, 0 sockets\n"))
	line := string(AppendDoctorJSON(nil, h, nil))
	qt.Check(t, qt.Equals(line, `{"time":"2026-03-04T05:06:08.5Z","watched_seconds":1.5,"namespaces":1,"sockets":{},"findings":[]}`+"\n"))
}

// A log says nothing of this host.
func TestDoctorLog(t *testing.T) {
	h := &observe.Host{Traffic: &observe.Traffic{Source: observe.SourceLog, Since: doctorBegan, Until: doctorBegan.Add(time.Minute), Opened: 120, Estimated: true}}
	text := string(AppendDoctorText(nil, h, nil, Options{}))
	qt.Check(t, qt.Equals(text, "healthy: about 2.0 sockets opened/s in the log of 2026-03-04T05:06:07Z to\n  2026-03-04T05:07:07Z\n"))
	line := string(AppendDoctorJSON(nil, h, nil))
	qt.Check(t, qt.Equals(line, `{"traffic":{"source":"log","since":"2026-03-04T05:06:07Z","until":"2026-03-04T05:07:07Z","opened":120,"estimated":true},"findings":[]}`+"\n"))

	h.Traffic = &observe.Traffic{Source: observe.SourceLog}
	qt.Check(t, qt.Equals(string(AppendDoctorText(nil, h, nil, Options{})), "healthy: 0 sockets opened in the log\n"))
	qt.Check(t, qt.Equals(string(AppendDoctorJSON(nil, h, nil)), `{"traffic":{"source":"log","opened":0},"findings":[]}`+"\n"))
}

func TestDoctorFindings(t *testing.T) {
	h, findings := sickHost()
	golden(t, "doctor.txt.golden", AppendDoctorText(nil, h, findings, Options{}))
	golden(t, "doctor.json.golden", AppendDoctorJSON(nil, h, findings))
	qt.Check(t, qt.Equals(string(AppendDoctorText([]byte("before "), h, findings, Options{})), "before "+string(AppendDoctorText(nil, h, findings, Options{}))))

	// Colour is in the first word, and in those of severity.
	colored := string(AppendDoctorText(nil, h, findings, Options{Color: true}))
	for _, want := range []string{tintBroken + "5 critical, 1 warning" + tintOff + ": ", "\n" + tintBroken + "critical" + tintOff + "   ports-gone: No ports are left\n", "\n" + tintTimeWait + "warning" + tintOff + "    leak: Sockets are not closed\n", "\ninfo       note: Many of something\n"} {
		qt.Check(t, qt.StringContains(colored, want))
	}
	for _, tint := range []string{tintOpen, tintTimeWait, tintBroken, tintOff} {
		colored = strings.ReplaceAll(colored, tint, "")
	}
	qt.Check(t, qt.Equals(colored, string(AppendDoctorText(nil, h, findings, Options{}))))
	qt.Check(t, qt.StringContains(string(AppendDoctorText(nil, healthyHost(), nil, Options{Color: true})), tintOpen+"healthy"+tintOff))
}

// A line takes the place of one that would override it.
func TestDoctorInstead(t *testing.T) {
	h, findings := sickHost()
	h.Settings = &sysctl.Files{Lines: []sysctl.Line{{Key: "net.ipv4.ip_local_port_range", Value: "1 2", File: "/etc/sysctl.d/99-\x1b.conf", Number: 3}}}
	text := string(AppendDoctorText(nil, h, findings[:2], Options{}))
	qt.Check(t, qt.StringContains(text, "\n           in place of /etc/sysctl.d/99-\\x1b.conf:3, then: sysctl --system\n"))
	qt.Check(t, qt.StringContains(text, "\n           nsenter --net=/run/netns/blue sysctl -w net.ipv4.ip_local_port_range='1024 65535'\n")) // where no file counts
	line := string(AppendDoctorJSON(nil, h, findings[:2]))
	qt.Check(t, qt.StringContains(line, `"file":"/etc/sysctl.d/90-tcp.conf","instead":"/etc/sysctl.d/99-\u001b.conf:3"`))
	qt.Check(t, qt.Equals(strings.Count(line, `"instead"`), 1))
}

// A finding may know better what to do than its rule.
func TestDoctorAdvice(t *testing.T) {
	h, findings := sickHost()
	f := &findings[5]
	f.Netns, f.Application, f.Sysctls = &h.Namespaces[0], []string{"Delete a.conf:3.", "More."}, []doctor.Setting{}
	f.Once = []doctor.Setting{{Line: "net.ipv4.ip_local_port_range = 1 2", Note: "the default"}}
	text := string(AppendDoctorText(nil, h, findings[5:6], Options{}))
	qt.Check(t, qt.StringContains(text, "\n  do:      Delete a.conf:3.\n  sysctl:  sysctl -w net.ipv4.ip_local_port_range='1 2'\n           until the next start\n"))
	line := string(AppendDoctorJSON(nil, h, findings[5:6]))
	qt.Check(t, qt.StringContains(line, `"application":["Delete a.conf:3.","More."],"sysctls":[{"line":"net.ipv4.ip_local_port_range = 1 2","note":"the default","command":"sysctl -w net.ipv4.ip_local_port_range='1 2'"}]`))
	f.Application = []string{} // nothing at all
	qt.Check(t, qt.IsFalse(strings.Contains(string(AppendDoctorText(nil, h, findings[5:6], Options{})), "do:")))
}

// Whatever the summary says, it is clear what it is about, and how many are not told.
func TestDoctorSubject(t *testing.T) {
	h := healthyHost()
	finding := func(subject, summary string, folded int) doctor.Finding {
		f := doctor.Finding{Rule: leakRule, Severity: doctor.Warning, Netns: &h.Namespaces[1], Subject: subject, Summary: summary}
		if folded > 0 {
			f.Facts = []doctor.Fact{{Name: "others", Value: folded}}
		}
		return f
	}
	findings := []doctor.Finding{
		finding("10.0.0.1", "23 are taken", 0), finding("10.0.0.2", "at 10.0.0.2 23 are taken", 0), finding("others", "the same is true of 18 others", 18),
	}
	text := string(AppendDoctorText(nil, h, findings, Options{}))
	qt.Check(t, qt.StringContains(text, "\n  netns blue: 10.0.0.1: 23 are taken\n  netns blue: at 10.0.0.2 23 are taken\n  netns blue: the same is true of 18 others\n"))
	findings = append([]doctor.Finding{findings[0], findings[0]}, findings...)
	text = string(AppendDoctorText(nil, h, findings, Options{}))
	qt.Check(t, qt.StringContains(text, "  and 19 more, which --format json has\n"))
}

// One screen is enough for three findings, and however many there are they are not many more.
func TestDoctorScreen(t *testing.T) {
	h, findings := sickHost()
	h.Unseen, h.Traffic.Lost, h.Traffic.Unplaced = nil, 0, 0
	text := AppendDoctorText(nil, h, []doctor.Finding{findings[0], findings[5], findings[6]}, Options{})
	qt.Check(t, qt.IsTrue(strings.Count(string(text), "\n") <= 24), qt.Commentf("%s", text))

	var many []doctor.Finding
	for i := range 7 {
		rule := *leakRule
		rule.ID = fmt.Sprintf("leak-%02d", i)
		for range 23 {
			many = append(many, doctor.Finding{Rule: &rule, Severity: doctor.Warning, Summary: rule.ID + " is found"})
		}
	}
	lines := strings.Split(string(AppendDoctorText(nil, h, many, Options{})), "\n")
	count := func(line string) (n int) {
		for _, l := range lines {
			if l == line {
				n++
			}
		}
		return n
	}
	qt.Check(t, qt.Equals(count("  leak-02 is found"), shownFindings))
	qt.Check(t, qt.Equals(count("  leak-03 is found"), 1))
	qt.Check(t, qt.Equals(count("warning    leak-06: Sockets are not closed"), 1))
	qt.Check(t, qt.Equals(count("  check:   finwait stuck."), shownRules))
	qt.Check(t, qt.IsTrue(len(lines) < 50), qt.Commentf("%s", strings.Join(lines, "\n")))
}

func TestRuleText(t *testing.T) {
	golden(t, "doctor-rule.txt.golden", AppendRuleText(nil, portsRule))
	golden(t, "doctor-rule.json.golden", AppendRuleJSON(nil, portsRule))
	golden(t, "doctor-list.txt.golden", AppendRuleList(nil, []*doctor.Rule{portsRule, leakRule, noteRule}))
	for _, r := range doctor.Rules() {
		assertLines(t, AppendRuleText(nil, r))
		assertObject(t, AppendRuleJSON(nil, r))
	}
	assertLines(t, AppendRuleList(nil, doctor.Rules()))
}

// assertLines expects lines for a terminal of 80 columns, but for those that are to be
// copied.
func assertLines(t *testing.T, text []byte) {
	t.Helper()
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		assertSafe(t, []byte(line))
		qt.Assert(t, qt.Equals(strings.TrimRight(line, " "), line))
		word := strings.Fields(line + " x")[0]
		qt.Assert(t, qt.IsTrue(utf8.RuneCountInString(line) < 80 || len(word) > 60 || strings.Contains(line, " = ") || strings.Contains(line, " sysctl -w ")), qt.Commentf("%q", line))
	}
}

func assertObject(t *testing.T, line []byte) {
	t.Helper()
	assertOneLine(t, line)
	qt.Assert(t, qt.IsTrue(json.Valid(line)), qt.Commentf("%s", line))
}

// Whatever a process or somebody who makes namespaces chooses harms no terminal.
func TestDoctorHostile(t *testing.T) {
	for _, comm := range hostileComms {
		assertHostile(t, comm, comm)
	}
	assertHostile(t, "$(reboot)", "x; reboot")
}

func assertHostile(t *testing.T, comm, name string) {
	t.Helper()
	h, findings := sickHost()
	h.Namespaces[1].Name, h.Namespaces[1].Path = name, "/run/netns/"+name
	for i := range findings {
		findings[i].Subject, findings[i].Summary = comm, comm+"/23 holds "+comm
		findings[i].Facts = append(findings[i].Facts, doctor.Fact{Name: "comm", Value: comm})
	}
	h.Unseen = append(h.Unseen, observe.Unseen{What: comm, Why: name})
	text := AppendDoctorText(nil, h, findings, Options{})
	for line := range strings.Lines(string(text)) {
		assertSafe(t, []byte(strings.TrimSuffix(line, "\n")))
	}
	if name != "" && !isPlain(name) {
		qt.Assert(t, qt.IsFalse(strings.Contains(string(text), "/run/netns/")), qt.Commentf("%s", text))
	}
	assertObject(t, AppendDoctorJSON(nil, h, findings))
}

func FuzzDoctor(f *testing.F) {
	for _, comm := range hostileComms {
		f.Add(comm, comm)
	}
	f.Fuzz(assertHostile)
}

func TestSetCommand(t *testing.T) {
	ports := &doctor.Setting{Line: "net.ipv4.ip_local_port_range = 1024 65535"}
	one := &doctor.Setting{Line: "net.ipv4.tcp_tw_reuse = 1"}
	for want, of := range map[string]struct {
		n *observe.Netns
		s *doctor.Setting
	}{
		"nsenter --net=/run/netns/blue sysctl -w net.ipv4.tcp_tw_reuse=1":       {&observe.Netns{Name: "blue", Path: "/run/netns/blue", Member: 4711}, one},
		"nsenter -t 4711 -n sysctl -w net.ipv4.tcp_tw_reuse=1":                  {&observe.Netns{Name: "blue", Member: 4711}, one},
		"nsenter -t PID -n sysctl -w net.ipv4.ip_local_port_range='1024 65535'": {&observe.Netns{}, ports},
	} {
		qt.Check(t, qt.Equals(enter(of.n)+" "+setCommand(of.s), want))
	}
	for name, want := range map[string]bool{"blue": true, "cni-1.2_3": true, "": false, "-x": true, "a b": false, "a;b": false, "/a/b": true, "ä": false} {
		qt.Check(t, qt.Equals(isPlain(name), want), qt.Commentf("%q", name))
	}
}
