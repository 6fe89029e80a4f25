package doctor

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/tracer"
)

// opening is a flow of so many connections a second that the client closes first.
func opening(pid uint32, comm string, to netip.AddrPort, perSecond uint64) observe.Flow {
	f := observe.Flow{
		FlowKey: observe.FlowKey{Service: to, Owner: observe.Process{PID: pid, Comm: comm}},
		Opened:  10 * perSecond, TimeWait: 10 * perSecond,
	}
	for range f.Opened {
		f.SynSent.Add(20 * time.Millisecond)
		f.Handshake.Add(20 * time.Millisecond)
	}
	return f
}

func TestClientChurn(t *testing.T) {
	loopback := netip.MustParseAddrPort("127.0.0.1:6379")
	serverCloses := opening(7, "app", awayTo, 1000)
	serverCloses.TimeWait = 0
	halfCloses := opening(7, "app", awayTo, 100)
	halfCloses.TimeWait /= 2
	var workers []observe.Flow
	for pid := range uint32(23) {
		workers = append(workers, opening(1+pid, "php-fpm", awayTo, 5))
	}
	for _, tt := range []struct {
		name    string
		changes []string
		flows   []observe.Flow
		change  func(*observe.Host)
		want    string // "" if there is nothing
		held    int
	}{
		{name: "nothing"},
		// 28,232 ports, of which 92.6 a second for 61 s take a fifth.
		{name: "a fifth", flows: []observe.Flow{opening(7, "app", awayTo, 93)}, want: "app (7) opens 93 connections a second", held: 5673},
		{name: "less than a fifth", flows: []observe.Flow{opening(7, "app", awayTo, 92)}},
		{name: "the server closes first", flows: []observe.Flow{serverCloses}},
		{name: "half of them", flows: []observe.Flow{halfCloses}},
		{name: "workers", flows: workers, want: "php-fpm (23 processes) opens 115 connections a second", held: 7015},
		{name: "unknown", flows: []observe.Flow{opening(0, "", awayTo, 100)}, want: "a process that is not known opens 100 connections a second", held: 6100},
		{name: "hostile", flows: []observe.Flow{opening(7, "\x1b]0;x\a\n", awayTo, 100)}, want: "\x1b]0;x\a\n (7) opens", held: 6100},
		{name: "no name", flows: []observe.Flow{opening(7, "", awayTo, 100)}, want: "process 7 opens", held: 6100},
		{name: "more than there are", flows: []observe.Flow{opening(7, "app", awayTo, 1000)}, want: "app (7) opens 1,000", held: 28232},

		{name: "fifty a second", changes: []string{"ip_local_port_range", "18000 18999"}, flows: []observe.Flow{opening(7, "app", awayTo, 50)}, want: "app (7) opens 50", held: 1000},
		{name: "less than fifty", changes: []string{"ip_local_port_range", "18000 18999"}, flows: []observe.Flow{opening(7, "app", awayTo, 49)}},

		{name: "used again", changes: []string{"tcp_tw_reuse", "1"}, flows: []observe.Flow{opening(7, "app", awayTo, 5646)}},
		{name: "used again and still many", changes: []string{"tcp_tw_reuse", "1"}, flows: []observe.Flow{opening(7, "app", awayTo, 5647)}, want: "app (7) opens 5,647", held: 5647},
		{name: "loopback", flows: []observe.Flow{opening(7, "app", loopback, 14115)}},
		{name: "loopback half", flows: []observe.Flow{opening(7, "app", loopback, 14116)}, want: "app (7) opens 14,116", held: 14116},
		{name: "loopback without reuse", changes: []string{"tcp_tw_reuse", "0"}, flows: []observe.Flow{opening(7, "app", loopback, 93)}, want: "app (7) opens 93", held: 5673},

		{
			name: "two sources", flows: []observe.Flow{opening(7, "app", awayTo, 93)},
			change: func(h *observe.Host) {
				h.Namespaces[0].Outgoing = []observe.Outgoing{{Local: awayFrom, Remote: awayTo}, {Local: awayFrom.Next(), Remote: awayTo}}
			},
		},
		{name: "another namespace", flows: []observe.Flow{opening(7, "app", awayTo, 93)}, change: func(h *observe.Host) { h.Namespaces[0].Inode++ }},
		{
			name: "a server", flows: []observe.Flow{opening(7, "app", awayTo, 93)},
			change: func(h *observe.Host) { h.Traffic.Flows[0].Role = tracer.RoleServer },
		},
		{name: "range unknown", changes: []string{"ip_local_port_range", "absent"}, flows: []observe.Flow{opening(7, "app", awayTo, 93)}},
		{name: "reuse unknown", changes: []string{"tcp_tw_reuse", "absent"}, flows: []observe.Flow{opening(7, "app", awayTo, 93)}},
		{
			name: "sockets alone",
			change: func(h *observe.Host) {
				h.Namespaces[0].Outgoing = []observe.Outgoing{{
					Local: awayFrom, Remote: awayTo, Owner: observe.Process{PID: 7, Comm: "app"}, New: 930, TimeWait: waiting(930, 5*time.Second),
				}}
			},
			want: "app (7) opens 93", held: 5673,
		},
		{
			name: "sockets alone that stay open",
			change: func(h *observe.Host) {
				h.Namespaces[0].Outgoing = []observe.Outgoing{{Local: awayFrom, Remote: awayTo, Open: 930, New: 930}}
			},
		},
		// What failed is in SYN_SENT for as long as connect tries, and is no handshake.
		{
			name: "many that fail", flows: []observe.Flow{opening(7, "app", awayTo, 93)},
			change: func(h *observe.Host) {
				for range 5000 {
					h.Traffic.Flows[0].SynSent.Add(time.Minute)
				}
			},
			want: "app (7) opens 93", held: 5673,
		},
		// What ports run out for is said by another rule, and said there.
		{
			name: "ports run out", flows: []observe.Flow{opening(7, "app", awayTo, 93)},
			change: func(h *observe.Host) {
				h.Namespaces[0].Outgoing = []observe.Outgoing{{Local: awayFrom, Remote: awayTo, Open: 28_000, Before: 28_000}}
			},
		},
		{
			name: "ports run out elsewhere", flows: []observe.Flow{opening(7, "app", awayTo, 93)},
			change: func(h *observe.Host) {
				h.Namespaces[0].Outgoing = []observe.Outgoing{{Local: awayFrom, Remote: loopback, Open: 28_000, Before: 28_000}}
			},
			want: "app (7) opens 93", held: 5673,
		},
		// A log may be of last week.
		{
			name: "log", flows: []observe.Flow{opening(7, "app", awayTo, 1000)},
			change: func(h *observe.Host) { h.Traffic.Source = observe.SourceLog },
		},
		{name: "agent", change: func(h *observe.Host) { h.Traffic = &observe.Traffic{Opened: 1e6} }},
	} {
		t.Run(strings.ReplaceAll(tt.name, " ", "_"), func(t *testing.T) {
			h := portHost(portSysctls(tt.changes...))
			for _, f := range tt.flows {
				withFlow(h, f)
			}
			if tt.change != nil {
				tt.change(h)
			}
			found := findClientChurn(h, &h.Namespaces[0])
			if tt.want == "" {
				qt.Assert(t, qt.HasLen(found, 0), qt.Commentf("%+v", found))
				return
			}
			qt.Assert(t, qt.HasLen(found, 1))
			qt.Check(t, qt.Equals(found[0].Severity, Info))
			qt.Check(t, qt.StringContains(found[0].Summary, tt.want))
			held, _ := factOf(&found[0], "ports_held_in_the_end")
			qt.Check(t, qt.Equals(held, any(tt.held)))
			median, ok := factOf(&found[0], "handshake_median_seconds")
			qt.Check(t, qt.Equals(ok, tt.flows != nil))
			if ok {
				qt.Check(t, qt.IsTrue(median.(float64) > 0.01 && median.(float64) < 0.04), qt.Commentf("%v", median))
			}
		})
	}
}

