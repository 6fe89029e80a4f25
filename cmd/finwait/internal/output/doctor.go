package output

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/finwait/finwait/cmd/finwait/internal/doctor"
	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/prose"
	"github.com/finwait/finwait/tracer"
)

const (
	// shownRules is how many rules the text has with what to do: of the others it has what
	// is wrong, and the worst finding. shownFindings and shownSettings are how many it has of
	// one.
	shownRules, shownFindings, shownSettings = 3, 3, 3
	// doctorStop is the column where what a word such as "do:" is about begins.
	doctorStop = 11
)

// doctorTints are the tints of severities. Info has none.
var doctorTints = map[doctor.Severity]string{doctor.Warning: tintTimeWait, doctor.Critical: tintBroken}

// AppendDoctorText appends what was found as text for people: what was looked at, then
// the findings by rule, the worst first, then what could not be seen. Of opts, Color
// counts.
func AppendDoctorText(dst []byte, h *observe.Host, findings []doctor.Finding, opts Options) []byte {
	t := &doctorText{dst, opts.Color}
	t.verdict(h, findings)
	groups := byRule(findings)
	shown := min(shownRules, len(groups))
	for _, group := range groups[:shown] {
		t.group(h, group)
	}
	t.others(groups[shown:])
	t.elsewhere(findings)
	t.unseen(h)
	if len(findings) > 0 {
		t.buf = append(t.buf, "\nAll about one of them: finwait doctor --explain ID\n"...)
	}
	return t.buf
}

type doctorText struct {
	buf   []byte
	color bool
}

// byRule returns the findings of each rule, in the order in which they are.
func byRule(findings []doctor.Finding) (groups [][]doctor.Finding) {
	index := map[*doctor.Rule]int{}
	for _, f := range findings {
		i, known := index[f.Rule]
		if !known {
			i = len(groups)
			index[f.Rule] = i
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], f)
	}
	return groups
}

// tinted appends text, which takes no more columns for its tint.
func (t *doctorText) tinted(tint, text string) {
	if !t.color || tint == "" {
		t.buf = append(t.buf, text...)
		return
	}
	t.buf = append(append(append(t.buf, tint...), text...), tintOff...)
}

// row appends a word and what it is about. It is safe on a terminal.
func (t *doctorText) row(word, text string) {
	t.buf = fmt.Appendf(t.buf, "  %-*s", doctorStop-2, word)
	t.buf = prose.Wrap(t.buf, doctorStop, doctorStop, quoted(text))
}

// line appends a line that is to be copied, whatever its length.
func (t *doctorText) line(word, text string) {
	t.buf = fmt.Appendf(t.buf, "  %-*s%s\n", doctorStop-2, word, quoted(text))
}

func quoted(text string) string { return string(Quote(nil, []byte(text))) }

// verdict says whether something is wrong, and what was looked at.
func (t *doctorText) verdict(h *observe.Host, findings []doctor.Finding) {
	tint, text := verdictOf(h, findings)
	t.tinted(tint, text)
	t.buf = prose.Wrap(append(t.buf, ": "...), len(text)+2, 2, strings.Join(lookedAt(h), ", "))
}

func verdictOf(h *observe.Host, findings []doctor.Finding) (tint, text string) {
	var worst doctor.Severity
	number := map[doctor.Severity]uint64{}
	for i := range findings {
		worst = max(worst, findings[i].Severity)
		number[findings[i].Severity]++
	}
	switch {
	case worst > doctor.Info:
	case len(h.Unseen) > 0:
		return tintOpen, "healthy as far as can be seen"
	default:
		return tintOpen, "healthy"
	}
	var parts []string
	if n := number[doctor.Critical]; n > 0 {
		parts = append(parts, prose.Number(n)+" critical")
	}
	if n := number[doctor.Warning]; n > 0 {
		parts = append(parts, prose.Count(n, "warning", "warnings"))
	}
	return doctorTints[worst], strings.Join(parts, ", ")
}

// lookedAt returns what there was to see.
func lookedAt(h *observe.Host) (parts []string) {
	if d := h.Watched(); d > 0 {
		parts = append(parts, prose.Rate(d.Seconds())+" s watched")
	}
	if n := len(h.Namespaces); n > 0 {
		parts = append(parts, prose.Count(uint64(n), "network namespace", "network namespaces"), socketsText(h))
	}
	if h.Traffic != nil {
		parts = append(parts, trafficText(h.Traffic))
	}
	return parts
}

