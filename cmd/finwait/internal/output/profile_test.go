package output

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

func histogramOf(unknown uint64, times ...time.Duration) tracer.Histogram {
	h := tracer.Histogram{Unknown: unknown}
	for _, d := range times {
		h.Add(d)
	}
	return h
}

func profileBy(by tracer.ProfileDimension, rows ...tracer.ProfileRow) *tracer.Profile {
	return &tracer.Profile{Time: time.Date(2026, 11, 22, 10, 0, 7, 9, time.UTC), By: by, Rows: rows}
}

func profileSamples() map[string]*tracer.Profile {
	row := func(s tracer.State, g tracer.ProfileGroup, value uint64, h tracer.Histogram) tracer.ProfileRow {
		return tracer.ProfileRow{Key: tracer.ProfileKey{State: s, Group: g, Value: value}, Histogram: h}
	}
	hostile := row(tracer.StateNewSynRecv, tracer.GroupOne, 4194304, histogramOf(0, 42*time.Microsecond))
	hostile.SetComm(hostileText + "<&\u202e\u4e2d\u6587")
	curl := row(tracer.StateSynSent, tracer.GroupOne, 42, histogramOf(0, 99*time.Millisecond, 3*time.Second, 127*time.Second))
	curl.SetComm("curl")
	few := []time.Duration{50 * time.Millisecond, 52 * time.Millisecond, 70 * time.Millisecond, 600 * time.Millisecond}
	return map[string]*tracer.Profile{
		"empty": profileBy(tracer.ProfileByService),
		"service": profileBy(tracer.ProfileByService,
			row(tracer.StateEstablished, tracer.GroupUnknown, 0, histogramOf(12345678)),
			row(tracer.StateTimeWait, tracer.GroupClients, 0, histogramOf(0, time.Minute)),
			row(tracer.StateCloseWait, tracer.GroupOne, 65535, histogramOf(3, few...)),
			row(tracer.StateListen, tracer.GroupOthers, 0, histogramOf(1, 0, 1, 2, 3, 900*24*time.Hour))),
		"remote-port": profileBy(tracer.ProfileByRemotePort,
			row(tracer.StateSynSent, tracer.GroupOne, 443, histogramOf(0, few...)),
			row(tracer.StateSynRecv, tracer.GroupServers, 0, histogramOf(0, 9*time.Microsecond))),
		"cgroup":  profileBy(tracer.ProfileByCgroup, row(tracer.StateLastAck, tracer.GroupOne, 1<<64-1, histogramOf(0, few...))),
		"process": profileBy(tracer.ProfileByProcess, hostile, curl),
		"state":   profileBy(tracer.ProfileByState, row(tracer.StateClosing, tracer.GroupOne, 0, histogramOf(0, few...))),
	}
}

func TestProfileGolden(t *testing.T) {
	since := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	for name, p := range profileSamples() {
		golden(t, "profile-"+name+".txt.golden", AppendProfileTable(nil, p, ProfileOptions{}))
		golden(t, "profile-"+name+".json.golden", AppendProfileJSON(nil, p, since, ProfileOptions{}))
	}
}

func TestProfileTableFits(t *testing.T) {
	for name, p := range profileSamples() {
		for line := range strings.Lines(string(AppendProfileTable(nil, p, ProfileOptions{}))) {
			line = strings.TrimSuffix(line, "\n")
			width := textWidth([]byte(strings.NewReplacer("µ", "u", "…", ".").Replace(line))) // they are not wide
			qt.Check(t, qt.IsTrue(width < 80), qt.Commentf("%s: %q", name, line))
			qt.Check(t, qt.Equals(strings.TrimRight(line, " "), line))
			qt.Check(t, qt.IsTrue(utf8.ValidString(line)))
			qt.Check(t, qt.Equals(strings.IndexFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }), -1), qt.Commentf("%q", line))
		}
	}
}

func TestProfileTop(t *testing.T) {
	p := profileSamples()["service"]
	table := string(AppendProfileTable(nil, p, ProfileOptions{Top: 1}))
	qt.Check(t, qt.StringContains(table, "\nLISTEN "), qt.Commentf("it has the most times"))
	qt.Check(t, qt.IsTrue(strings.HasSuffix(table, "\n3 more (--top 0 shows all)\n")), qt.Commentf("%s", table))
	qt.Check(t, qt.Not(qt.StringContains(table, "CLOSE_WAIT")))
	var got struct {
		RowCount int `json:"row_count"`
		Rows     []any
	}
	qt.Assert(t, qt.IsNil(json.Unmarshal(AppendProfileJSON(nil, p, p.Time, ProfileOptions{Top: 2}), &got)))
	qt.Check(t, qt.HasLen(got.Rows, 2))
	qt.Check(t, qt.Equals(got.RowCount, 4))
	all := string(AppendProfileTable(nil, p, ProfileOptions{Top: 4}))
	qt.Check(t, qt.Not(qt.StringContains(all, "more (")))
}

// Tints take no columns, and are all that they add.
func TestProfileColor(t *testing.T) {
	p := profileSamples()["service"]
	plain, tinted := AppendProfileTable(nil, p, ProfileOptions{}), AppendProfileTable(nil, p, ProfileOptions{Color: true})
	qt.Check(t, qt.StringContains(string(tinted), tintTimeWait+"TIME_WAIT"+tintOff))
	for _, tint := range []string{tintOpen, tintTimeWait, tintClosing, tintOff} {
		tinted = []byte(strings.ReplaceAll(string(tinted), tint, ""))
	}
	qt.Check(t, qt.Equals(string(tinted), string(plain)))
}

// The buckets of JSON add up, and each says where it ends.
func TestProfileJSONBuckets(t *testing.T) {
	var got struct {
		Rows []struct {
			Count   uint64
			Max     int64   `json:"max_ns"`
			P50     int64   `json:"p50_ns"`
			P999    int64   `json:"p999_ns"`
			Sum     float64 `json:"sum_seconds"`
			Buckets []struct {
				Le    int64 `json:"le_ns"`
				Count uint64
			}
		}
	}
	p := profileSamples()["state"]
	qt.Assert(t, qt.IsNil(json.Unmarshal(AppendProfileJSON(nil, p, p.Time, ProfileOptions{}), &got)))
	row := got.Rows[0]
	qt.Check(t, qt.Equals(row.Count, 4))
	qt.Check(t, qt.Equals(row.Max, int64(600*time.Millisecond)))
	qt.Check(t, qt.IsTrue(row.P50 < row.P999 && row.P999 <= row.Max))
	qt.Check(t, qt.Equals(row.Sum, 0.772))
	qt.Check(t, qt.Equals(fmt.Sprint(row.Buckets), "[{62499999 2} {124999999 3} {999999999 4}]"))
}
