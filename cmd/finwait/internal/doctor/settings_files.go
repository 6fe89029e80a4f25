package doctor

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/prose"
	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
)

// eachSet makes the find of a rule that looks at what the host's files say of one
// sysctl after the other.
func eachSet(find func(h *observe.Host, n *observe.Netns, key string) (Finding, bool)) func(*observe.Host) []Finding {
	return func(h *observe.Host) (all []Finding) {
		n := filesNetns(h)
		if n == nil {
			return nil
		}
		for _, key := range keysSet(h, n) {
			if f, ok := find(h, n, key); ok {
				f.Netns = n
				all = append(all, f)
			}
		}
		return foldSettings(all)
	}
}

var settingUnknown = &Rule{
	ID:    sysctlUnknown,
	Title: "A sysctl file sets what does not exist",
	Worst: Info,
	When:  "a line of a sysctl file is about TCP, and there is no such sysctl; or it says tcp_ and is neither a comment nor an assignment.",
	Why: `systemd-sysctl passes over a sysctl that does not exist without an error, so whoever wrote the line believes that it does
		something. It is mistyped, or the kernel no longer has it, or does not have it yet. Those of connection tracking exist
		once its module is loaded, which may be after the files were read: then the line has no effect until they are read
		again. Some are the whole host's (tcp_mem, tcp_max_orphans), and no other network namespace has them.`,
	Application: []string{
		"Look for the right name: ls /proc/sys/net/ipv4/tcp_*.",
		"Delete the line if the kernel has no such sysctl any more.",
		"For connection tracking, have the module loaded early: a file in /etc/modules-load.d that says nf_conntrack.",
	},
	Check:      "sysctl NAME says a value; journalctl -b -u systemd-sysctl does not name it.",
	References: []string{"sysctl.d(5)", "modules-load.d(5)", "Documentation/networking/ip-sysctl.rst"},
	find: func(h *observe.Host) []Finding {
		return append(eachSet(findUnknown)(h), findNotUnderstood(h)...)
	},
}

func findUnknown(h *observe.Host, n *observe.Netns, key string) (Finding, bool) {
	if !slices.Contains(n.NoSysctl, key) || key == keyRecycle {
		return Finding{}, false
	}
	lines := h.Settings.All(key)
	if len(lines) == 0 {
		return Finding{}, false
	}
	last := lines[len(lines)-1]
	return Finding{
		Severity: Info,
		Subject:  key,
		Summary:  fmt.Sprintf("%s sets %s, which does not exist here", where(last), key),
		Facts:    append([]Fact{{"sysctl", key}, {"value", last.Value}, {"reason", noSysctlReason(settingOf(key))}}, lineFacts(h, key, last)...),
	}, true
}

// noSysctlReason says why a sysctl may not exist.
func noSysctlReason(s *setting) string {
	name := s.key[strings.LastIndexByte(s.key, '.')+1:]
	switch {
	case s.wholeHost:
		return "It is the whole host's, and does not exist in this network namespace."
	case strings.HasPrefix(s.key, "net.netfilter."):
		return "It does not exist here: it is mistyped, or connection tracking is not loaded."
	case strings.HasPrefix(name, "ip_conntrack_"):
		return "It does not exist here: since Linux 4.9 connection tracking has its sysctls below net.netfilter alone."
	}
	return "It does not exist here: it is mistyped, or this kernel does not have it."
}

// findNotUnderstood finds lines about TCP that are no assignments.
func findNotUnderstood(h *observe.Host) (all []Finding) {
	n := filesNetns(h)
	if n == nil {
		return nil
	}
	for _, p := range h.Settings.Problems {
		if p.Number == 0 || !strings.Contains(p.Text, "tcp_") {
			continue
		}
		all = append(all, Finding{
			Severity: Info,
			Netns:    n,
			Subject:  fmt.Sprintf("%s:%d", p.File, p.Number),
			Summary:  fmt.Sprintf("%s:%d sets nothing: %v", p.File, p.Number, p.Err),
			Facts:    []Fact{{"file", p.File}, {"line", p.Number}, {"text", p.Text}},
		})
	}
	return foldSettings(all)
}

