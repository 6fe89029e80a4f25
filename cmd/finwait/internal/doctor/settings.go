package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/prose"
	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
)

// Verdict says what a line of a sysctl file is worth.
type Verdict uint8

// The verdicts.
const (
	// VerdictDefault sets what the kernel has by default: the line does nothing.
	VerdictDefault Verdict = iota
	// VerdictEffective does what the sysctl is for.
	VerdictEffective
	// VerdictNoEffect changes nothing on this host, or not what it is set for.
	VerdictNoEffect
	// VerdictHarmful does more harm than good.
	VerdictHarmful
	// VerdictOverridden is set anew by another line.
	VerdictOverridden
	// VerdictUnknown is for a sysctl that does not exist here.
	VerdictUnknown
)

// String returns the verdict as the JSON has it, such as "no-effect".
func (v Verdict) String() string {
	return [...]string{"default", "effective", "no-effect", "harmful", "overridden", "unknown"}[v]
}

// Judgement is what is to be said of a line of a sysctl file.
type Judgement struct {
	// Key is the sysctl. A line with a pattern has a judgement for each that it sets.
	Key  string
	Line sysctl.Line

	Verdict Verdict
	// Why is the reason, one sentence or some.
	Why string
	// Running is the value that runs in the host's own network namespace, "" if it is
	// not known.
	Running string
	// Rule is the id of the finding that the line is in, "" if it is in none.
	Rule string
}

// Judge judges the lines of the host's sysctl files that bear on TCP, in the order in
// which they are read. There are none if the files or the host's own network namespace
// were not looked at.
func Judge(h *observe.Host) []Judgement {
	n := filesNetns(h)
	if n == nil {
		return nil
	}
	var all []Judgement
	for _, key := range keysSet(h, n) {
		lines := h.Settings.All(key)
		for _, line := range lines {
			all = append(all, judgeLine(h, n, key, line))
		}
	}
	slices.SortStableFunc(all, func(a, b Judgement) int {
		return cmp.Compare(position(h.Settings, a.Line), position(h.Settings, b.Line))
	})
	for _, line := range unreadLines(h) {
		all = append(all, Judgement{
			Key: line.Key, Line: line, Verdict: VerdictNoEffect, Why: "systemd-sysctl does not read this file.",
			Running: n.Sysctls[line.Key], Rule: sysctlConfNotRead,
		})
	}
	return all
}

// judgeLine judges a line that sets a key, maybe by a pattern.
func judgeLine(h *observe.Host, n *observe.Netns, key string, line sysctl.Line) Judgement {
	j := Judgement{Key: key, Line: line, Running: n.Sysctls[key]}
	s := settingOf(key)
	o := s.opinion(atNextStart(h, n), line.Value)
	last, set := h.Settings.Last(key)
	switch {
	case o.gone:
		j.Verdict, j.Why, j.Rule = o.verdict, o.why, o.rule
	case slices.Contains(n.NoSysctl, key):
		j.Verdict, j.Why, j.Rule = VerdictUnknown, noSysctlReason(s), sysctlUnknown
	case !set:
		j.Verdict, j.Why = VerdictOverridden, "A line with nothing but the name and a - before it makes it void."
	case line.Exclude:
		j.Verdict, j.Why = VerdictEffective, "It keeps patterns from setting it."
	case line != last:
		j.Verdict, j.Why = VerdictOverridden, fmt.Sprintf("%s sets it to %s.", where(last), last.Value)
		if sysctl.Equal(line.Value, last.Value) {
			j.Why = where(last) + " sets it too, to the same value."
		}
		if isContested(line, last) {
			j.Rule = sysctlOverridden
		}
	default:
		j.Verdict, j.Why, j.Rule = o.verdict, o.why, o.rule
		if running, ok := n.Sysctls[key]; ok && !isApplied(key, line.Value, running) && j.Rule == "" {
			j.Rule = sysctlNotApplied
		}
	}
	return j
}

// position is the place of a line among all.
func position(files *sysctl.Files, line sysctl.Line) int {
	return slices.IndexFunc(files.Lines, func(l sysctl.Line) bool { return l == line })
}

// filesNetns returns the namespace that the sysctl files are for, nil if that or the
// files were not looked at.
func filesNetns(h *observe.Host) *observe.Netns {
	if h.Settings == nil {
		return nil
	}
	i := slices.IndexFunc(h.Namespaces, func(n observe.Netns) bool { return n.Host })
	if i < 0 {
		return nil
	}
	return &h.Namespaces[i]
}

