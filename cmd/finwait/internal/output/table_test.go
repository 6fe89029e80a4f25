package output

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

func tableRow(t testing.TB, opts Options, ev tracer.Event) string {
	t.Helper()
	return strings.TrimSuffix(string(mustNew(t, "table", opts).AppendEvent(nil, &ev)), "\n")
}

// everyTransition returns each pair of states, which is more than there is.
func everyTransition() []tracer.Transition {
	var all []tracer.Transition
	for _, from := range tracer.States() {
		for _, to := range tracer.States() {
			all = append(all, tracer.Transition{Old: from, New: to})
		}
	}
	return all
}

func TestTableIPv4IsUnder80Columns(t *testing.T) {
	addrs := []string{"127.0.0.1:48132", "10.0.0.5:443", "192.168.1.10:48132", "192.168.100.200:65535"}
	for _, tr := range tracer.LegalTransitions() {
		for _, local := range addrs {
			for _, remote := range addrs {
				for _, comm := range []string{"", "sh", "nginx", "exactly15chars!", "\x1b\x1b\x1b\x1b\x1b", "名前名前名"} {
					ev := newEvent(tr.Old, tr.New, local, remote)
					ev.Owner.SetComm(comm)
					got := tableRow(t, Options{}, ev)
					qt.Assert(t, qt.IsTrue(textWidth([]byte(strings.NewReplacer("→", ">", "µ", "u", "…", ".").Replace(got))) <= 79), qt.Commentf("%s", got))
					qt.Assert(t, qt.StringContains(got, " "+local+" "))
					qt.Assert(t, qt.StringContains(got, " "+remote+" "))
				}
			}
		}
	}
}

func TestTableStops(t *testing.T) {
	header := strings.TrimSuffix(string(mustNew(t, "table", Options{}).AppendHeader(nil)), "\n")
	qt.Assert(t, qt.Equals(header, "TIME     LOCAL           REMOTE          TRANSITION             DWELL OWNER"))
	owner := strings.Index(header, "OWNER")
	for _, pair := range [][2]string{
		{"127.0.0.1:48132", "127.0.0.1:443"},
		{"10.0.0.17:48132", "10.0.100.1:8080"},
		{"192.168.1.2:443", "10.1.2.33:48132"},
	} {
		for _, tr := range tracer.LegalTransitions() {
			if tr.Old == tracer.StateNewSynRecv {
				continue
			}
			got := []rune(tableRow(t, Options{}, newEvent(tr.Old, tr.New, pair[0], pair[1])))
			qt.Assert(t, qt.Equals(string(got[owner:]), "curl"), qt.Commentf("%s", string(got)))
		}
	}
}

func TestTableOwnerIsShortened(t *testing.T) {
	ev := newEvent(tracer.StateFinWait2, tracer.StateTimeWait, "127.0.0.1:48132", "127.0.0.1:443")
	ev.Owner.SetComm("exactly15chars!")
	tests := []struct {
		width int
		want  string
	}{
		{0, "exactly1…"},
		{-5, "exactly1…"},
		{40, "exactly1…"},
		{80, "exactly1…"},
		{85, "exactly15char…"},
		{86, "exactly15chars!"},
		{93, "exactly15chars!"},
		{94, "exactly15chars!/4194304"},
		{wideWidth, "exactly15chars!/4194304"},
	}
	for _, tt := range tests {
		got := tableRow(t, Options{Width: tt.width}, ev)
		qt.Check(t, qt.IsTrue(strings.HasSuffix(got, " "+tt.want)), qt.Commentf("width %d: %s", tt.width, got))
	}
}

func TestTableWideIsNotShortened(t *testing.T) {
	for _, tr := range everyTransition() {
		ev := newEvent(tr.Old, tr.New, "192.168.100.200:48132", "192.168.100.201:65535")
		ev.Owner.SetComm("exactly15chars!")
		got := tableRow(t, Options{Width: wideWidth}, ev)
		qt.Assert(t, qt.StringContains(got, tr.String()))
		qt.Assert(t, qt.IsTrue(utf8.RuneCountInString(got) < wideWidth), qt.Commentf("%s", got))
	}
}

func TestTableColor(t *testing.T) {
	plain := mustNew(t, "table", Options{})
	colored := mustNew(t, "table", Options{Color: true})
	for _, ev := range sampleEvents() {
		want := plain.AppendEvent(nil, &ev)
		got := colored.AppendEvent(nil, &ev)
		qt.Check(t, qt.IsFalse(bytes.ContainsRune(want, '\x1b')))
		for _, tint := range []string{tintOpen, tintTimeWait, tintBroken, tintClosing, tintOff} {
			got = bytes.ReplaceAll(got, []byte(tint), nil)
		}
		qt.Check(t, qt.Equals(string(got), string(want)))
	}
}

func TestAppendDuration(t *testing.T) {
	tests := []struct {
		d    time.Duration
		want string
	}{
		{-1, "<0"},
		{0, "0ns"},
		{999, "999ns"},
		{1_000, "1.0µs"},
		{9_999, "9.9µs"},
		{10_000, "10µs"},
		{999_999, "999µs"},
		{1_200_000, "1.2ms"},
		{999_999_999, "999ms"},
		{time.Second, "1.0s"},
		{60_321 * time.Millisecond, "60.3s"},
		{100*time.Second - 1, "99.9s"},
		{100 * time.Second, "1m40s"},
		{10*time.Minute - 1, "9m59s"},
		{10 * time.Minute, "10m"},
		{time.Hour - 1, "59m"},
		{time.Hour, "1h00m"},
		{2*time.Hour + 5*time.Minute, "2h05m"},
		{10 * time.Hour, "10h"},
		{100*time.Hour - 1, "99h"},
		{100 * time.Hour, "4d"},
		{1<<63 - 1, "106751d"},
	}
	for _, tt := range tests {
		got := string(AppendDuration(nil, tt.d))
		qt.Check(t, qt.Equals(got, tt.want))
		if tt.d < 9999*24*time.Hour {
			qt.Check(t, qt.IsTrue(utf8.RuneCountInString(got) <= dwellWidth), qt.Commentf("%s", fmt.Sprint(tt.d)))
		}
	}
}
