package output

import "github.com/finwait/finwait/tracer"

// ownerCache remembers how the fields of the last owners were written: most
// events have the owner of one a little before, whose names had to be escaped
// and whose cgroup had to be looked up. Each owner has one place, which it shares
// with others. A process that takes another name for each event is never found
// here, and has nothing else from that.
type ownerCache [ownerPlaces]ownerEntry

// ownerPlaces is as many as the processes of a large server: those of one
// program have ids in a row.
const ownerPlaces = 256

type ownerEntry struct {
	owner  tracer.Owner
	cgroup tracer.Cgroup
	line   []byte
	// settled says that its cgroup is known, or that there is nothing to know.
	// Else it is asked for again.
	settled bool
}

// of returns the entry where o may be.
func (c *ownerCache) of(o *tracer.Owner) *ownerEntry {
	// The origin tells apart what one process connects and accepts.
	return &c[(o.PID^uint32(o.Origin)<<5)%ownerPlaces]
}

// ownerLine returns the columns of the record's owner, until it is called again.
func (e *lineEncoder) ownerLine() []byte {
	owner := &e.record.Owner
	entry := e.owners.of(owner)
	same := entry.owner == *owner && len(entry.line) > 0
	if same && entry.settled {
		return entry.line
	}
	cgroup, settled := e.lookup(owner)
	changed := !same || entry.cgroup != cgroup
	entry.owner, entry.cgroup, entry.settled = *owner, cgroup, settled
	if changed {
		e.record.cgroup = cgroup
		entry.line = e.appendColumns(entry.line[:0], e.owner)
	}
	return entry.line
}

// lookup returns what is known of the owner's cgroup. settled is false if it may
// be known later, or is another in another record.
func (e *lineEncoder) lookup(o *tracer.Owner) (cgroup tracer.Cgroup, settled bool) {
	if o.Origin == tracer.OriginUnknown || o.CgroupID == 0 {
		return tracer.Cgroup{}, true
	}
	if e.logged != nil {
		return tracer.Cgroup{ContainerID: e.logged.ContainerID, PodUID: e.logged.PodUID}, false
	}
	if e.cgroup == nil {
		return tracer.Cgroup{}, true
	}
	return e.cgroup(o.CgroupID)
}
