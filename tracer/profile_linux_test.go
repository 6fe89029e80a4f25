package tracer

import (
	"fmt"
	"math"
	"net"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/go-quicktest/qt"
)

// loadProfileTest loads the programs of bpf/finwait_test.bpf.c with a profile.
func loadProfileTest(t testing.TB, by ProfileDimension, rows uint32) (*bpfTestObjects, *Tracer) {
	t.Helper()
	requireRoot(t)
	spec, err := loadBpfTest()
	qt.Assert(t, qt.IsNil(err))
	opts := &ProfileOptions{By: by}
	qt.Assert(t, qt.IsNil(spec.Variables["profile_by"].Set(opts.constant())))
	spec.Maps["events"].MaxEntries = 4096
	spec.Maps[profileMap].MaxEntries = rows
	var objs bpfTestObjects
	qt.Assert(t, qt.IsNil(spec.LoadAndAssign(&objs, nil)))
	t.Cleanup(func() { objs.Close() })
	qt.Assert(t, qt.IsNil(objs.Filters.Set([2]bpfFinwaitFilter{kernelFilter(&Filter{}, nil)})))
	qt.Assert(t, qt.IsNil(opts.makeOthers(objs.Profiles)))
	tracer := testTracer(t, &objs)
	tracer.coll.Maps[profileMap] = objs.Profiles
	tracer.profile = opts
	return &objs, tracer
}

func emitOnce(t *testing.T, objs *bpfTestObjects, in *bpfTestTestEmit) {
	t.Helper()
	in.Times = 1
	_, err := objs.RunEmit.Run(&ebpf.RunOptions{Context: in})
	qt.Assert(t, qt.IsNil(err))
}

func profileOf(t *testing.T, tracer *Tracer) *Profile {
	t.Helper()
	p, err := tracer.Profile()
	qt.Assert(t, qt.IsNil(err))
	return p
}

// The kernel side puts times where Go puts them, and adds them up as Go does.
func TestProfileBuckets(t *testing.T) {
	objs, tracer := loadProfileTest(t, ProfileByState, 100)
	var want Histogram
	for d := range bucketEdges {
		if d == math.MaxInt64 {
			d -= 1 // since_ns may not be 0
		}
		for range 3 { // the sum takes more than 64 bits
			emitOnce(t, objs, &bpfTestTestEmit{
				OldState: uint8(StateCloseWait), NewState: uint8(StateLastAck),
				SinceNs: 1, TimeNs: 1 + uint64(d),
			})
			want.Add(d)
		}
	}
	for _, in := range []bpfTestTestEmit{{TimeNs: 5}, {SinceNs: 6, TimeNs: 5}} {
		in.OldState, in.NewState = uint8(StateCloseWait), uint8(StateLastAck)
		emitOnce(t, objs, &in)
		want.Unknown++
	}
	p := profileOf(t, tracer)
	qt.Assert(t, qt.HasLen(p.Rows, 1))
	qt.Check(t, qt.Equals(p.Rows[0].Key, ProfileKey{State: StateCloseWait}))
	qt.Check(t, qt.Equals(p.Rows[0].Histogram, want))
	qt.Check(t, qt.IsTrue(want.sumHigh > 0))
}

// Whoever leaves CLOSE has not been in it.
func TestProfileLeavesOutClose(t *testing.T) {
	objs, tracer := loadProfileTest(t, ProfileByState, 100)
	emitOnce(t, objs, &bpfTestTestEmit{OldState: uint8(StateClose), NewState: uint8(StateListen), SinceNs: 1, TimeNs: 2})
	qt.Check(t, qt.HasLen(profileOf(t, tracer).Rows, 0))
}

