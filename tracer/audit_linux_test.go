package tracer

import (
	"testing"

	"github.com/go-quicktest/qt"
)

func row(entered, left uint64) *gaugeRow {
	r := &gaugeRow{}
	r.entered[StateEstablished], r.left[StateEstablished] = entered, left
	return r
}

// What the kernel has is off only if the gauge cannot have been that at any
// moment in between.
func TestDistance(t *testing.T) {
	for _, tc := range []struct {
		name          string
		kernel        int64
		before, after *gaugeRow
		by            int64 // correction
		want          int64
	}{
		{"quiet and equal", 7, row(10, 3), row(10, 3), 0, 0},
		{"quiet and one too few", 8, row(10, 3), row(10, 3), 0, 1},
		{"quiet and two too many", 5, row(10, 3), row(10, 3), 0, -2},
		{"one came meanwhile, and was seen", 8, row(10, 3), row(11, 3), 0, 0},
		{"one came meanwhile, and was not seen", 7, row(10, 3), row(11, 3), 0, 0},
		{"one left meanwhile", 6, row(10, 3), row(10, 4), 0, 0},
		{"one came, and two are there", 9, row(10, 3), row(11, 3), 0, 1},
		{"one came and one left", 5, row(10, 3), row(11, 4), 0, -1},
		{"corrected", 9, row(10, 3), row(10, 3), 2, 0},
		{"less than none", 0, row(3, 4), row(3, 4), 0, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var by correction
			by[StateEstablished] = tc.by
			qt.Check(t, qt.Equals(distance(tc.kernel, tc.before, tc.after, by, StateEstablished), tc.want))
		})
	}
}

// A difference counts as far as two comparisons agree.
func TestCorrectionBoth(t *testing.T) {
	a := correction{StateEstablished: 3, StateFinWait2: -4, StateListen: 1, StateClosing: 5}
	b := correction{StateEstablished: 2, StateFinWait2: -5, StateListen: -1}
	qt.Check(t, qt.Equals(a.both(b), correction{StateEstablished: 2, StateFinWait2: -4}))
	qt.Check(t, qt.Equals(a.both(a), a))
}

// A gauge that an entry is missing of is shown as none.
func TestGaugeRowStates(t *testing.T) {
	r := row(3, 5)
	qt.Check(t, qt.Equals(r.states(correction{}), StateCounts{}))
	qt.Check(t, qt.Equals(r.states(correction{StateEstablished: 4})[StateEstablished], 2))
}

func TestGauges(t *testing.T) {
	g := Gauges{Netns: []NetnsGauges{
		{Netns: 1, States: StateCounts{StateListen: 2, StateNewSynRecv: 3}},
		{Netns: 2, States: StateCounts{StateSynRecv: 1, StateListen: 1}},
	}}
	qt.Check(t, qt.Equals(g.Of(2)[StateListen], 1))
	qt.Check(t, qt.Equals(g.Of(3), StateCounts{}))
	qt.Check(t, qt.Equals(g.States(), StateCounts{StateListen: 3, StateNewSynRecv: 3, StateSynRecv: 1}))
	qt.Check(t, qt.Equals(g.States().Folded(), StateCounts{StateListen: 3, StateSynRecv: 4}))
}

// Of rows with the same inode number only the youngest is that of a namespace
// that is there.
func TestSuperseded(t *testing.T) {
	rows := map[uint64]*gaugeRow{
		1: {netns: 7, born: 30}, 2: {netns: 7, born: 10}, 3: {netns: 7, born: 20}, 4: {netns: 8, born: 5}, 0: {netns: 0},
	}
	qt.Check(t, qt.DeepEquals(superseded(rows), map[uint64]bool{2: true, 3: true}))
}
