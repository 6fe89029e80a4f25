package output

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/cmd/finwait/internal/summary"
	"github.com/finwait/finwait/tracer"
)

// reportSamples are the reports of the golden files.
func reportSamples() map[string]*summary.Report {
	transitions, both := summary.New(), summary.New()
	for _, ev := range sampleEvents() {
		transitions.AddEvent(&ev, 0)
		both.AddEvent(&ev, 0)
	}
	transitions.Files = 1
	for i, c := range sampleConns() {
		both.AddConn(&c, []float64{0, 0.01, 0.25}[i%3])
	}
	both.Files, both.Damaged, both.Broken = 3, 2, 1
	return map[string]*summary.Report{"empty": summary.New(), "transitions": transitions, "both": both, "large": largeReport()}
}

// largeReport has more of everything than is shown.
var largeReport = sync.OnceValue(func() *summary.Report {
	r := summary.New()
	for i := range 20_000 {
		ev := newEvent(tracer.StateFinWait2, tracer.StateTimeWait, "10.0.0.1:1", "10.0.0.2:2")
		t := tracer.LegalTransitions()[i%len(tracer.LegalTransitions())]
		ev.Time = testTime.Add(time.Duration(i) * 17 * time.Second)
		ev.Transition, ev.Dwell, ev.DwellKnown = t, time.Duration(i*i)*time.Microsecond, i%7 != 0
		ev.Role = []tracer.Role{tracer.RoleServer, tracer.RoleClient}[i%2]
		ev.Local = netip.AddrPortFrom(ev.Local.Addr(), uint16(1+i%40))
		ev.Remote = netip.AddrPortFrom(ev.Remote.Addr(), uint16(65535-i%60))
		ev.Owner.SetComm(fmt.Sprintf("comm-%010d", i))
		if i%4 == 0 {
			ev.Owner.SetComm("fifteen-columns")
		}
		ev.Owner.PID = uint32(1 + i/4)
		ev.Reason, ev.Side = tracer.Reasons()[i%26], tracer.Side(i%4)
		r.AddEvent(&ev, 1/float64(i%20+2))
	}
	r.Files = 12
	return r
})

func TestReportGolden(t *testing.T) {
	for name, r := range reportSamples() {
		golden(t, "report-"+name+".txt.golden", AppendReportText(nil, r, 10))
		golden(t, "report-"+name+".json.golden", AppendReportJSON(nil, r, 10))
	}
}

// No line is wider than a terminal, whatever the names are.
func TestReportWidth(t *testing.T) {
	for name, r := range reportSamples() {
		for _, top := range []int{1, 10, 200} {
			for line := range strings.Lines(string(AppendReportText(nil, r, top))) {
				line = strings.TrimSuffix(line, "\n")
				if utf8.RuneCountInString(line) > 79 {
					t.Errorf("%s: %q", name, line)
				}
				assertSafe(t, []byte(line))
			}
		}
	}
}

// Every list with what it leaves out has all records.
func TestReportAddsUp(t *testing.T) {
	type rows struct {
		Rows []struct {
			Count uint64 `json:"count"`
		} `json:"rows"`
		Others  uint64 `json:"others"`
		Unknown uint64 `json:"unknown"`
	}
	type kind struct {
		Records  uint64 `json:"records"`
		Unplaced uint64 `json:"role_unknown"`
		Services rows   `json:"services"`
		Remotes  rows   `json:"remote_services"`
		Owners   rows   `json:"owners"`
		Ends     []struct {
			Count uint64 `json:"count"`
		} `json:"ends"`
	}
	sum := func(r rows) uint64 {
		n := r.Others + r.Unknown
		for _, row := range r.Rows {
			n += row.Count
		}
		return n
	}
	for name, r := range reportSamples() {
		for _, top := range []int{0, 1, 10, 300} {
			var got struct {
				Transitions kind `json:"transitions"`
				Connections kind `json:"connections"`
			}
			line := AppendReportJSON(nil, r, top)
			assertOneLine(t, line)
			qt.Assert(t, qt.IsNil(json.Unmarshal(line, &got)), qt.Commentf("%s: %s", name, line))
			qt.Check(t, qt.Equals(got.Transitions.Records, r.Transitions.Records))
			qt.Check(t, qt.Equals(got.Connections.Records, r.Conns.Records))
			for _, k := range []kind{got.Transitions, got.Connections} {
				qt.Check(t, qt.Equals(sum(k.Services)+sum(k.Remotes)+k.Unplaced, k.Records), qt.Commentf("%s", name))
				qt.Check(t, qt.Equals(sum(k.Owners), k.Records), qt.Commentf("%s", name))
			}
			var ends uint64
			for _, e := range got.Connections.Ends {
				ends += e.Count
			}
			qt.Check(t, qt.Equals(ends, got.Connections.Records))
		}
	}
}

// A ratio that nobody samples at must not make numbers that JSON has not.
func TestReportHostileRatio(t *testing.T) {
	r := summary.New()
	ev := connectingEvent()
	r.AddEvent(&ev, 5e-324)
	qt.Check(t, qt.IsTrue(json.Valid(AppendReportJSON(nil, r, 10))))
	qt.Check(t, qt.StringContains(string(AppendReportText(nil, r, 10)), "estimate"))
}
