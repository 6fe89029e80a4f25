package output

import (
	"bytes"
	"testing"

	"github.com/go-quicktest/qt"
)

// What a log says of a record is the record's own, whatever the encoder remembers
// of its owner.
func TestLogged(t *testing.T) {
	var logged Logged
	enc := newLines(&jsonSyntax, &eventFields, Options{Logged: &logged, Cgroup: testCgroup, SamplingRatio: 0.5})
	ev := connectingEvent()
	for _, logged = range []Logged{
		{ContainerID: "one"}, {ContainerID: "one"}, {}, {PodUID: "pod"}, {ContainerID: "two", SamplingRatio: 0.01}, {}, {SamplingRatio: 1e-7},
	} {
		fresh := newLines(&jsonSyntax, &eventFields, Options{Logged: &logged})
		got := string(enc.AppendEvent(nil, &ev))
		qt.Check(t, qt.Equals(got, string(fresh.AppendEvent(nil, &ev))))
		for _, tt := range []struct {
			part string
			want bool
		}{
			{`"container_id":"` + logged.ContainerID + `"`, logged.ContainerID != ""},
			{`"pod_uid":"` + logged.PodUID + `"`, logged.PodUID != ""},
			{`"sampling_ratio":0.01}`, logged.SamplingRatio == 0.01},
			{`"sampling_ratio":1e-07}`, logged.SamplingRatio == 1e-7},
			{`"sampling_ratio"`, logged.SamplingRatio != 0},
		} {
			qt.Check(t, qt.Equals(bytes.Contains([]byte(got), []byte(tt.part)), tt.want), qt.Commentf("%s in %s", tt.part, got))
		}
	}
}

// A ratio that means every connection is not said.
func TestSamplingRatio(t *testing.T) {
	for ratio, want := range map[float64]string{0: "", 1: "", 2: "", 0.25: `,"sampling_ratio":0.25}`} {
		ev, c := connectingEvent(), newConn(connectingEvent())
		for _, line := range [][]byte{
			newLines(&jsonSyntax, &eventFields, Options{SamplingRatio: ratio}).AppendEvent(nil, &ev),
			newLines(&jsonSyntax, &connFields, Options{SamplingRatio: ratio}).AppendConn(nil, &c),
		} {
			qt.Check(t, qt.Equals(bytes.Contains(line, []byte("sampling_ratio")), want != ""))
			qt.Check(t, qt.IsTrue(bytes.HasSuffix(line, []byte(want+"\n"))), qt.Commentf("%s", line))
		}
	}
}
