package output

import (
	"github.com/finwait/finwait/cmd/finwait/internal/doctor"
	"github.com/finwait/finwait/cmd/finwait/internal/observe"
)

// judgementJSON is a line of a sysctl file that bears on TCP. ID is that of the finding
// that it is in.
type judgementJSON struct {
	Sysctl  string `json:"sysctl"`
	Value   string `json:"value"`
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"`
	Running string `json:"running,omitempty"`
	Verdict string `json:"verdict"`
	Why     string `json:"why"`
	ID      string `json:"id,omitempty"`
}

// settingsOf returns what is to be said of the lines of the host's sysctl files.
func settingsOf(h *observe.Host) (all []judgementJSON) {
	for _, j := range doctor.Judge(h) {
		all = append(all, judgementJSON{
			j.Key, j.Line.Value, j.Line.File, j.Line.Number, j.Running, j.Verdict.String(), j.Why, j.Rule,
		})
	}
	return all
}
