package output

import (
	"encoding/json"
	"math"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/finwait/finwait/cmd/finwait/internal/doctor"
	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/prose"
	"github.com/finwait/finwait/tracer"
)

// doctorJSON is what doctor prints, one object. What is not known is absent.
// docs/doctor.md has the fields.
type doctorJSON struct {
	Time           *time.Time        `json:"time,omitempty"`
	WatchedSeconds float64           `json:"watched_seconds,omitempty"`
	Namespaces     int               `json:"namespaces,omitempty"`
	Sockets        map[string]uint64 `json:"sockets,omitzero"`
	Traffic        *trafficJSON      `json:"traffic,omitempty"`
	Findings       []findingJSON     `json:"findings"`
	Settings       []judgementJSON   `json:"settings,omitempty"`
	Unseen         []unseenJSON      `json:"unseen,omitempty"`
}

type trafficJSON struct {
	Source    observe.Source `json:"source"`
	Since     *time.Time     `json:"since,omitempty"`
	Until     *time.Time     `json:"until,omitempty"`
	Opened    uint64         `json:"opened"`
	Lost      uint64         `json:"lost,omitempty"`
	Unplaced  uint64         `json:"unplaced,omitempty"`
	Estimated bool           `json:"estimated,omitempty"`
}

type findingJSON struct {
	ID          string         `json:"id"`
	Severity    string         `json:"severity"`
	Title       string         `json:"title"`
	Netns       uint32         `json:"netns,omitempty"`
	NetnsName   string         `json:"netns_name,omitempty"`
	NetnsHost   bool           `json:"netns_host,omitempty"`
	Subject     string         `json:"subject"`
	Summary     string         `json:"summary"`
	Facts       map[string]any `json:"facts"`
	Why         string         `json:"why"`
	Application []string       `json:"application,omitempty"`
	Sysctls     []settingJSON  `json:"sysctls,omitempty"`
	Check       string         `json:"check"`
	References  []string       `json:"references"`
}

// settingJSON has File or Command where it is about a finding, and Instead with File if
// there is a line already.
type settingJSON struct {
	Line    string `json:"line"`
	Note    string `json:"note,omitempty"`
	File    string `json:"file,omitempty"`
	Instead string `json:"instead,omitempty"`
	Command string `json:"command,omitempty"`
}

type unseenJSON struct {
	What string `json:"what"`
	Why  string `json:"why"`
}

// ruleJSON is all about a rule.
type ruleJSON struct {
	ID          string        `json:"id"`
	Severity    string        `json:"severity"`
	Title       string        `json:"title"`
	When        string        `json:"when"`
	Why         string        `json:"why"`
	Application []string      `json:"application,omitempty"`
	Sysctls     []settingJSON `json:"sysctls,omitempty"`
	Useless     []string      `json:"does_not_help,omitempty"`
	Check       string        `json:"check"`
	References  []string      `json:"references"`
}

// AppendDoctorJSON appends what was found as one JSON object and a newline.
func AppendDoctorJSON(dst []byte, h *observe.Host, findings []doctor.Finding) []byte {
	doc := doctorJSON{
		Time: knownTime(h.Ended), WatchedSeconds: h.Watched().Seconds(), Namespaces: len(h.Namespaces),
		Sockets: socketsOf(h), Traffic: trafficOf(h.Traffic), Findings: []findingJSON{}, Settings: settingsOf(h),
	}
	for i := range findings {
		doc.Findings = append(doc.Findings, findingOf(h, &findings[i]))
	}
	for _, u := range h.Unseen {
		doc.Unseen = append(doc.Unseen, unseenJSON(u))
	}
	return appendObject(dst, doc)
}

// knownTime returns the time in UTC, nil if it is not known.
func knownTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// socketsOf returns the sockets in each state, nil if none were looked for.
func socketsOf(h *observe.Host) map[string]uint64 {
	if len(h.Namespaces) == 0 {
		return nil
	}
	sockets := map[string]uint64{}
	for i := range h.Namespaces {
		for _, state := range tracer.States() {
			if n := h.Namespaces[i].States[state]; n > 0 {
				sockets[state.String()] += n
			}
		}
	}
	return sockets
}

func trafficOf(t *observe.Traffic) *trafficJSON {
	if t == nil {
		return nil
	}
	return &trafficJSON{t.Source, knownTime(t.Since), knownTime(t.Until), t.Opened, t.Lost, t.Unplaced, t.Estimated}
}

func findingOf(h *observe.Host, f *doctor.Finding) findingJSON {
	doc := findingJSON{
		ID: f.Rule.ID, Severity: f.Severity.String(), Title: f.Rule.Title, Subject: f.Subject, Summary: f.Summary,
		Facts: map[string]any{}, Why: f.Rule.Why, Application: f.Advice(), Check: f.Rule.Check, References: f.Rule.References,
	}
	if n := f.Netns; n != nil {
		doc.Netns, doc.NetnsName, doc.NetnsHost = n.Inode, n.Name, n.Host
	}
	for _, fact := range f.Facts {
		if n, ok := fact.Value.(float64); ok && (math.IsNaN(n) || math.IsInf(n, 0)) {
			continue // which says that it is not known
		}
		doc.Facts[fact.Name] = fact.Value
	}
	for _, s := range f.Settings() {
		setting := settingJSON{Line: s.Line, Note: prose.Line(s.Note)}
		if inHost(f, &s) {
			setting.File, setting.Instead = sysctlFile, doctor.Instead(h, &s, sysctlFile)
		} else {
			setting.Command = enter(f.Netns) + " " + setCommand(&s)
		}
		doc.Sysctls = append(doc.Sysctls, setting)
	}
	for _, s := range f.Once {
		doc.Sysctls = append(doc.Sysctls, settingJSON{Line: s.Line, Note: prose.Line(s.Note), Command: setCommand(&s)})
	}
	return doc
}

// AppendRuleJSON appends all about a rule as one JSON object and a newline.
func AppendRuleJSON(dst []byte, r *doctor.Rule) []byte {
	doc := ruleJSON{
		ID: r.ID, Severity: r.Worst.String(), Title: r.Title, When: r.When, Why: r.Why, Application: r.Application,
		Useless: r.Useless, Check: r.Check, References: r.References,
	}
	for _, s := range r.Sysctls {
		doc.Sysctls = append(doc.Sysctls, settingJSON{Line: s.Line, Note: s.Note})
	}
	return appendObject(dst, doc)
}

// appendObject appends doc and a newline. Characters that do not print are escaped, as
// in all JSON of this package: encoding/json leaves those beyond ASCII as they are.
func appendObject(dst []byte, doc any) []byte {
	text, err := json.Marshal(doc)
	if err != nil {
		panic(err) // there is nothing in it that cannot be encoded
	}
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		if r < utf8.RuneSelf && r != 0x7f || unicode.IsPrint(r) && r != utf8.RuneError {
			dst = append(dst, text[:size]...)
		} else {
			dst = appendJSONEscape(dst, r)
		}
		text = text[size:]
	}
	return append(dst, '\n')
}