func TestProfileKeys(t *testing.T) {
	server := func(e *bpfTestTestEmit) { e.Who.Role = uint8(RoleServer) }
	client := func(e *bpfTestTestEmit) { e.Who.Role = uint8(RoleClient) }
	noPort := func(e *bpfTestTestEmit) { server(e); e.Tuple.Lport = 0 }
	unowned := func(e *bpfTestTestEmit) { e.Who.Origin = uint8(OriginUnknown) }
	nothing := func(*bpfTestTestEmit) {}
	for _, test := range []struct {
		by   ProfileDimension
		edit func(*bpfTestTestEmit)
		want ProfileKey
	}{
		{ProfileByService, server, ProfileKey{Group: GroupOne, Value: 80}},
		{ProfileByService, client, ProfileKey{Group: GroupClients}},
		{ProfileByService, nothing, ProfileKey{Group: GroupUnknown}},
		{ProfileByService, noPort, ProfileKey{Group: GroupUnknown}},
		{ProfileByRemotePort, server, ProfileKey{Group: GroupServers}},
		{ProfileByRemotePort, client, ProfileKey{Group: GroupOne, Value: 40000}},
		{ProfileByRemotePort, nothing, ProfileKey{Group: GroupUnknown}},
		{ProfileByCgroup, nothing, ProfileKey{Group: GroupOne, Value: 1 << 40}},
		{ProfileByCgroup, unowned, ProfileKey{Group: GroupUnknown}},
		{ProfileByProcess, nothing, ProfileKey{Group: GroupOne, Value: 42}},
		{ProfileByProcess, unowned, ProfileKey{Group: GroupUnknown}},
		{ProfileByState, nothing, ProfileKey{Group: GroupOne}},
	} {
		objs, tracer := loadProfileTest(t, test.by, 100)
		in := &bpfTestTestEmit{OldState: uint8(StateFinWait2), NewState: uint8(StateTimeWait), SinceNs: 1, TimeNs: 2}
		in.Tuple.Lport, in.Tuple.Rport = 80, 40000
		in.Who.Origin, in.Who.Pid, in.Who.CgroupId = uint8(OriginListen), 42, 1<<40
		copy(in.Who.Comm[:], "nginx")
		test.edit(in)
		emitOnce(t, objs, in)
		p := profileOf(t, tracer)
		qt.Assert(t, qt.HasLen(p.Rows, 1))
		test.want.State = StateFinWait2
		qt.Check(t, qt.Equals(p.Rows[0].Key, test.want), qt.Commentf("%v", test.by))
		comm := ""
		if test.by == ProfileByProcess && test.want.Group == GroupOne {
			comm = "nginx"
		}
		qt.Check(t, qt.Equals(string(p.Rows[0].Comm()), comm))
	}
}

// What finds no room goes into the row of its state for others, known or not,
// and is counted; what has a row goes on there.
func TestProfileFull(t *testing.T) {
	const room, ports, rounds = 5, 23, 3
	objs, tracer := loadProfileTest(t, ProfileByService, uint32(len(States())+room))
	for range rounds {
		for port := range uint16(ports) {
			in := &bpfTestTestEmit{OldState: uint8(StateCloseWait), NewState: uint8(StateLastAck), TimeNs: 1000, SinceNs: uint64(port % 2)}
			in.Who.Role = uint8(RoleServer)
			in.Tuple.Lport = 1000 + port
			emitOnce(t, objs, in)
		}
	}
	p := profileOf(t, tracer)
	qt.Assert(t, qt.HasLen(p.Rows, room+1))
	for _, row := range p.Rows[:room] {
		qt.Check(t, qt.Equals(row.Count()+row.Unknown, rounds))
	}
	others := p.Rows[room]
	qt.Check(t, qt.Equals(others.Key, ProfileKey{StateCloseWait, GroupOthers, 0}))
	qt.Check(t, qt.Equals(others.Count()+others.Unknown, (ports-room)*rounds))
	count, unknown := p.Total()
	qt.Check(t, qt.Equals(count, ports/2*rounds))
	qt.Check(t, qt.Equals(unknown, (ports+1)/2*rounds))
	l, err := tracer.Ledger()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(l.ProfileFull, (ports-room)*rounds))
}

