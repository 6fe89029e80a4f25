package tracer

import (
	"context"
	"net/netip"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/go-quicktest/qt"
)

// loadTest loads the programs of bpf/finwait_test.bpf.c with a filter.
func loadTest(tb testing.TB, filter Filter, eventBuffer uint32) *bpfTestObjects {
	tb.Helper()
	requireRoot(tb)
	spec, err := loadBpfTest()
	qt.Assert(tb, qt.IsNil(err))
	spec.Maps["events"].MaxEntries = eventBuffer
	var objs bpfTestObjects
	qt.Assert(tb, qt.IsNil(spec.LoadAndAssign(&objs, nil)))
	tb.Cleanup(func() { objs.Close() })
	qt.Assert(tb, qt.IsNil(objs.Filters.Set([2]bpfFinwaitFilter{kernelFilter(&filter, nil)})))
	return &objs
}

// The verdicts of bpf/filter.h on a tuple.
const (
	verdictDrop = iota
	verdictPass
	verdictLater
)

type filterCase struct {
	name   string
	filter Filter
	local  string
	remote string
	edit   func(*bpfTestTestFilter)
	want   [3]uint8 // by tuple, by owner, by transition
}

var yes = [3]uint8{verdictPass, 1, 1}

func filterCases() []filterCase {
	ports := func(first, last uint16) []PortRange { return []PortRange{{first, last}} }
	prefixes := func(s ...string) (p []netip.Prefix) {
		for _, s := range s {
			p = append(p, netip.MustParsePrefix(s))
		}
		return p
	}
	byTuple := func(verdict uint8) [3]uint8 { return [3]uint8{verdict, 1, 1} }
	byWho := func(pass uint8) [3]uint8 { return [3]uint8{verdictPass, pass, 1} }
	byTransition := func(pass uint8) [3]uint8 { return [3]uint8{verdictPass, 1, pass} }
	unowned := func(f *bpfTestTestFilter) { f.Who.Origin = uint8(OriginUnknown) }
	const a, b = "192.0.2.1:40000", "198.51.100.7:443"
	return []filterCase{
		{name: "none", local: a, remote: b, want: yes},
		{name: "family", filter: Filter{Family: FamilyIPv4}, local: a, remote: b, want: yes},
		{name: "other family", filter: Filter{Family: FamilyIPv6}, local: a, remote: b, want: byTuple(verdictDrop)},
		{name: "lport", filter: Filter{LocalPorts: ports(40000, 40000)}, local: a, remote: b, want: yes},
		{name: "lport of the peer", filter: Filter{LocalPorts: ports(443, 443)}, local: a, remote: b, want: byTuple(verdictDrop)},
		{name: "lport not chosen", filter: Filter{LocalPorts: ports(40000, 40000)}, local: "192.0.2.1:0", remote: b, want: byTuple(verdictLater)},
		{name: "rport", filter: Filter{RemotePorts: ports(440, 450)}, local: a, remote: b, want: yes},
		{name: "rport edge", filter: Filter{RemotePorts: ports(444, 450)}, local: a, remote: b, want: byTuple(verdictDrop)},
		{name: "rport decides", filter: Filter{RemotePorts: ports(80, 80), LocalPorts: ports(1, 65535)}, local: "192.0.2.1:0", remote: b, want: byTuple(verdictDrop)},
		{name: "port either end", filter: Filter{Ports: ports(443, 443)}, local: a, remote: b, want: yes},
		{name: "port 65535", filter: Filter{Ports: ports(65535, 65535)}, local: "192.0.2.1:65535", remote: b, want: yes},
		{name: "port neither end", filter: Filter{Ports: ports(80, 80)}, local: a, remote: b, want: byTuple(verdictDrop)},
		{name: "port may come", filter: Filter{Ports: ports(80, 80)}, local: "192.0.2.1:0", remote: b, want: byTuple(verdictLater)},
		{name: "port is there already", filter: Filter{Ports: ports(443, 443)}, local: "192.0.2.1:0", remote: b, want: yes},
		{name: "net local", filter: Filter{Addrs: prefixes("192.0.2.0/24")}, local: a, remote: b, want: yes},
		{name: "net remote", filter: Filter{Addrs: prefixes("10.0.0.0/8", "198.51.100.7/32")}, local: a, remote: b, want: yes},
		{name: "net neither", filter: Filter{Addrs: prefixes("198.51.100.6/32")}, local: a, remote: b, want: byTuple(verdictDrop)},
		{name: "all IPv4", filter: Filter{Addrs: prefixes("0.0.0.0/0")}, local: a, remote: b, want: yes},
		{name: "IPv6 is not IPv4", filter: Filter{Addrs: prefixes("0.0.0.0/0")}, local: "[2001:db8::1]:1", remote: "[2001:db8::2]:2", want: byTuple(verdictDrop)},
		{name: "IPv6 net", filter: Filter{Addrs: prefixes("2001:db8::/33")}, local: "[2001:db8::1]:1", remote: "[2001:db8:8000::2]:2", want: yes},
		{name: "IPv6 other net", filter: Filter{Addrs: prefixes("2001:db8:8000::/33")}, local: "[2001:db8::1]:1", remote: "[2001:db8::2]:2", want: byTuple(verdictDrop)},
		{name: "netns", filter: Filter{Netns: []uint32{1, 7}}, local: a, remote: b, want: yes},
		{name: "other netns", filter: Filter{Netns: []uint32{1, 2}}, local: a, remote: b, want: byTuple(verdictDrop)},
		{name: "pid", filter: Filter{PIDs: []uint32{1, 42}}, local: a, remote: b, want: yes},
		{name: "other pid", filter: Filter{PIDs: []uint32{1}}, local: a, remote: b, want: byWho(0)},
		{name: "pid unknown", filter: Filter{PIDs: []uint32{42}}, local: a, remote: b, edit: unowned, want: byWho(0)},
		{name: "root is not unknown", filter: Filter{UIDs: []uint32{0}}, local: a, remote: b, edit: unowned, want: byWho(0)},
		{name: "uid", filter: Filter{UIDs: []uint32{1000}}, local: a, remote: b, want: yes},
		{name: "uid and pid", filter: Filter{UIDs: []uint32{1000}, PIDs: []uint32{43}}, local: a, remote: b, want: byWho(0)},
		{name: "comm", filter: Filter{Comms: []string{"nginx", "curl"}}, local: a, remote: b, want: yes},
		{name: "comm is whole", filter: Filter{Comms: []string{"cur"}}, local: a, remote: b, want: byWho(0)},
		{name: "cgroup", filter: Filter{Cgroups: []uint64{9}}, local: a, remote: b, want: byWho(0)},
		{name: "in cgroup", filter: Filter{Cgroups: []uint64{9}}, local: a, remote: b, edit: func(f *bpfTestTestFilter) { f.Who.InCgroup = 1 }, want: yes},
		{name: "state entered", filter: Filter{States: []State{StateTimeWait}}, local: a, remote: b, want: yes},
		{name: "state left", filter: Filter{States: []State{StateFinWait2}}, local: a, remote: b, want: yes},
		{name: "other state", filter: Filter{States: []State{StateListen}}, local: a, remote: b, want: byTransition(0)},
		{name: "transition", filter: Filter{Transitions: []Transition{{StateFinWait2, StateTimeWait}}}, local: a, remote: b, want: yes},
		{name: "other transition", filter: Filter{Transitions: []Transition{{StateFinWait2, StateClose}}}, local: a, remote: b, want: byTransition(0)},
	}
}

