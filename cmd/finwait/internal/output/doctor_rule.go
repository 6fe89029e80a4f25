package output

import (
	"fmt"

	"github.com/finwait/finwait/cmd/finwait/internal/doctor"
	"github.com/finwait/finwait/cmd/finwait/internal/prose"
)

// AppendRuleText appends all about a rule as text for people.
func AppendRuleText(dst []byte, r *doctor.Rule) []byte {
	dst = prose.Hang(dst, r.ID+": ", r.Title)
	dst = append(append(append(dst, "Severity: "...), worst(r)...), '\n')
	dst = appendRulePart(dst, "Found when", r.When)
	dst = appendRulePart(dst, "Why it matters", r.Why)
	dst = appendRuleList(dst, "What to change in the application", r.Application)
	dst = appendRuleSettings(dst, r.Sysctls)
	dst = appendRuleList(dst, "What does not help", r.Useless)
	dst = appendRulePart(dst, "How to see that it has helped", r.Check)
	return appendRuleList(dst, "References", r.References)
}

// worst says how bad it can be.
func worst(r *doctor.Rule) string {
	if r.Worst == doctor.Info {
		return r.Worst.String()
	}
	return r.Worst.String() + " at the worst"
}

func appendRulePart(dst []byte, title, text string) []byte {
	if text == "" {
		return dst
	}
	return prose.Hang(append(dst, "\n"+title+":\n"...), "  ", text)
}

func appendRuleList(dst []byte, title string, items []string) []byte {
	if len(items) == 0 {
		return dst
	}
	dst = append(dst, "\n"+title+":\n"...)
	for _, item := range items {
		dst = prose.Hang(dst, "  - ", item)
	}
	return dst
}

func appendRuleSettings(dst []byte, settings []doctor.Setting) []byte {
	if len(settings) == 0 {
		return dst
	}
	dst = append(dst, "\nWhat to set by sysctl, in "+sysctlFile+":\n"...)
	for _, s := range settings {
		dst = append(append(append(dst, "  "...), s.Line...), '\n')
		dst = prose.Hang(dst, "      ", s.Note)
	}
	return dst
}

// AppendRuleList appends of each rule its id, how bad it can be, and what is wrong.
func AppendRuleList(dst []byte, rules []*doctor.Rule) []byte {
	idWidth := len("ID")
	for _, r := range rules {
		idWidth = max(idWidth, len(r.ID))
	}
	row := func(id, severity, title string) {
		dst = prose.Hang(dst, fmt.Sprintf("%-*s  %-8s  ", idWidth, id, severity), title)
	}
	row("ID", "SEVERITY", "WHAT IS WRONG")
	for _, r := range rules {
		row(r.ID, r.Worst.String(), r.Title)
	}
	return dst
}