// socketsText has the sockets by state, those states first that have the most.
func socketsText(h *observe.Host) string {
	var all uint64
	var states tracer.StateCounts
	for i := range h.Namespaces {
		for _, s := range tracer.States() {
			states[s] += h.Namespaces[i].States[s]
			all += h.Namespaces[i].States[s]
		}
	}
	order := slices.DeleteFunc(tracer.States(), func(s tracer.State) bool { return states[s] == 0 })
	slices.SortStableFunc(order, func(a, b tracer.State) int { return cmp.Compare(states[b], states[a]) })
	text := prose.Count(all, "socket", "sockets")
	if len(order) == 0 {
		return text
	}
	var parts []string
	for _, s := range order {
		parts = append(parts, s.String()+" "+prose.Number(states[s]))
	}
	return text + " (" + strings.Join(parts, ", ") + ")"
}

// trafficText says how many connections there were: a connection within the host opens
// two sockets.
func trafficText(t *observe.Traffic) string {
	about := ""
	if t.Estimated {
		about = "about "
	}
	text := about + prose.Count(t.Opened, "socket", "sockets") + " opened"
	if t.Duration() > 0 {
		text = about + prose.Rate(t.Rate(t.Opened)) + " sockets opened/s"
	}
	switch t.Source {
	case observe.SourceAgent:
		text += " as the agent counts"
	case observe.SourceLog:
		text += " in the log"
		if t.Duration() > 0 {
			text += " of " + logTimes(t)
		}
	}
	return text
}

func logTimes(t *observe.Traffic) string {
	since, until := t.Since.UTC(), t.Until.UTC()
	return since.Format(time.RFC3339) + " to " + until.Format(time.RFC3339)
}

// head appends how bad the worst finding of a rule is, and what is wrong.
func (t *doctorText) head(first *doctor.Finding) {
	word := first.Severity.String()
	t.tinted(doctorTints[first.Severity], word)
	t.buf = append(t.buf, strings.Repeat(" ", max(1, doctorStop-len(word)))...)
	t.buf = prose.Wrap(t.buf, doctorStop, doctorStop, first.Rule.ID+": "+first.Rule.Title)
}

// found appends the first findings of a rule, and how many there are more.
func (t *doctorText) found(findings []doctor.Finding, most int) (shown []doctor.Finding) {
	shown = findings[:min(most, len(findings))]
	for i := range shown {
		t.buf = prose.Wrap(append(t.buf, "  "...), 2, 4, quoted(placeOf(shown[i].Netns)+summaryOf(&shown[i])))
	}
	more := 0
	for _, f := range findings[len(shown):] {
		more += max(f.Folded(), 1)
	}
	if more > 0 {
		t.buf = fmt.Appendf(t.buf, "  and %s more, which --format json has\n", prose.Number(uint64(more)))
	}
	return shown
}

// summaryOf says what is wrong, and with what.
func summaryOf(f *doctor.Finding) string {
	if f.Subject == "" || f.Folded() > 0 || strings.Contains(f.Summary, f.Subject) {
		return f.Summary
	}
	return f.Subject + ": " + f.Summary
}

// others says what else is wrong.
func (t *doctorText) others(groups [][]doctor.Finding) {
	if len(groups) == 0 {
		return
	}
	t.buf = append(t.buf, "\nAnd, with what to do in --explain ID and --format json:\n"...)
	for _, group := range groups {
		t.head(&group[0])
		t.found(group, 1)
	}
}

// group appends the findings of one rule.
func (t *doctorText) group(h *observe.Host, findings []doctor.Finding) {
	first := &findings[0]
	t.buf = append(t.buf, '\n')
	t.head(first)
	shown := t.found(findings, shownFindings)
	if advice := first.Advice(); len(advice) > 0 {
		t.row("do:", advice[0])
	}
	t.settings(h, shown)
	t.row("check:", first.Rule.Check)
}

// placeOf says where a finding is, unless it is where people expect it.
func placeOf(n *observe.Netns) string {
	switch {
	case n == nil || n.Host:
		return ""
	case n.Name != "":
		return "netns " + n.Name + ": "
	}
	return "netns " + strconv.FormatUint(uint64(n.Inode), 10) + ": "
}