func (c filterCase) input() *bpfTestTestFilter {
	local, remote := netip.MustParseAddrPort(c.local), netip.MustParseAddrPort(c.remote)
	in := &bpfTestTestFilter{Family: uint8(FamilyIPv6), OldState: uint8(StateFinWait2), NewState: uint8(StateTimeWait)}
	if local.Addr().Is4() {
		in.Family = uint8(FamilyIPv4)
	}
	in.Tuple.Laddr, in.Tuple.Lport = local.Addr().As16(), local.Port()
	in.Tuple.Raddr, in.Tuple.Rport = remote.Addr().As16(), remote.Port()
	in.Tuple.Netns = 7
	in.Who.Origin, in.Who.Pid, in.Who.Uid = uint8(OriginConnect), 42, 1000
	copy(in.Who.Comm[:], "curl")
	if c.edit != nil {
		c.edit(in)
	}
	return in
}

func TestFilter(t *testing.T) {
	for _, test := range filterCases() {
		t.Run(test.name, func(t *testing.T) {
			objs := loadTest(t, test.filter, 4096)
			in := test.input()
			var out bpfTestTestFilter
			_, err := objs.RunFilter.Run(&ebpf.RunOptions{Context: in, ContextOut: &out})
			qt.Assert(t, qt.IsNil(err))
			qt.Assert(t, qt.Equals([3]uint8{out.ByTuple, out.ByWho, out.ByTransition}, test.want))
		})
	}
}

func emitTimes(tb testing.TB, objs *bpfTestObjects, times uint32) {
	tb.Helper()
	in := bpfTestTestEmit{Family: uint8(FamilyIPv4), OldState: uint8(StateFinWait2), NewState: uint8(StateTimeWait), Times: times}
	in.TimeNs, in.SinceNs, in.Cookie = 5000, 2000, 99
	_, err := objs.RunEmit.Run(&ebpf.RunOptions{Context: &in})
	qt.Assert(tb, qt.IsNil(err))
}

// testTracer reads what the test programs emit.
func testTracer(tb testing.TB, objs *bpfTestObjects) *Tracer {
	tb.Helper()
	reader, err := ringbuf.NewReader(objs.Events)
	qt.Assert(tb, qt.IsNil(err))
	tb.Cleanup(func() { reader.Close() })
	coll := &ebpf.Collection{
		Maps:     map[string]*ebpf.Map{"matrix": objs.Matrix, "ledger": objs.Ledger},
		Programs: map[string]*ebpf.Program{statePrograms[0]: objs.RunEmit}, // for its statistics
	}
	t := &Tracer{coll: coll, events: &ring{Reader: reader, name: "events", used: true}, conns: &ring{}}
	t.detached.Store(true) // Events ends when it has read all
	return t
}

