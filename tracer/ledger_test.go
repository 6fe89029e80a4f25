package tracer

import (
	"reflect"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

// TestLedgerComplete sets every field of the ledger to another number, and looks
// for it under the field's name.
func TestLedgerComplete(t *testing.T) {
	var ledger Ledger
	fields := reflect.ValueOf(&ledger).Elem()
	want := map[string]uint64{}
	for i := range fields.NumField() {
		fields.Field(i).SetUint(uint64(i + 1))
		want[snake(fields.Type().Field(i).Name)] = uint64(i + 1)
	}
	got := map[string]uint64{}
	for name, n := range ledger.All() {
		got[name] = n
	}
	qt.Assert(t, qt.DeepEquals(got, want))
}

// snake returns a name in Go as the ledger has it.
func snake(name string) string {
	name = strings.ReplaceAll(name, "SYN", "Syn")
	var b strings.Builder
	for i, r := range name {
		if r >= 'A' && r <= 'Z' && i > 0 {
			b.WriteByte('_')
		}
		b.WriteRune(r)
	}
	return strings.ToLower(b.String())
}

// TestDrift adds up what an audit has found, whichever way it was wrong.
func TestDrift(t *testing.T) {
	audit := Audit{
		Differences: []Difference{{State: StateTimeWait, Gauge: 5, Kernel: 7}, {State: StateNewSynRecv, Gauge: 3, Kernel: 0}},
		Gone:        []Difference{{State: StateTimeWait, Gauge: 1}},
	}
	audit.Claimed[StateSynRecv] = 4
	qt.Check(t, qt.Equals(audit.Drift(), StateCounts{StateTimeWait: 3, StateSynRecv: 7}))
	qt.Check(t, qt.Equals((&Audit{}).Drift(), StateCounts{}))
}
