package doctor

import (
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/procnet"
	"github.com/finwait/finwait/cmd/finwait/internal/sysctl"
	"github.com/finwait/finwait/tracer"
)

// memory is a host with so much memory of TCP, of which 1000 pages are pressure and 2000
// the most, and so many orphans of 100.
func memory(pages, orphans uint64, counted procnet.Counters) *observe.Host {
	h := watched()
	h.Namespaces[0].Counted = counted
	h.Memory = observe.Memory{Pages: pages, PressurePages: 1000, MaxPages: 2000, PageSize: 4096, Orphans: orphans, MaxOrphans: 100}
	return h
}

// logged has the same in a log.
func logged(h *observe.Host) *observe.Host {
	h.Traffic.Source = observe.SourceLog
	return h
}

func ended(h *observe.Host, reason tracer.Reason) *observe.Host {
	h.Traffic = &observe.Traffic{}
	h.Traffic.Endings.Add(tracer.Ending{Old: tracer.StateFinWait1, Reason: reason, Side: tracer.SideLocal}, 1)
	return h
}

func saving(h *observe.Host) *observe.Host {
	h.Memory.Pressure = true
	return h
}

func unknownLimits(h *observe.Host) *observe.Host {
	h.Memory.PressurePages, h.Memory.MaxPages, h.Memory.MaxOrphans = 0, 0, 0
	return h
}

var memoryTests = []struct {
	name string
	host *observe.Host
	want []string
}{
	{"all is well", memory(1000, 50, nil), nil},
	{"pressure", memory(1001, 0, nil), []string{"tcp-memory warning"}},
	{"near the maximum", memory(1800, 0, nil), []string{"tcp-memory warning"}},
	{"nearer the maximum", memory(1801, 0, nil), []string{"tcp-memory critical"}},
	{"limits are not known", unknownLimits(memory(1<<40, 1<<40, nil)), nil},
	{"nothing is known", &observe.Host{Memory: observe.Memory{Pages: 1 << 40, Orphans: 1 << 40}}, nil},
	{"pressure that is over", memory(1, 0, procnet.Counters{"TcpExt.TCPMemoryPressures": 1}), []string{"tcp-memory warning"}},
	{"pressure that goes on", saving(memory(900, 0, nil)), []string{"tcp-memory warning"}},
	{"drops without pressure", memory(1000, 0, procnet.Counters{"TcpExt.TCPRcvQDrop": 1000}), nil},
	{"drops under pressure", memory(1001, 0, procnet.Counters{"TcpExt.TCPRcvQDrop": 1}), []string{"tcp-memory warning"}},
	{"reset for memory in a log", logged(ended(memory(1, 0, nil), tracer.ReasonRSTSentMemory)), []string{"tcp-memory warning"}},
	{"reset for memory in a log, and little left", logged(ended(memory(1801, 0, nil), tracer.ReasonRSTSentMemory)), []string{"tcp-memory critical"}},
	{"reset for orphans in a log", logged(ended(&observe.Host{}, tracer.ReasonRSTSentOrphanLimit)), []string{"orphan-limit warning"}},
	{"reset for memory", ended(memory(1, 0, nil), tracer.ReasonRSTSentMemory), []string{"tcp-memory critical"}},
	{"reset for memory, counted", memory(1, 50, procnet.Counters{"TcpExt.TCPAbortOnMemory": 1}), []string{"tcp-memory critical"}},

	{"many orphans", memory(1, 51, nil), []string{"orphan-limit warning"}},
	{"reset for orphans", ended(memory(1, 0, nil), tracer.ReasonRSTSentOrphanLimit), []string{"orphan-limit critical"}},
	{"reset for orphans, limits not known", ended(unknownLimits(memory(1, 0, nil)), tracer.ReasonRSTSentOrphanLimit), []string{"orphan-limit critical"}},
	{"reset for orphans, counted", memory(1, 51, procnet.Counters{"TcpExt.TCPAbortOnMemory": 1}), []string{"orphan-limit critical"}},
}