// What does not fit into the ring is lost, counted, and in the matrix. The
// high-water mark is what fits, before it is read and after.
func TestRingFull(t *testing.T) {
	objs := loadTest(t, Filter{}, 4096)
	tracer := testTracer(t, objs)
	const emitted = 1009
	emitTimes(t, objs, emitted)
	full := tracer.ringStats()
	tracer.events.highWater.Store(0) // for the reader to find out by itself
	var read uint64
	for ev, err := range tracer.Events(context.Background()) {
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.Equals(ev.Dwell, 3000))
		read++
	}
	l, err := tracer.Ledger()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(l.Seen, emitted))
	qt.Check(t, qt.Equals(l.Emitted, read))
	qt.Check(t, qt.Equals(l.Emitted+l.RingFull, emitted))
	qt.Check(t, qt.Equals(l.RingFull, l.Lost()))
	qt.Check(t, qt.IsTrue(l.RingFull > 900), qt.Commentf("%d", l.RingFull))
	size := uint64(unsafe.Sizeof(bpfFinwaitEvent{})) + ringbufHeader
	qt.Check(t, qt.DeepEquals(full, []RingStats{{"events", 4096, l.Emitted * size}}))
	qt.Check(t, qt.DeepEquals(tracer.ringStats(), full))
}

// From the ring to the caller, events cost no allocation.
func TestEventsAllocateNothing(t *testing.T) {
	objs := loadTest(t, Filter{}, 1<<24)
	tracer := testTracer(t, objs)
	const events = 100_000
	emitTimes(t, objs, events)
	var before, after runtime.MemStats
	read := 0
	for range tracer.Events(context.Background()) {
		switch read++; read {
		case 1000:
			runtime.ReadMemStats(&before)
		case events:
			runtime.ReadMemStats(&after)
		}
	}
	qt.Assert(t, qt.Equals(read, events))
	// The test binary's own goroutines may allocate; one in a thousand
	// events would show ninety-nine.
	qt.Assert(t, qt.IsTrue(after.Mallocs-before.Mallocs < 50), qt.Commentf("%d allocations", after.Mallocs-before.Mallocs))
}

func TestFilteredEventsAreCounted(t *testing.T) {
	objs := loadTest(t, Filter{States: []State{StateListen}}, 4096)
	tracer := testTracer(t, objs)
	emitTimes(t, objs, 23)
	for range tracer.Events(context.Background()) {
		t.Fatal("an event that the filter does not let through")
	}
	c, err := tracer.Counters()
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(c.Count(Transition{StateFinWait2, StateTimeWait}), 23))
	qt.Assert(t, qt.Equals(c.Total(), 23))
}

// BenchmarkEvents reads events that are there already.
func BenchmarkEvents(b *testing.B) {
	objs := loadTest(b, Filter{}, 1<<24)
	tracer := testTracer(b, objs)
	b.ReportAllocs()
	read := 0
	for read < b.N {
		b.StopTimer()
		emitTimes(b, objs, 100_000)
		b.StartTimer()
		for range tracer.Events(context.Background()) {
			read++
		}
	}
}

// fullestFilter has as much of everything as there may be.
func fullestFilter() Filter {
	f := Filter{
		Ports:       []PortRange{{1, 65535}},
		LocalPorts:  []PortRange{{1, 65535}},
		RemotePorts: []PortRange{{1, 65535}},
		Family:      FamilyIPv6,
	}
	for i := range filterMax {
		f.Addrs = append(f.Addrs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 16))
		f.Netns = append(f.Netns, uint32(i+1))
		f.PIDs = append(f.PIDs, uint32(i+1))
		f.UIDs = append(f.UIDs, uint32(i+1))
		f.Comms = append(f.Comms, string(rune('a'+i)))
		f.Cgroups = append(f.Cgroups, uint64(i+1))
	}
	return f
}

// The verifier takes the largest filter too.
func TestFullestFilterLoads(t *testing.T) {
	requireRoot(t)
	tracer, err := New(&Options{Filter: fullestFilter()})
	qt.Assert(t, qt.IsNil(err))
	t.Log(verified(t, tracer))
	qt.Assert(t, qt.IsNil(tracer.Close()))
}

// Whoever asks again for events within the kernel's pause between two wakes
// gets what comes in it.
func TestEventsAskedAgain(t *testing.T) {
	objs := loadTest(t, Filter{}, 1<<16)
	tracer := testTracer(t, objs)
	tracer.detached.Store(false)
	for range 50 {
		for range 2 {
			emitTimes(t, objs, 1)
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			read := 0
			for range tracer.Events(ctx) {
				read++
				break
			}
			cancel()
			qt.Assert(t, qt.Equals(read, 1))
		}
	}
}
