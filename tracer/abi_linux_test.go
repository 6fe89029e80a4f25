package tracer

import (
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf/btf"
	"github.com/go-quicktest/qt"
)

// The numbers that Go and the programs exchange are the same on both sides.
func TestEnums(t *testing.T) {
	spec, err := loadBpf()
	qt.Assert(t, qt.IsNil(err))
	for _, enum := range []struct {
		name, prefix string
		goName       func(uint8) string
		count        int
	}{
		{"finwait_state", "", func(i uint8) string { return State(i).String() }, numStates},
		{"finwait_evidence", "EVIDENCE_", func(i uint8) string { return Evidence(i).String() }, len(evidenceNames)},
		{"finwait_origin", "ORIGIN_", func(i uint8) string { return Origin(i).String() }, len(originNames)},
		{"finwait_reason", "REASON_", func(i uint8) string { return Reason(i).String() }, len(reasonNames)},
		{"finwait_side", "SIDE_", func(i uint8) string { return Side(i).String() }, len(sideNames)},
		{"finwait_profile_by", "PROFILE_", profileByName, numProfileDimensions + 1},
		{"finwait_profile_group", "GROUP_", func(i uint8) string { return ProfileGroup(i).String() }, len(profileGroupNames)},
		{"finwait_role", "ROLE_", func(i uint8) string { return Role(i).String() }, len(roleNames)},
	} {
		var c *btf.Enum
		qt.Assert(t, qt.IsNil(spec.Types.TypeByName(enum.name, &c)))
		for _, v := range c.Values {
			if strings.HasPrefix(v.Name, "NUM_") {
				qt.Assert(t, qt.Equals(int(v.Value), enum.count))
				continue
			}
			want := strings.TrimPrefix(v.Name, enum.prefix)
			qt.Assert(t, qt.Equals(strings.ToUpper(enum.goName(uint8(v.Value))), want))
			qt.Assert(t, qt.IsTrue(int(v.Value) < enum.count), qt.Commentf("%s is unknown to Go", v.Name))
		}
	}
}

// profileByName returns the end of the name of a value of profile_by, which is
// 0 where no profile is kept.
func profileByName(i uint8) string {
	if i == 0 {
		return "off"
	}
	return "by_" + strings.ReplaceAll(ProfileDimension(i-1).String(), "-", "_")
}

// The matrix's fields, which bpftool shows, stand where their states' numbers say.
func TestMatrixLayout(t *testing.T) {
	spec, err := loadBpf()
	qt.Assert(t, qt.IsNil(err))
	var row, matrix *btf.Struct
	qt.Assert(t, qt.IsNil(spec.Types.TypeByName("finwait_row", &row)))
	qt.Assert(t, qt.IsNil(spec.Types.TypeByName("finwait_matrix", &matrix)))
	qt.Assert(t, qt.HasLen(row.Members, numStates))
	qt.Assert(t, qt.HasLen(matrix.Members, numStates))
	for _, s := range States() {
		qt.Check(t, qt.Equals(row.Members[s].Name, "to_"+s.String()))
		qt.Check(t, qt.Equals(row.Members[s].Offset.Bytes(), 8*uint32(s)))
		qt.Check(t, qt.Equals(matrix.Members[s].Name, "from_"+s.String()))
		qt.Check(t, qt.Equals(matrix.Members[s].Offset.Bytes(), 8*numStates*uint32(s)))
	}
	qt.Assert(t, qt.Equals(spec.Maps["matrix"].ValueSize, uint32(unsafe.Sizeof(Counters{}.cells))))
}

func TestFilterMax(t *testing.T) {
	qt.Assert(t, qt.HasLen(bpfFinwaitFilter{}.Pid, filterMax))
}
