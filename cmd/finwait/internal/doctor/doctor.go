// Package doctor says what is wrong with the TCP sockets of a host, from what package
// observe has seen of it: what shows it, why it matters, and what to change.
//
// A rule is data and one function, in the file of what it is about: ports.go,
// timewait.go and so on. To add one, write it and put it into its file's list. Its id,
// once released, stays: machines go by it.
package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/prose"
	"github.com/finwait/finwait/cmd/finwait/internal/suggest"
	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
)

// Severity says how bad a finding is.
type Severity uint8

// The severities.
const (
	// Info is harmless, or does nothing: good to know.
	Info Severity = iota
	// Warning does harm, or will.
	Warning
	// Critical fails connections, or is about to.
	Critical
)

// String returns the severity as the JSON has it, such as "warning".
func (s Severity) String() string { return [...]string{"info", "warning", "critical"}[s] }

// Rule is one thing that can be wrong. But for find it is text, for people: see
// docs/doctor.md, which is made of it. Once it is among [Rules] each text is one line.
type Rule struct {
	// ID is its name, such as "close-wait-leak".
	ID string
	// Title says in a line what is wrong.
	Title string
	// Worst is the severity of its worst finding.
	Worst Severity
	// When says when it is found, with the numbers that decide.
	When string
	// Why says what it does to the host and to its users.
	Why string
	// Application is what to change in an application, first of all.
	Application []string
	// Sysctls are the settings that help, if the application cannot be changed.
	Sysctls []Setting
	// Useless is what is often tried and does not help.
	Useless []string
	// Check says how to see that it has helped.
	Check string
	// References are documents of the kernel, and RFCs with their section.
	References []string

	// find returns what is wrong, nothing on a healthy host.
	find func(*observe.Host) []Finding
}

// Setting is a line for a sysctl file.
type Setting struct {
	// Line is the line, such as "net.ipv4.tcp_syncookies = 1".
	Line string
	// Note says what it does, and what it costs.
	Note string
}

// Finding is one thing that is wrong.
type Finding struct {
	// Rule is what it is an instance of.
	Rule     *Rule
	Severity Severity
	// Netns is the network namespace that it is in, nil if it is about the whole host.
	Netns *observe.Netns
	// Subject is what it is about: an address, a process, a file. It may hold what
	// processes chose, and any byte.
	Subject string
	// Summary says in a line what is wrong, with the numbers. The same goes for it.
	Summary string
	// Facts are the numbers that show it.
	Facts []Fact
	// Application is what to change in the application here, if that is not all that the
	// rule knows: nil is for that.
	Application []string
	// Sysctls are the settings that help here, with the values for this host; nil is for
	// those of the rule, as far as they do not run already.
	Sysctls []Setting
	// Once are settings of the host that sysctl -w sets until its next start, from when on
	// they need no line in a file.
	Once []Setting

	// cure is what Application is made of, if it is not nil.
	cure *cure
}

// Folded returns how many other findings it stands for, which there were too many of to
// tell them one by one; 0 if it is a finding of its own.
func (f *Finding) Folded() int {
	for _, fact := range f.Facts {
		if n, ok := fact.Value.(int); ok && (fact.Name == "others" || fact.Name == "more") {
			return n
		}
	}
	return 0
}

// Advice returns what to change in the application, first of all.
func (f *Finding) Advice() []string {
	if f.Application != nil {
		return f.Application
	}
	return f.Rule.Application
}

// Settings returns the settings that help.
func (f *Finding) Settings() []Setting {
	if f.Sysctls != nil {
		return f.Sysctls
	}
	return slices.DeleteFunc(slices.Clone(f.Rule.Sysctls), f.runs)
}

// runs reports whether a setting is what runs where the finding is.
func (f *Finding) runs(s Setting) bool {
	if f.Netns == nil {
		return false
	}
	name, value := s.Split()
	now, known := f.Netns.Sysctls[name]
	return known && sysctl.Equal(now, value)
}