func TestMemoryRules(t *testing.T) {
	for _, tt := range memoryTests {
		t.Run(strings.ReplaceAll(tt.name, " ", "_"), func(t *testing.T) {
			qt.Check(t, qt.DeepEquals(brief(judge(t, tt.host)), tt.want))
		})
	}
}

// Of a host that nobody has looked at the limits are not known, and none is proposed.
func TestLogHasNoLimits(t *testing.T) {
	for reason, summary := range map[tracer.Reason]string{
		tracer.ReasonRSTSentMemory:      "1 connection was reset for lack of memory",
		tracer.ReasonRSTSentOrphanLimit: "1 connection was reset because there were too many",
	} {
		all := judge(t, logged(ended(&observe.Host{}, reason)))
		qt.Assert(t, qt.HasLen(all, 1))
		qt.Check(t, qt.HasLen(all[0].Settings(), 0))
		qt.Check(t, qt.Equals(all[0].Summary, summary))
	}
}

func TestMemoryFacts(t *testing.T) {
	h := memory(1900, 0, procnet.Counters{"TcpExt.TCPRcvQDrop": 23})
	h.Namespaces[0].Queued = []observe.Queued{
		{Owner: leaker, Sockets: 23, Unread: 2_300_000}, {Orphan: true, Sockets: 1, Unsent: 5000}, {Sockets: 2, Unread: 17, Unsent: 6},
		{Owner: another, Sockets: 1, Unread: 1},
	}
	all := judge(t, h)
	qt.Assert(t, qt.HasLen(all, 1))
	f := &all[0]
	qt.Check(t, qt.IsNil(f.Netns))
	qt.Check(t, qt.Equals(f.Summary, "TCP's buffers have 7.8 MB; it saves memory from 4.1 MB on, and may have 8.2 MB; 23 segments of data were dropped"))
	qt.Check(t, qt.Equals(valueOf(t, f, "memory_bytes"), any(uint64(1900*4096))))
	qt.Check(t, qt.Equals(valueOf(t, f, "holders").(string), hostile+" (23): 2.3 MB unread, 0 B unsent (sockets: 23); "+
		"no process: 0 B unread, 5.0 kB unsent (sockets: 1); unknown processes: 17 B unread, 6 B unsent (sockets: 2)"))
	qt.Check(t, qt.Equals(f.Settings()[0].Line, "net.ipv4.tcp_mem = 1500 2000 4000"))
	qt.Check(t, qt.IsFalse(hasFact(f, "pressures"))) // nobody counted them
	qt.Check(t, qt.IsFalse(hasFact(f, "resets")))
}

func TestMemoryStillSaved(t *testing.T) {
	all := judge(t, saving(memory(900, 0, nil)))
	qt.Assert(t, qt.HasLen(all, 1))
	qt.Check(t, qt.Equals(all[0].Summary, "TCP's buffers have 3.7 MB; it saves memory from 4.1 MB on, and may have 8.2 MB; it still saves memory, having had more"))
}

func TestOrphanFacts(t *testing.T) {
	h := memory(1, 60, nil)
	h.Namespaces[0].Lasting = []observe.Lasting{orphansIn(tracer.StateFinWait1, 7, 1), orphansIn(tracer.StateFinWait2, 40, 1), orphansIn(tracer.StateLastAck, 10, 2)}
	all := judge(t, h)
	qt.Assert(t, qt.HasLen(all, 1))
	qt.Check(t, qt.Equals(valueOf(t, &all[0], "biggest_peers").(string), "198.51.0.2 (10), 198.51.0.1 (7)"))
	qt.Check(t, qt.Equals(all[0].Settings()[0], orphanRetries))
	qt.Check(t, qt.Equals(all[0].Settings()[1].Line, "net.ipv4.tcp_max_orphans = 200"))

	// There are as few retries as it would set.
	h.Namespaces[0].Sysctls = sysctl.Values{"net.ipv4.tcp_orphan_retries": "3"}
	all = judge(t, h)
	qt.Assert(t, qt.HasLen(all, 1))
	qt.Assert(t, qt.HasLen(all[0].Settings(), 1))
	qt.Check(t, qt.Equals(all[0].Settings()[0].Line, "net.ipv4.tcp_max_orphans = 200"))
}