// The busiest come first.
func TestClientChurnIsFew(t *testing.T) {
	h := portHost(portSysctls())
	for i := range 23 {
		withFlow(h, opening(7, "app", netip.AddrPortFrom(awayTo.Addr(), uint16(1+i)), uint64(100+i)))
	}
	found := findClientChurn(h, &h.Namespaces[0])
	qt.Assert(t, qt.HasLen(found, handful+1))
	qt.Check(t, qt.IsTrue(slices.IsSortedFunc(found[:handful], func(a, b Finding) int { return strings.Compare(b.Subject, a.Subject) })))
	qt.Check(t, qt.Equals(found[0].Subject, "app (7) to 192.0.2.2:23"))
	qt.Check(t, qt.Equals(found[handful].Summary, "the same is true of 18 other clients"))
}

// What is held is what is in TIME_WAIT now, from all addresses; the rest is to come.
func TestClientChurnHolds(t *testing.T) {
	for _, tt := range []struct {
		changes []string
		flow    observe.Flow
		want    string
	}{
		{nil, opening(7, "app", awayTo, 200), "TIME_WAIT holds 1,330 of 56,464 ports now, and 12,200 in the end at this rate"},
		{[]string{"tcp_tw_reuse", "1"}, opening(7, "app", awayTo, 12_000), "TIME_WAIT holds 400 of 56,464 ports now, and 12,000 in the end at this rate"},
	} {
		h := withFlow(portHost(portSysctls(tt.changes...),
			observe.Outgoing{Local: awayFrom, Remote: awayTo, TimeWait: waiting(930, 5*time.Second)},
			observe.Outgoing{Local: awayFrom.Next(), Remote: awayTo, TimeWait: waiting(400, time.Second/2)},
			observe.Outgoing{Local: awayFrom, Remote: netip.AddrPortFrom(awayTo.Addr(), 1), TimeWait: waiting(23, time.Second/2)},
		), tt.flow)
		found := findClientChurn(h, &h.Namespaces[0])
		qt.Assert(t, qt.HasLen(found, 1))
		_, says, _ := strings.Cut(found[0].Summary, ": ")
		qt.Check(t, qt.Equals(says, tt.want))
	}
}