// settings appends the sysctl lines of the findings, each once, and where they go; or the
// command that sets it in a namespace, which says so itself.
func (t *doctorText) settings(h *observe.Host, findings []doctor.Finding) {
	type line struct{ text, target string }
	var lines []line
	add := func(l line) {
		if !slices.Contains(lines, l) {
			lines = append(lines, l)
		}
	}
	for i := range findings {
		f := &findings[i]
		for _, s := range f.Settings() {
			if inHost(f, &s) {
				add(line{s.Line, targetOf(h, &s)})
			} else {
				add(line{enter(f.Netns) + " " + setCommand(&s), ""})
			}
		}
		for _, s := range f.Once {
			add(line{setCommand(&s), "until the next start"})
		}
	}
	shown := lines[:min(shownSettings, len(lines))]
	word := "sysctl:"
	for i, l := range shown {
		t.line(word, l.text)
		word = ""
		if l.target != "" && (i+1 == len(shown) || shown[i+1].target != l.target) {
			t.row("", l.target)
		}
	}
	if more := len(lines) - len(shown); more > 0 {
		t.row("", fmt.Sprintf("and %d more, which --format json has", more))
	}
}

// sysctlFile is the file for the lines: its number has it come after those of
// distributions.
const sysctlFile = "/etc/sysctl.d/90-tcp.conf"

// inHost reports whether the setting is for the host's sysctl files.
func inHost(f *doctor.Finding, s *doctor.Setting) bool {
	return f.Netns == nil || f.Netns.Host || s.HostWide()
}

// targetOf says where a line for the host's sysctl files goes.
func targetOf(h *observe.Host, s *doctor.Setting) string {
	if line := doctor.Instead(h, s, sysctlFile); line != "" {
		return "in place of " + line + ", then: sysctl --system"
	}
	return "in " + sysctlFile + ", then: sysctl --system"
}

// enter returns the command that runs others in the namespace.
func enter(n *observe.Netns) string {
	switch {
	case isPlain(n.Path):
		return "nsenter --net=" + n.Path
	case n.Member != 0:
		return fmt.Sprintf("nsenter -t %d -n", n.Member)
	}
	return "nsenter -t PID -n" // lsns finds one
}

// isPlain reports whether a shell takes the path as it is.
func isPlain(path string) bool {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./"
	return path != "" && strings.Trim(path, plain) == ""
}

// setCommand returns the command that sets it in the namespace where it runs, until that
// is gone.
func setCommand(s *doctor.Setting) string {
	name, value := s.Split()
	if strings.Contains(value, " ") {
		value = "'" + value + "'"
	}
	return "sysctl -w " + name + "=" + value
}

// elsewhere says once how other namespaces than the host's get their sysctls.
func (t *doctorText) elsewhere(findings []doctor.Finding) {
	if !slices.ContainsFunc(findings, func(f doctor.Finding) bool {
		return slices.ContainsFunc(f.Settings(), func(s doctor.Setting) bool { return !inHost(&f, &s) })
	}) {
		return
	}
	t.buf = append(t.buf, '\n')
	t.buf = prose.Wrap(t.buf, 0, 0, `The sysctl files are for the host's own network namespace. Others keep what is set in them
		until they end; what makes them has a place for it: docker run --sysctl, sysctls in a Compose file,
		securityContext.sysctls of a Kubernetes pod.`)
}

// unseen says what could not be looked at, and what was lost.
func (t *doctorText) unseen(h *observe.Host) {
	unseen := slices.Clone(h.Unseen)
	if tr := h.Traffic; tr != nil && tr.Lost > 0 {
		unseen = append(unseen, observe.Unseen{What: prose.Count(tr.Lost, "transition", "transitions"), Why: "they were lost on the way from the kernel"})
	}
	if tr := h.Traffic; tr != nil && tr.Unplaced > 0 {
		unseen = append(unseen, observe.Unseen{
			What: "whose " + prose.Count(tr.Unplaced, "transition or connection was", "transitions or connections were"),
			Why:  "there are too many processes and services to keep them apart",
		})
	}
	if len(unseen) == 0 {
		return
	}
	t.buf = append(t.buf, "\nNot seen:\n"...)
	for _, u := range unseen {
		t.buf = prose.Wrap(append(t.buf, "  "...), 2, 4, quoted(u.What+": "+u.Why))
	}
}