// hostWide are the settings that there are once on a host, whatever the network
// namespace.
var hostWide = []string{
	"net.ipv4.tcp_mem", "net.ipv4.tcp_max_orphans", "net.netfilter.nf_conntrack_max", "net.nf_conntrack_max",
	"net.netfilter.nf_conntrack_buckets", "net.core.netdev_max_backlog",
}

// HostWide reports whether the line sets something that there is once on the host, and
// not in each network namespace.
func (s *Setting) HostWide() bool {
	name, _ := s.Split()
	return !strings.HasPrefix(name, "net.") || slices.Contains(hostWide, name)
}

// Split returns the name that the line sets, and the value.
func (s *Setting) Split() (name, value string) {
	name, value, _ = strings.Cut(s.Line, "=")
	return strings.TrimSpace(name), strings.TrimSpace(value)
}

// Fact is a number, or a word, that shows something. Its name has the unit if it has
// one, as in "time_left_seconds".
type Fact struct {
	Name string
	// Value is a bool, an int, a uint64, a float64 or a string.
	Value any
}

// Rules returns all rules, by subject.
func Rules() []*Rule { return rules }

// IDs returns the ids of all rules, in their order.
func IDs() (ids []string) {
	for _, r := range rules {
		ids = append(ids, r.ID)
	}
	return ids
}

// Lookup returns the rule of that id, in any case and with "_" for "-". If there is
// none, the error names those that may be meant.
func Lookup(id string) (*Rule, error) {
	for _, r := range rules {
		if strings.EqualFold(r.ID, strings.ReplaceAll(id, "_", "-")) {
			return r, nil
		}
	}
	near := suggest.Containing(IDs(), id)
	if nearest := suggest.Nearest(IDs(), id); len(near) == 0 && nearest != "" {
		near = []string{nearest}
	}
	if len(near) > 0 {
		return nil, fmt.Errorf("no finding has the id %q; did you mean %s?", id, prose.Join(near, "or"))
	}
	return nil, fmt.Errorf("no finding has the id %q", id)
}

// Diagnose returns what is wrong with a host, the worst first. It is empty for a
// healthy one.
func Diagnose(h *observe.Host) []Finding {
	var all []Finding
	for _, r := range rules {
		for _, f := range r.find(h) {
			f.Rule = r
			if f.cure != nil {
				f.Application = f.cure.advice(r)
			}
			all = append(all, f)
		}
	}
	slices.SortStableFunc(all, func(a, b Finding) int { return cmp.Compare(b.Severity, a.Severity) })
	return all
}

// rules are all of them, by subject, in the order of docs/doctor.md.
var rules = inLines(slices.Concat(
	portRules, timeWaitRules, openingRules, listenerRules, closingRules, resetRules, conntrackRules, memoryRules, settingRules,
))

// inLines makes one line of each text, which is broken in the source.
func inLines(rules []*Rule) []*Rule {
	for _, r := range rules {
		r.Title, r.When, r.Why, r.Check = prose.Line(r.Title), prose.Line(r.When), prose.Line(r.Why), prose.Line(r.Check)
		r.Application, r.Useless, r.References = prose.Lines(r.Application), prose.Lines(r.Useless), prose.Lines(r.References)
		for i := range r.Sysctls {
			r.Sysctls[i].Note = prose.Line(r.Sysctls[i].Note)
		}
	}
	return rules
}

// eachNetns makes the find of a rule that looks at one network namespace at a time.
func eachNetns(find func(*observe.Host, *observe.Netns) []Finding) func(*observe.Host) []Finding {
	return func(h *observe.Host) (all []Finding) {
		for i := range h.Namespaces {
			n := &h.Namespaces[i]
			for _, f := range find(h, n) {
				f.Netns = n
				all = append(all, f)
			}
		}
		return all
	}
}