// The same with sockets, of the whole host: whatever finds no room, nothing is
// missing.
func TestProfileFullOfSockets(t *testing.T) {
	requireRoot(t)
	const rows, listeners = 3, 101
	tracer, err := New(&Options{Profile: &ProfileOptions{rows: rows}})
	qt.Assert(t, qt.IsNil(err))
	defer tracer.Close()
	var open []net.Listener // all at once, so that each has another port
	for range listeners {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		qt.Assert(t, qt.IsNil(err))
		open = append(open, l)
	}
	for _, l := range open {
		qt.Assert(t, qt.IsNil(l.Close()))
	}
	qt.Assert(t, qt.IsNil(tracer.Detach()))
	p := profileOf(t, tracer)
	checkProfileSums(t, tracer, p)
	var others, ofListeners uint64
	for i := range p.Rows {
		n := p.Rows[i].Count() + p.Rows[i].Unknown
		if p.Rows[i].Key.Group == GroupOthers {
			others += n
		}
		if p.Rows[i].Key.State == StateListen {
			ofListeners += n
		}
	}
	l, err := tracer.Ledger()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(l.ProfileFull, others))
	qt.Check(t, qt.IsTrue(ofListeners >= listeners), qt.Commentf("%d", ofListeners))
	room := tracer.coll.Maps[profileMap].MaxEntries() - uint32(len(States()))
	qt.Check(t, qt.IsTrue(others >= listeners-uint64(room)), qt.Commentf("%d others, room for %d", others, room))
}

// checkProfileSums expects as many times in each state, known or not, as there
// were transitions out of it.
func checkProfileSums(t *testing.T, tracer *Tracer, p *Profile) {
	t.Helper()
	counters, err := tracer.Counters()
	qt.Assert(t, qt.IsNil(err))
	want, got := map[State]uint64{}, map[State]uint64{}
	for tr, n := range counters.All() {
		if tr.Old != StateClose {
			want[tr.Old] += n
		}
	}
	for i := range p.Rows {
		got[p.Rows[i].Key.State] += p.Rows[i].Count() + p.Rows[i].Unknown
	}
	qt.Check(t, qt.DeepEquals(got, want))
}

func TestProfileNotAskedFor(t *testing.T) {
	requireRoot(t)
	tracer, err := New(&Options{EventBuffer: 1 << 16})
	qt.Assert(t, qt.IsNil(err))
	defer tracer.Close()
	_, err = tracer.Profile()
	qt.Check(t, qt.ErrorMatches(err, "read profile: none is kept .*"))
	info, err := tracer.coll.Maps[profileMap].Info()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(info.MaxEntries, 1))
}

// The verifier takes a profile of every kind, with the largest filter.
func TestProfilesLoad(t *testing.T) {
	requireRoot(t)
	for by := range ProfileDimension(numProfileDimensions) {
		began := time.Now()
		tracer, err := New(&Options{Filter: fullestFilter(), Profile: &ProfileOptions{By: by}})
		qt.Assert(t, qt.IsNil(err), qt.Commentf("%+v", err))
		t.Log(by, time.Since(began), verified(t, tracer))
		qt.Assert(t, qt.IsNil(tracer.Close()))
	}
}

// verified says how many instructions of each program the verifier has seen.
func verified(t *testing.T, tracer *Tracer) string {
	t.Helper()
	text := ""
	for name, program := range tracer.coll.Programs {
		info, err := program.Info()
		qt.Assert(t, qt.IsNil(err))
		if n, ok := info.VerifiedInstructions(); ok && n > 10_000 {
			text += fmt.Sprintf("%s %d ", name, n)
		}
	}
	return text
}

// BenchmarkProfile tells transitions to a ring that is full, without a profile
// and with one.
func BenchmarkProfile(b *testing.B) {
	for _, name := range []string{"off", "on"} {
		b.Run(name, func(b *testing.B) {
			objs := loadTest(b, Filter{}, 4096)
			if name == "on" {
				objs, _ = loadProfileTest(b, ProfileByService, 100)
			}
			const times = 100_000
			for b.Loop() {
				emitTimes(b, objs, times)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/times, "ns/transition")
		})
	}
}
