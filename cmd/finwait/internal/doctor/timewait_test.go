package doctor

import (
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/procnet"
	"github.com/finwait/finwait/tracer"
)

// A namespace has at most one of the findings about TIME_WAIT.
func TestTimeWait(t *testing.T) {
	for _, tt := range []struct {
		name               string
		changes            []string
		timeWait, orphans  uint64 // mini-sockets
		ipv6, refused      uint64
		before             tracer.StateCounts
		memory             observe.Memory
		watched            time.Duration
		id, summary, lines string
	}{
		{name: "nothing"},
		{name: "few", timeWait: 30_000},
		{name: "many", timeWait: 30_001, id: "time-wait-large", summary: "30,001 sockets in TIME_WAIT, which is harmless by itself"},
		{
			name: "many and their memory", timeWait: 40_000, ipv6: 10_000, memory: observe.Memory{MiniSocket: 250, MiniSocketIPv6: 300},
			id: "time-wait-large", summary: "40,000 sockets in TIME_WAIT, which is harmless by itself: 11 MB of kernel memory in all",
		},
		{
			name: "many and half of their memory", timeWait: 40_000, ipv6: 10_000, memory: observe.Memory{MiniSocket: 250},
			id: "time-wait-large", summary: "40,000 sockets in TIME_WAIT, which is harmless by itself",
		},
		{name: "many and no limit known", changes: []string{"tcp_max_tw_buckets", "absent"}, timeWait: 1e6, id: "time-wait-large", summary: "1,000,000 sockets in TIME_WAIT, which is harmless by itself"},
		{name: "below the limit", changes: []string{"tcp_max_tw_buckets", "1000"}, timeWait: 799},
		{
			name: "near the limit", changes: []string{"tcp_max_tw_buckets", "1000"}, timeWait: 800,
			id: "time-wait-limit", summary: "800 sockets in TIME_WAIT, of 1,000 that there may be", lines: "net.ipv4.tcp_max_tw_buckets = 2000",
		},
		{
			name: "near the limit with orphans", changes: []string{"tcp_max_tw_buckets", "1000"}, timeWait: 700, orphans: 100, memory: observe.Memory{EstablishedHash: 524288, MiniSocket: 250, MiniSocketIPv6: 256},
			id: "time-wait-limit", summary: "700 sockets in TIME_WAIT and 100 orphans in FIN_WAIT2, of 1,000 that there may be", lines: "net.ipv4.tcp_max_tw_buckets = 262144",
		},
		{
			name: "near the limit and many", timeWait: 262_144, id: "time-wait-limit",
			summary: "262,144 sockets in TIME_WAIT, of 262,144 that there may be", lines: "net.ipv4.tcp_max_tw_buckets = 524288",
		},
		{
			name: "refused", changes: []string{"tcp_max_tw_buckets", "1000"}, timeWait: 1000, refused: 23,
			id: "time-wait-refused", summary: "TIME_WAIT refused to 23 connections, 2.3 a second", lines: "net.ipv4.tcp_max_tw_buckets = 2000",
		},
		{
			name: "refused and many", changes: []string{"tcp_max_tw_buckets", "100000"}, timeWait: 100_000, refused: 1,
			id: "time-wait-refused", summary: "TIME_WAIT refused to 1 connection, 0.1 a second", lines: "net.ipv4.tcp_max_tw_buckets = 200000",
		},
		{
			name: "none allowed", changes: []string{"tcp_max_tw_buckets", "0"}, refused: 230, memory: observe.Memory{EstablishedHash: 524288},
			id: "time-wait-refused", summary: "TIME_WAIT refused to 230 connections, 23 a second", lines: "net.ipv4.tcp_max_tw_buckets = 262144",
		},
		{
			name: "no memory", timeWait: 100, refused: 23,
			id: "time-wait-refused", summary: "TIME_WAIT refused to 23 connections, 2.3 a second, with room for 262,044 more: it seems that the kernel had no memory for them",
		},
		{
			name: "full before", timeWait: 100, refused: 23, before: tracer.StateCounts{tracer.StateTimeWait: 262_144},
			id: "time-wait-refused", summary: "TIME_WAIT refused to 23 connections, 2.3 a second", lines: "net.ipv4.tcp_max_tw_buckets = 524288",
		},
		{
			name: "full of orphans before", timeWait: 100, refused: 23, before: tracer.StateCounts{tracer.StateFinWait2: 262_144},
			id: "time-wait-refused", summary: "TIME_WAIT refused to 23 connections, 2.3 a second", lines: "net.ipv4.tcp_max_tw_buckets = 524288",
		},
		{
			name: "near the limit, which is below the default", changes: []string{"tcp_max_tw_buckets", "200000"}, timeWait: 200_000, memory: observe.Memory{EstablishedHash: 524288, MiniSocket: 250, MiniSocketIPv6: 256},
			id: "time-wait-limit", summary: "200,000 sockets in TIME_WAIT, of 200,000 that there may be", lines: "net.ipv4.tcp_max_tw_buckets = 262144",
		},
		{
			name: "near the default", timeWait: 262_144, memory: observe.Memory{EstablishedHash: 524288, MiniSocket: 250, MiniSocketIPv6: 256},
			id: "time-wait-limit", summary: "262,144 sockets in TIME_WAIT, of 262,144 that there may be", lines: "net.ipv4.tcp_max_tw_buckets = 524288",
		},
		{
			name: "a while ago", timeWait: 100, refused: 23, watched: 100 * time.Second,
			id: "time-wait-refused", summary: "TIME_WAIT refused to 23 connections, 0.2 a second", lines: "net.ipv4.tcp_max_tw_buckets = 524288",
		},
		{
			name: "refused and no limit known", changes: []string{"tcp_max_tw_buckets", "absent"}, refused: 23,
			id: "time-wait-refused", summary: "TIME_WAIT refused to 23 connections, 2.3 a second", lines: timeWaitRefused.Sysctls[0].Line,
		},
	} {
		t.Run(strings.ReplaceAll(tt.name, " ", "_"), func(t *testing.T) {
			h := portHost(portSysctls(tt.changes...))
			h.Memory = tt.memory
			if tt.watched > 0 {
				h.Ended = h.Began.Add(tt.watched)
			}
			n := &h.Namespaces[0]
			n.States[tracer.StateTimeWait], n.StatesBefore = tt.timeWait, tt.before
			n.MiniSockets, n.MiniSocketsIPv6 = tt.timeWait+tt.orphans, tt.ipv6
			n.Counted = procnet.Counters{"TcpExt.TCPTimeWaitOverflow": tt.refused}
			var found []Finding
			for _, r := range timeWaitRules {
				for _, f := range r.find(h) {
					f.Rule = r
					found = append(found, f)
				}
			}
			if tt.id == "" {
				qt.Assert(t, qt.HasLen(found, 0), qt.Commentf("%+v", found))
				return
			}
			qt.Assert(t, qt.HasLen(found, 1), qt.Commentf("%+v", found))
			qt.Check(t, qt.Equals(found[0].Rule.ID, tt.id))
			qt.Check(t, qt.Equals(found[0].Summary, tt.summary))
			lines := ""
			for _, s := range found[0].Settings() {
				lines += s.Line
			}
			qt.Check(t, qt.Equals(lines, tt.lines))
		})
	}
}
