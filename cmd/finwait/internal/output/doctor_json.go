package output

import (
	"encoding/json"
	"time"

	"github.com/finwait/finwait/cmd/finwait/internal/doctor"
	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/tracer"
)

// doctorJSON is what doctor prints, one object. What is not known is absent.
type doctorJSON struct {
	Time           *time.Time          `json:"time,omitempty"`
	WatchedSeconds float64             `json:"watched_seconds,omitempty"`
	Namespaces     int                 `json:"namespaces"`
	Sockets        map[string]uint64   `json:"sockets,omitempty"`
	Traffic        *trafficJSON        `json:"traffic,omitempty"`
	Findings       []findingJSON       `json:"findings"`
	Settings       []judgementJSON     `json:"settings,omitempty"`
	Unseen         []map[string]string `json:"unseen,omitempty"`
}

type trafficJSON struct {
	Source    observe.Source `json:"source"`
	Since     time.Time      `json:"since"`
	Until     time.Time      `json:"until"`
	Opened    uint64         `json:"opened"`
	Unplaced  uint64         `json:"unplaced,omitempty"`
	Lost      uint64         `json:"lost,omitempty"`
	Estimated bool           `json:"estimated,omitempty"`
}

type findingJSON struct {
	ID          string         `json:"id"`
	Severity    string         `json:"severity"`
	Netns       uint32         `json:"netns,omitempty"`
	NetnsName   string         `json:"netns_name,omitempty"`
	Subject     string         `json:"subject"`
	Summary     string         `json:"summary"`
	Facts       map[string]any `json:"facts"`
	Application []string       `json:"application,omitempty"`
	Sysctls     []settingJSON  `json:"sysctls,omitempty"`
	Check       string         `json:"check"`
	References  []string       `json:"references"`
}

type settingJSON struct {
	Line string `json:"line"`
	Note string `json:"note"`
}

// AppendDoctorJSON appends what was found as one JSON object and a newline.
func AppendDoctorJSON(dst []byte, h *observe.Host, findings []doctor.Finding) []byte {
	doc := doctorJSON{Namespaces: len(h.Namespaces), WatchedSeconds: h.Watched().Seconds(), Findings: []findingJSON{}}
	if !h.Ended.IsZero() {
		at := h.Ended.UTC()
		doc.Time, doc.Sockets = &at, socketsOf(h)
	}
	if t := h.Traffic; t != nil {
		doc.Traffic = &trafficJSON{t.Source, t.Since.UTC(), t.Until.UTC(), t.Opened, t.Unplaced, t.Lost, t.Estimated}
	}
	for i := range findings {
		doc.Findings = append(doc.Findings, toJSON(&findings[i]))
	}
	doc.Settings = settingsOf(h)
	for _, u := range h.Unseen {
		doc.Unseen = append(doc.Unseen, map[string]string{"what": u.What, "why": u.Why})
	}
	return appendLine(dst, doc)
}

func socketsOf(h *observe.Host) map[string]uint64 {
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

func toJSON(f *doctor.Finding) findingJSON {
	doc := findingJSON{
		ID: f.Rule.ID, Severity: f.Severity.String(), Subject: f.Subject, Summary: f.Summary,
		Facts: map[string]any{}, Application: f.Rule.Application, Check: f.Rule.Check, References: f.Rule.References,
	}
	if f.Netns != nil {
		doc.Netns, doc.NetnsName = f.Netns.Inode, f.Netns.Name
	}
	for _, fact := range f.Facts {
		doc.Facts[fact.Name] = fact.Value
	}
	for _, s := range f.Settings() {
		doc.Sysctls = append(doc.Sysctls, settingJSON(s))
	}
	return doc
}

// AppendRuleJSON appends all about a finding as one JSON object and a newline.
func AppendRuleJSON(dst []byte, r *doctor.Rule) []byte { return appendLine(dst, r) }

func appendLine(dst []byte, doc any) []byte {
	line, err := json.Marshal(doc)
	if err != nil {
		panic(err) // there is nothing in it that cannot be encoded
	}
	return append(append(dst, line...), '\n')
}