var settingOverridden = &Rule{
	ID:    sysctlOverridden,
	Title: "Sysctl files contradict each other",
	Worst: Info,
	When: `two lines set a sysctl of TCP to different values. It is not found where a file of /etc or /run overrides one of /usr,
		which is what they are for, nor where a line with the name overrides one with a pattern.`,
	Why: `The files of all folders are read in the order of their names, whatever folder they are in, and the last line wins. A file of
		the same name in /etc/sysctl.d replaces the one in /usr/lib/sysctl.d altogether. Whoever wrote the line that loses believes
		that it holds.`,
	Application: []string{"Delete the line that loses, or give the file that should win a name that comes later, such as 99-local.conf."},
	Check:       "systemd-analyze cat-config sysctl.d shows what is read, in order; sysctl NAME what runs.",
	References:  []string{"sysctl.d(5)", "systemd-sysctl.service(8)"},
	find:        eachSet(findOverridden),
}

func findOverridden(h *observe.Host, n *observe.Netns, key string) (Finding, bool) {
	last, set := h.Settings.Last(key)
	if !set || slices.Contains(n.NoSysctl, key) {
		return Finding{}, false
	}
	var lost []string
	for _, line := range h.Settings.All(key) {
		if line != last && isContested(line, last) {
			lost = append(lost, fmt.Sprintf("%s (%s)", where(line), line.Value))
		}
	}
	if len(lost) == 0 {
		return Finding{}, false
	}
	f := Finding{
		Severity: Info,
		Subject:  key,
		Summary:  fmt.Sprintf("%s is %s by %s, which overrides %s", key, last.Value, where(last), aHandful(lost)),
		Facts:    append(placeFacts(last), Fact{"sysctl", key}, Fact{"value", last.Value}, Fact{"overrides", strings.Join(lost, ", ")}),
	}
	if running, ok := n.Sysctls[key]; ok {
		f.Facts = append(f.Facts, Fact{"running", running})
	}
	return f, true
}

// isContested reports whether a line says something else than the one that wins, and
// not because the files are meant to override each other so.
func isContested(line, last sysctl.Line) bool {
	switch {
	case line.Exclude || sysctl.Equal(line.Value, last.Value):
		return false
	case line.Key != last.Key: // one of them is a pattern
		return false
	}
	return !isVendors(line) || isVendors(last)
}

// isVendors reports whether a line came with the system or a package.
func isVendors(line sysctl.Line) bool {
	return strings.HasPrefix(line.File, "/usr/lib/") || strings.HasPrefix(line.File, "/lib/")
}

var settingNotApplied = &Rule{
	ID:    sysctlNotApplied,
	Title: "What runs is not what the sysctl files say",
	Worst: Warning,
	When: `the line of the sysctl files that wins sets a sysctl of TCP to another value than the one that runs in the host's own network
		namespace. Not if another finding says that the line is better not there.`,
	Why: `The file was changed and not applied, or somebody, or a program such as a container runtime, has set the sysctl since the
		host was started; or the kernel refuses the value. Unless it is refused, the host will behave otherwise after its next
		start, when nobody thinks of this line.`,
	Application: []string{
		"If the file is right: sysctl --system applies it now.",
		"If what runs is right: write it into the file, or delete the line if it is the kernel's default.",
	},
	Check:      "sysctl NAME says what the file says.",
	References: []string{"sysctl.d(5)", "systemd-sysctl.service(8)", "sysctl(8)"},
	find:       eachSet(findNotApplied),
}

// unordered are sysctls whose value is a set of words: the kernel has them in an order of
// its own.
var unordered = []string{"net.ipv4.tcp_allowed_congestion_control"}

// rounded are sysctls of which the kernel takes another value than the one written.
var rounded = []string{"net.netfilter.nf_conntrack_buckets", "net.ipv4.tcp_fastopen_key"}

// isApplied reports whether a sysctl that was set to a value runs with it.
func isApplied(key, value, running string) bool {
	if slices.Contains(rounded, key) {
		return true
	}
	if slices.Contains(unordered, key) {
		return slices.Equal(slices.Sorted(strings.FieldsSeq(value)), slices.Sorted(strings.FieldsSeq(running)))
	}
	return sysctl.Equal(value, running)
}

