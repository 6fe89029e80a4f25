package test

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

// connRecord is a line of conns --format json.
type connRecord struct {
	jsonRecord
	Start    time.Time `json:"start"`
	Duration int64     `json:"duration_ns"`
	Walk     []struct {
		State string `json:"state"`
		Dwell *int64 `json:"dwell_ns"`
	} `json:"walk"`
	BytesSent      *uint64 `json:"bytes_sent"`
	BytesReceived  *uint64 `json:"bytes_received"`
	SegmentsSent   uint32  `json:"segments_sent"`
	SegmentsRecv   uint32  `json:"segments_received"`
	Retransmits    *uint32 `json:"retransmits"`
	SRTT           int64   `json:"srtt_ns"`
	TimeWaitReason string  `json:"time_wait_reason"`
}

// TestCommandConns runs the command on connections that carry something.
func TestCommandConns(t *testing.T) {
	l := newLoop(t, tracer.FamilyIPv4)
	f := follow(t, "conns", "--format", "json", "--netns", inodeWord(l.ns), "--wait-timewait=false")
	l.listen()
	want := map[string][2]uint64{}
	for i, p := range l.connectAll() {
		l.transfer(p.client.fd, p.server.fd, 10+i)
		want[strconv.FormatUint(p.client.cookie, 10)] = [2]uint64{uint64(10 + i), 0}
		want[strconv.FormatUint(p.server.cookie, 10)] = [2]uint64{0, uint64(10 + i)}
		l.closeInTurn(p.client, p.server)
	}
	res := f.stop()
	for line := range strings.Lines(res.stdout) {
		var r connRecord
		dec := json.NewDecoder(strings.NewReader(line))
		dec.DisallowUnknownFields()
		qt.Assert(t, qt.IsNil(dec.Decode(&r)), qt.Commentf("%s", line))
		qt.Check(t, qt.DeepEquals([2]uint64{*r.BytesSent, *r.BytesReceived}, want[r.Cookie]))
		delete(want, r.Cookie)
		qt.Check(t, qt.Equals(r.Reason, "fin"))
		qt.Check(t, qt.Equals(r.Side, map[string]string{"client": "local", "server": "peer"}[r.Role]))
		qt.Check(t, qt.Equals(r.Walk[len(r.Walk)-1].State, map[string]string{"client": "TIME_WAIT", "server": "LAST_ACK"}[r.Role]))
		qt.Check(t, qt.Equals(r.Time.Sub(r.Start).Nanoseconds(), r.Duration))
	}
	qt.Check(t, qt.HasLen(want, 0))
	qt.Check(t, qt.StringContains(res.stderr, " connections seen, 46 matched, 46 printed, 0 lost"))
}
