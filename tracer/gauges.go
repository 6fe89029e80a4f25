package tracer

import "time"

// Gauges is how many sockets were in each state at one moment, from a tracer's
// own counting. It is a plain value. See [Tracer.Gauges].
type Gauges struct {
	// Time is when it was read, in UTC.
	Time time.Time
	// Netns has the network namespaces that have, or had, sockets, in the
	// order of their inode numbers. Number 0 stands for those above the 1024
	// that have a row of their own (Ledger.NetnsFull).
	Netns []NetnsGauges
	// MissedNetns is how many network namespaces could not be looked into when the
	// tracer began, for want of privilege as a rule: sockets of theirs that were there
	// before are not in the gauges until they do something.
	MissedNetns int
}

// NetnsGauges is how many sockets of one network namespace are in each state.
type NetnsGauges struct {
	// Netns is the inode number of the network namespace.
	Netns uint32
	// States has half-open connections in StateNewSynRecv, apart from the full
	// sockets in StateSynRecv; see [StateCounts.Folded]. StateClose is 0.
	States StateCounts
}

// States returns the sum over all network namespaces.
func (g *Gauges) States() (sum StateCounts) {
	for i := range g.Netns {
		sum.add(&g.Netns[i].States)
	}
	return sum
}

// Of returns the counts of the network namespace with that inode number.
func (g *Gauges) Of(netns uint32) StateCounts {
	for i := range g.Netns {
		if g.Netns[i].Netns == netns {
			return g.Netns[i].States
		}
	}
	return StateCounts{}
}

// Audit is the result of comparing the gauges with the kernel. See
// [Tracer.Audit].
type Audit struct {
	// Time is when it began, in UTC.
	Time time.Time
	// Netns is how many network namespaces were compared, and Walked in how
	// many of them socket by socket.
	Netns, Walked int
	// Differences are what differed, and has been put right.
	Differences []Difference
	// Gone are what was left in the gauges of network namespaces that are gone,
	// found when another had the inode number of one: sockets of which no end was
	// seen. They are in no gauge any more.
	Gone []Difference
	// Stale is the number of mini-sockets and half-open connections that were
	// followed though they had ended.
	Stale uint64
	// Claimed is how many sockets were found in each state that were not in
	// the gauges, which they are now. The sockets that are older than the
	// tracer are not among them, but for those that the kernel passed over
	// when it listed them (before Linux 6.17, if they come and go meanwhile).
	Claimed StateCounts
	// Missed is what could not be compared.
	Missed CensusMissed
}

// Drift returns by how many sockets the gauges were wrong in each state, over all
// network namespaces and without regard to the sign: differences, what was left of
// namespaces that are gone, and sockets that were in no gauge. Half-open connections
// are in StateSynRecv.
func (a *Audit) Drift() StateCounts {
	drift := a.Claimed
	for _, differences := range [][]Difference{a.Differences, a.Gone} {
		for _, d := range differences {
			drift[d.State] += uint64(max(d.Gauge-d.Kernel, d.Kernel-d.Gauge))
		}
	}
	return drift.Folded()
}

// Difference is a gauge that was wrong.
type Difference struct {
	Netns  uint32
	State  State
	Gauge  int64 // what it said; less than none if an entry was missed
	Kernel int64 // what the kernel had
}
