package output

import (
	"fmt"

	"github.com/finwait/finwait/cmd/finwait/internal/doctor"
	"github.com/finwait/finwait/cmd/finwait/internal/observe"
)

// AppendDoctorText appends what was found as text for people.
func AppendDoctorText(dst []byte, h *observe.Host, findings []doctor.Finding) []byte {
	for i := range findings {
		f := &findings[i]
		dst = fmt.Appendf(dst, "%s %s: ", f.Severity, f.Rule.ID)
		dst = append(Quote(dst, []byte(f.Summary)), '\n')
	}
	return dst
}

// AppendRuleText appends all about a finding as text for people.
func AppendRuleText(dst []byte, r *doctor.Rule) []byte {
	return append(dst, r.ID+": "+r.Title+"\n"...)
}
