package output

import (
	"net/netip"
	"strings"
	"time"

	"github.com/finwait/finwait/tracer"
)

var testTime = time.Date(2026, 11, 22, 9, 8, 7, 60_500_000, time.UTC)

// The cgroups of events. Only those of testCgroup are known.
const (
	cgroupOfPod     = 9007199254740993
	cgroupOfNobody  = 9007199254740994
	cgroupOfHostile = 9007199254740995
)

// hostileName is the longest that a cgroup can have, of an LXC container.
var hostileName = ("=c,\"\x1b[2J\r\n\xff<\u202e" + strings.Repeat("n", 255))[:255-len("lxc.payload.")]

func testCgroup(id uint64) (tracer.Cgroup, bool) {
	switch id {
	case cgroupOfPod:
		return tracer.Cgroup{
			ID:          id,
			ContainerID: "ae2a4e6a9ca1c1d2a8f0d7b1f6a2c6a1b27d6c1ac5a0e8c8f1e5d3b0c9a87654",
			PodUID:      "7d5f3b1e-0c4a-4f3e-9a51-2b6c8d9e0f12",
		}, true
	case cgroupOfHostile:
		return tracer.Cgroup{ID: id, ContainerID: hostileName}, true
	}
	return tracer.Cgroup{}, false
}

// newEvent returns an event that has everything.
func newEvent(old, now tracer.State, local, remote string) tracer.Event {
	ev := tracer.Event{
		Time:       testTime,
		Transition: tracer.Transition{Old: old, New: now},
		Dwell:      60_321 * time.Millisecond,
		DwellKnown: true,
		Cookie:     18446744073709551615,
		Netns:      4026531840,
		Family:     tracer.FamilyIPv4,
		Local:      netip.MustParseAddrPort(local),
		Remote:     netip.MustParseAddrPort(remote),
		Owner:      tracer.Owner{Origin: tracer.OriginConnect, PID: 4194304, UID: 1000, CgroupID: cgroupOfPod},
		Role:       tracer.RoleClient,
		Evidence:   tracer.EvidenceTimer,
	}
	ev.Owner.SetComm("curl")
	if ev.Local.Addr().Is6() {
		ev.Family = tracer.FamilyIPv6
	}
	return ev
}

// bareEvent returns an event of which nothing is known but the transition.
func bareEvent() tracer.Event {
	return tracer.Event{
		Time:       testTime,
		Transition: tracer.Transition{Old: tracer.StateSynRecv, New: tracer.StateEstablished},
	}
}

func listenerEvent() tracer.Event {
	ev := newEvent(tracer.StateClose, tracer.StateListen, "0.0.0.0:8080", "0.0.0.0:0")
	ev.DwellKnown = false
	ev.Owner.Origin = tracer.OriginListen
	ev.Owner.UID = 0
	ev.Owner.CgroupID = 0
	ev.Owner.SetComm("nginx")
	ev.Role = tracer.RoleServer
	ev.Evidence = tracer.EvidenceKernel
	return ev
}

func connectingEvent() tracer.Event {
	ev := newEvent(tracer.StateClose, tracer.StateSynSent, "10.1.2.3:0", "10.200.30.40:5432")
	ev.DwellKnown = false
	return ev
}

func hostileEvent() tracer.Event {
	ev := newEvent(tracer.StateEstablished, tracer.StateClose, "127.0.0.1:48132", "127.0.0.1:443")
	ev.Dwell = 1_250 * time.Microsecond
	ev.Owner.CgroupID = cgroupOfHostile
	ev.Owner.SetComm("=a,\"\x1b[2J\r\n\xff<\u202e")
	return ev
}

func mappedEvent() tracer.Event {
	ev := newEvent(tracer.StateLastAck, tracer.StateClose, "127.0.0.1:443", "127.0.0.1:48132")
	ev.Family = tracer.FamilyIPv6
	ev.Dwell = 42 * time.Microsecond
	ev.Owner.CgroupID = cgroupOfNobody
	return ev
}

// sampleEvents are the events of the golden files.
func sampleEvents() []tracer.Event {
	expired := newEvent(tracer.StateTimeWait, tracer.StateClose, "[2001:db8:1:2:3:4:5:6]:48132", "[2001:db8::7]:443")
	expired.Reason = tracer.ReasonExpired
	return []tracer.Event{
		listenerEvent(),
		connectingEvent(),
		bareEvent(),
		newEvent(tracer.StateFinWait2, tracer.StateTimeWait, "127.0.0.1:48132", "127.0.0.1:8080"),
		newEvent(tracer.StateEstablished, tracer.StateCloseWait, "192.168.100.200:48132", "192.168.100.201:65535"),
		expired,
		newEvent(tracer.StateSynSent, tracer.StateEstablished, "[::1]:48132", "[::1]:443"),
		hostileEvent(),
		mappedEvent(),
	}
}