func findNotApplied(h *observe.Host, n *observe.Netns, key string) (Finding, bool) {
	last, set := h.Settings.Last(key)
	now, ok := n.Sysctls[key]
	if !set || !ok || isApplied(key, last.Value, now) {
		return Finding{}, false
	}
	// Of a value that is better not had another finding says what to do with the line.
	s := settingOf(key)
	if s.opinion(atNextStart(h, n), last.Value).rule != "" {
		return Finding{}, false
	}
	f := Finding{
		Severity: Warning,
		Subject:  key,
		Summary:  fmt.Sprintf("%s is %s, and %s says %s", key, orNothing(now), where(last), orNothing(last.Value)),
		Facts:    append([]Fact{{"sysctl", key}, {"value", last.Value}, {"running", now}}, lineFacts(h, key, last)...),
		Sysctls:  []Setting{},
	}
	if s.opinion(running(h, n), now).rule == "" && last.Value != "" {
		f.Sysctls = []Setting{{
			key + " = " + last.Value,
			fmt.Sprintf("what the file says; if what runs is right, put %s there instead: %s", orNothing(now), where(last)),
		}}
	}
	return f, true
}

func orNothing(value string) string {
	if value == "" {
		return "empty"
	}
	return value
}

var settingConfNotRead = &Rule{
	ID:    sysctlConfNotRead,
	Title: "/etc/sysctl.conf sets TCP sysctls, and is not read at the start",
	Worst: Info,
	When:  "systemd runs the host, /etc/sysctl.conf sets sysctls of TCP, and no file of the sysctl.d folders is a link to it.",
	Why: `When the host starts, systemd-sysctl reads the sysctl.d folders alone. Some distributions link to /etc/sysctl.conf from
		there, as Debian did before version 13. Without the link its lines hold only once somebody has called sysctl -p or sysctl
		--system, and are gone after the next start.`,
	Application: []string{
		"Move what is worth keeping to a file in /etc/sysctl.d, such as 99-local.conf.",
		"Or have it read: ln -s ../sysctl.conf /etc/sysctl.d/99-sysctl.conf.",
	},
	Check:      "systemd-analyze cat-config sysctl.d shows its lines.",
	References: []string{"sysctl.d(5)", "sysctl(8)"},
	find:       findConfNotRead,
}

func findConfNotRead(h *observe.Host) []Finding {
	n := filesNetns(h)
	if n == nil {
		return nil
	}
	keys, running := map[string]bool{}, 0
	for _, line := range unreadLines(h) {
		if value, ok := n.Sysctls[line.Key]; ok && !keys[line.Key] && sysctl.Equal(value, line.Value) {
			running++
		}
		keys[line.Key] = true
	}
	if len(keys) == 0 {
		return nil
	}
	return []Finding{{
		Severity: Info,
		Netns:    n,
		Subject:  sysctlConf,
		Summary:  fmt.Sprintf("%s sets %s of TCP, and systemd-sysctl does not read it", sysctlConf, prose.Count(uint64(len(keys)), "sysctl", "sysctls")),
		Facts:    []Fact{{"file", sysctlConf}, {"sysctls", strings.Join(sortedKeys(keys), ", ")}, {"running_all_the_same", running}},
		Sysctls:  []Setting{},
	}}
}

const sysctlConf = "/etc/sysctl.conf"

// unreadLines are the lines of /etc/sysctl.conf that bear on TCP, if nothing reads it. What
// starts hosts without systemd reads it.
func unreadLines(h *observe.Host) (lines []sysctl.Line) {
	if h.Settings.Conf.Read || !h.Settings.Systemd {
		return nil
	}
	for _, line := range h.Settings.Conf.Lines {
		if bearsOnTCP(line.Key) && !line.Exclude {
			lines = append(lines, line)
		}
	}
	return lines
}

// Instead returns the line of the host's sysctl files in whose place a setting goes, such
// as /etc/sysctl.d/99-tuning.conf:3: one in the file that it is meant for would be
// overridden by that line, or contradict it. It is "" if the setting may go there.
func Instead(h *observe.Host, s *Setting, file string) string {
	if h.Settings == nil {
		return ""
	}
	key, _, _ := strings.Cut(s.Line, "=")
	line, set := h.Settings.Last(strings.TrimSpace(key))
	switch {
	case !set || line.File == sysctl.Cmdline || line.Key != strings.TrimSpace(key):
		return "" // patterns do not set what a line names
	case isVendors(line) && path.Base(line.File) < path.Base(file):
		return ""
	}
	return where(line)
}