// keysSet returns the sysctls that the files set, by name or by pattern, and that bear
// on TCP.
func keysSet(h *observe.Host, n *observe.Netns) []string {
	set := map[string]bool{}
	for key := range h.Settings.Keys() {
		if !strings.ContainsAny(key, "*?[") && bearsOnTCP(key) {
			set[key] = true
		}
	}
	for key := range n.Sysctls {
		if bearsOnTCP(key) && len(h.Settings.All(key)) > 0 {
			set[key] = true
		}
	}
	return sortedKeys(set)
}

func sortedKeys(set map[string]bool) []string {
	keys := make([]string, 0, len(set))
	for key := range set {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// bearsOnTCP reports whether a sysctl bears on TCP, or whoever set it may have thought so.
func bearsOnTCP(key string) bool {
	if !strings.HasPrefix(key, "net.") && !strings.HasPrefix(key, "ipv4.") {
		return false
	}
	name := key[strings.LastIndexByte(key, '.')+1:]
	for _, prefix := range []string{"tcp_", "ip_local_", "nf_conntrack_", "ip_conntrack_", "somaxconn"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// where says where a line is.
func where(l sysctl.Line) string {
	if l.Number == 0 {
		return l.File
	}
	return l.File + ":" + strconv.Itoa(l.Number)
}

// world is the sysctls of a network namespace that are in force together: those that run,
// or those that it will have when the host has started anew.
type world struct {
	host  *observe.Host
	netns *observe.Netns
	next  bool
	// inFile tells that the value that is judged is that of a line of the host's files.
	inFile bool
}

func atNextStart(h *observe.Host, n *observe.Netns) world { return world{h, n, true, true} }
func running(h *observe.Host, n *observe.Netns) world     { return world{h, n, false, false} }

// value returns the value of a sysctl. What no file sets is taken to be set again as it
// runs.
func (w world) value(key string) (string, bool) {
	if w.next {
		if line, ok := w.host.Settings.Last(key); ok {
			return line.Value, true
		}
	}
	v, ok := w.netns.Sysctls[key]
	return v, ok
}

// is reports whether the value of a sysctl is known, and is this.
func (w world) is(key, value string) bool {
	v, ok := w.value(key)
	return ok && sysctl.Equal(v, value)
}

func (w world) int(key string) (int64, bool) {
	v, ok := w.value(key)
	if !ok {
		return 0, false
	}
	return sysctl.ParseInt(v)
}

// slots returns the number of slots in the namespace's table of connections, from which
// the kernel takes defaults (tcp_sk_init, tcp_init).
func (w world) slots() (int64, bool) {
	// It is negative if the table is the host's, and absent before Linux 6.1.
	if n, ok := w.netns.Sysctls.Int("net.ipv4.tcp_ehash_entries"); ok && n != 0 {
		return max(n, -n), true
	}
	if n := w.host.Memory.EstablishedHash; n > 0 {
		return int64(n), true
	}
	if n := w.host.Memory.MaxOrphans; n > 0 && w.host.Settings != nil {
		if _, set := w.host.Settings.Last("net.ipv4.tcp_max_orphans"); !set {
			return 2 * int64(n), true
		}
	}
	return 0, false
}

// share returns a default that is a share of the table of connections.
func (w world) share(share, least int64) (int64, bool) {
	slots, ok := w.slots()
	return max(slots/share, least), ok
}

// opinion is what is to be said of a value.
type opinion struct {
	verdict Verdict
	// says goes after "key = value" in a summary; why is the whole of it.
	says, why string
	// rule is the id of the rule that speaks of it, "" if there is nothing to find.
	rule     string
	severity Severity
	facts    []Fact
	// instead are the lines to have instead; nil is the default's.
	instead []Setting
	// gone tells that no kernel that finwait runs on has the sysctl.
	gone bool
}

// judged makes the find of a rule that is about values of which the table of settings
// knows what to say. Namespaces that have the same, the host's own aside, are one
// finding.
func judged(id string) func(*observe.Host) []Finding {
	return func(h *observe.Host) []Finding {
		var all []Finding
		same := map[string]int{} // places in all, by summary
		more := map[int]int{}
		for i := range h.Namespaces {
			n := &h.Namespaces[i]
			for j := range settings {
				f, ok := settings[j].find(h, n, id)
				if !ok {
					continue
				}
				if at, known := same[f.Summary]; known {
					more[at]++
					continue
				}
				if !n.Host {
					same[f.Summary] = len(all)
				}
				all = append(all, f)
			}
		}
		for at, n := range more {
			all[at].Facts = append(all[at].Facts, Fact{"other_network_namespaces", n})
			all[at].Summary += ", here and in " + prose.Count(uint64(n), "other network namespace", "other network namespaces")
		}
		return foldSettings(all)
	}
}

// find returns what the rule of that id has to say of the setting in a namespace: of
// the line that sets it, or else of the value that runs.
func (s *setting) find(h *observe.Host, n *observe.Netns, id string) (Finding, bool) {
	now, runs := n.Sysctls[s.key]
	var line sysctl.Line
	set := false
	if n.Host && h.Settings != nil {
		line, set = h.Settings.Last(s.key)
	}
	var o opinion
	value, at := line.Value, ""
	if set {
		o = s.opinion(atNextStart(h, n), value)
		at = " (" + where(line) + ")" + s.fromNextStart(h, n, value, id)
	}
	if runs && o.rule != id {
		set = set && isApplied(s.key, line.Value, now)
		o, value, at = s.opinion(world{h, n, false, set}, now), now, ""
		if set {
			at = " (" + where(line) + ")"
		}
	}
	if o.rule != id {
		return Finding{}, false
	}
	f := Finding{
		Severity: o.severity, Netns: n, Subject: s.key, Facts: []Fact{{"sysctl", s.key}, {"value", value}},
		Summary: fmt.Sprintf("%s = %s%s %s", s.key, value, at, o.says),
	}
	if runs {
		f.Facts = append(f.Facts, Fact{"running", now})
	}
	if def, ok := s.defaultIn(running(h, n)); ok {
		f.Facts = append(f.Facts, Fact{"default", def})
	}
	if set {
		f.Facts = append(f.Facts, lineFacts(h, s.key, line)...)
	}
	f.Facts = append(f.Facts, o.facts...)
	s.cure(&f, running(h, n), line, set)
	if o.instead != nil {
		f.Sysctls, f.Once = o.instead, nil
	}
	return f, true
}

// fromNextStart says that what a rule has to say of the value of a line is not true yet, if
// so: something else runs, or something else with it.
func (s *setting) fromNextStart(h *observe.Host, n *observe.Netns, value, id string) string {
	now, runs := n.Sysctls[s.key]
	switch {
	case !runs:
		return ""
	case !isApplied(s.key, value, now):
		return ": from the next start (" + orNothing(now) + " runs now) it"
	case s.opinion(world{h, n, false, true}, now).rule != id:
		return ": from the next start it"
	}
	return ""
}

// overridesOther reports whether another line would set a sysctl, and not to its default,
// if this one were not there.
func overridesOther(h *observe.Host, key string, line sysctl.Line, def string) bool {
	return slices.ContainsFunc(h.Settings.All(key), func(l sysctl.Line) bool {
		return l != line && !l.Exclude && !sysctl.Equal(l.Value, def)
	})
}

func placeFacts(line sysctl.Line) []Fact {
	facts := []Fact{{"file", line.File}}
	if line.Number > 0 {
		facts = append(facts, Fact{"line", line.Number})
	}
	return facts
}

// lineFacts say where a line is, and which lines it overrides.
func lineFacts(h *observe.Host, key string, line sysctl.Line) []Fact {
	facts := placeFacts(line)
	var overrides []string
	for _, l := range h.Settings.All(key) {
		if l != line && !l.Exclude {
			overrides = append(overrides, where(l))
		}
	}
	if len(overrides) > 0 {
		facts = append(facts, Fact{"overrides", strings.Join(overrides, ", ")})
	}
	return facts
}

// foldSettings is fold for settings: the finding that stands for those beyond a handful has
// their lines, and names some of them.
func foldSettings(all []Finding) []Finding {
	if len(all) <= handful+1 {
		return all
	}
	rest := all[handful:]
	var subjects []string
	last := Finding{Netns: rest[0].Netns, Sysctls: []Setting{}}
	var places []string
	for _, f := range rest {
		last.Severity = max(last.Severity, f.Severity)
		if !slices.Contains(subjects, f.Subject) {
			subjects = append(subjects, f.Subject)
		}
		if f.Netns != last.Netns {
			last.Netns = nil
		}
		last.Sysctls, last.Once = append(last.Sysctls, f.Sysctls...), append(last.Once, f.Once...)
		if f.cure != nil && f.cure.place != "" {
			places = append(places, f.cure.place)
		}
	}
	if len(places) > 0 {
		last.cure = &cure{place: strings.Join(places, ", ")}
	}
	last.Subject = subjects[0]
	if len(subjects) > 1 {
		last.Subject = fmt.Sprintf("%s and %d more", subjects[0], len(subjects)-1)
	}
	last.Summary = fmt.Sprintf("the same of %d more: %s", len(rest), aHandful(subjects))
	last.Facts = []Fact{{"more", len(rest)}, {"sysctl", strings.Join(subjects, ", ")}}
	return append(all[:handful:handful], last)
}

// aHandful lists the first of them, and says how many there are besides.
func aHandful(all []string) string {
	text := strings.Join(all[:min(handful, len(all))], ", ")
	if more := len(all) - handful; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
