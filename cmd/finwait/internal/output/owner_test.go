package output

import (
	"fmt"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

// lineFormats are those that remember owners.
var lineFormats = []string{"json", "csv", "logfmt"}

// owners are some that a cache could take for each other.
func owners() []tracer.Owner {
	first := newEvent(0, 0, "127.0.0.1:1", "127.0.0.1:2").Owner
	all := []tracer.Owner{{}, first, {Origin: tracer.OriginUnknown, PID: 7}}
	for _, change := range []func(o *tracer.Owner){
		func(o *tracer.Owner) { o.SetComm("wget") },
		func(o *tracer.Owner) { o.SetComm("curl\x1b") },
		func(o *tracer.Owner) { o.SetComm("") },
		func(o *tracer.Owner) { o.UID = 0 },
		func(o *tracer.Owner) { o.CgroupID = 0 },
		func(o *tracer.Owner) { o.CgroupID = cgroupOfHostile },
		func(o *tracer.Owner) { o.CgroupID = cgroupOfNobody },
		func(o *tracer.Owner) { o.Origin = tracer.OriginListen },
		func(o *tracer.Owner) { o.PID += ownerPlaces },
		func(o *tracer.Owner) { o.PID, o.Origin = o.PID^(1^2)<<5, tracer.OriginListen },
	} {
		changed := first
		change(&changed)
		all = append(all, changed)
	}
	return all
}

// Whoever was the owner of an event before, the next is written as if it were
// the first.
func TestOwnersAreNotMistaken(t *testing.T) {
	for _, format := range lineFormats {
		enc := mustNew(t, format, Options{})
		for _, before := range owners() {
			for _, owner := range owners() {
				ev := newEvent(tracer.StateSynSent, tracer.StateEstablished, "127.0.0.1:1", "127.0.0.1:2")
				ev.Owner = before
				enc.AppendEvent(nil, &ev)
				ev.Owner = owner
				want := string(mustNew(t, format, Options{}).AppendEvent(nil, &ev))
				for range 2 {
					qt.Assert(t, qt.Equals(string(enc.AppendEvent(nil, &ev)), want))
				}
			}
		}
	}
}

// A cgroup that is not known may be later; one that is known stays so.
func TestOwnerCgroupIsAskedUntilKnown(t *testing.T) {
	var asked int
	var known bool
	lookup := func(id uint64) (tracer.Cgroup, bool) {
		asked++
		if !known {
			return tracer.Cgroup{}, false
		}
		return tracer.Cgroup{ID: id, ContainerID: fmt.Sprint("container-", id)}, true
	}
	for _, format := range lineFormats {
		enc, err := New(format, Options{Cgroup: lookup})
		qt.Assert(t, qt.IsNil(err))
		ev := newEvent(tracer.StateSynSent, tracer.StateEstablished, "127.0.0.1:1", "127.0.0.1:2")
		told := func() bool { return strings.Contains(string(enc.AppendEvent(nil, &ev)), "container-") }

		asked, known = 0, false
		qt.Check(t, qt.IsFalse(told()))
		qt.Check(t, qt.IsFalse(told()))
		qt.Check(t, qt.Equals(asked, 2))
		known = true
		qt.Check(t, qt.IsTrue(told()))
		qt.Check(t, qt.IsTrue(told()))
		qt.Check(t, qt.Equals(asked, 3))

		ev.Owner.CgroupID++
		qt.Check(t, qt.IsTrue(told()))
		ev.Owner.CgroupID = 0
		qt.Check(t, qt.IsFalse(told()))
		qt.Check(t, qt.Equals(asked, 4))
	}
}
