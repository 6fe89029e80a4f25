package doctor

import (
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
)

func TestConntrackFull(t *testing.T) {
	for _, test := range []struct {
		name  string
		table *observe.Conntrack
		want  Severity
		found bool
	}{
		{"none", nil, 0, false},
		{"empty", &observe.Conntrack{Max: 1000}, 0, false},
		{"without a limit", &observe.Conntrack{Entries: 1000000}, 0, false},
		{"four fifths, not quite", &observe.Conntrack{Entries: 799, Max: 1000}, 0, false},
		{"dropped for another reason", &observe.Conntrack{Entries: 799, Max: 1000, Dropped: 23}, 0, false},
		{"four fifths", &observe.Conntrack{Entries: 800, Max: 1000}, Warning, true},
		{"nearly full, not quite", &observe.Conntrack{Entries: 949, Max: 1000}, Warning, true},
		{"nearly full", &observe.Conntrack{Entries: 950, Max: 1000}, Critical, true},
		{"dropped", &observe.Conntrack{Entries: 800, Max: 1000, Dropped: 23}, Critical, true},
		{"full", &observe.Conntrack{Entries: 1000, Max: 1000}, Critical, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			findings := Diagnose(&observe.Host{Namespaces: []observe.Netns{{Inode: 1, Conntrack: test.table}}})
			qt.Assert(t, qt.Equals(len(findings), map[bool]int{true: 1}[test.found]))
			if test.found {
				qt.Check(t, qt.Equals(findings[0].Rule, conntrackFull))
				qt.Check(t, qt.Equals(findings[0].Severity, test.want))
			}
		})
	}
}

// The values are for the host, and no timeout is made longer.
func TestConntrackSettings(t *testing.T) {
	n := observe.Netns{Host: true, Conntrack: &observe.Conntrack{Entries: 900, Max: 1000}, Sysctls: sysctl.Values{
		"net.netfilter.nf_conntrack_tcp_timeout_time_wait": "30", "net.netfilter.nf_conntrack_tcp_timeout_established": "432000",
	}}
	findings := Diagnose(&observe.Host{Namespaces: []observe.Netns{n}})
	qt.Assert(t, qt.HasLen(findings, 1))
	var lines []string
	for _, s := range findings[0].Settings() {
		lines = append(lines, s.Line)
	}
	qt.Check(t, qt.DeepEquals(lines, []string{
		"net.netfilter.nf_conntrack_max = 2000", "net.netfilter.nf_conntrack_tcp_timeout_established = 86400",
	}))
}
