package output

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

func sampleCensus(by tracer.Dimension, groups ...tracer.CensusGroup) *tracer.Census {
	c := &tracer.Census{
		Time:       time.Date(2026, 11, 22, 10, 0, 0, 7, time.UTC),
		By:         by,
		Groups:     groups,
		Namespaces: 2,
	}
	for _, g := range groups {
		for s, n := range g.States {
			c.States[s] += n
		}
	}
	return c
}

// hostileText is what a process may call itself: an escape that clears the
// screen, a tab and a byte that is not UTF-8.
const hostileText = "a\x1b[2J\tb\xff"

func censusSamples() map[string]*tracer.Census {
	some := tracer.StateCounts{tracer.StateTimeWait: 30000, tracer.StateEstablished: 7}
	few := tracer.StateCounts{tracer.StateListen: 1, tracer.StateEstablished: 7}
	nothing := sampleCensus(tracer.ByNothing, tracer.CensusGroup{States: some}, tracer.CensusGroup{States: few})
	nothing.Groups = nil
	empty := sampleCensus(tracer.ByNothing)
	empty.Missed.Netns = []tracer.MissedNetns{{Netns: 1}}
	return map[string]*tracer.Census{
		"empty":   empty,
		"nothing": nothing,
		"netns": sampleCensus(tracer.ByNetns,
			tracer.CensusGroup{Netns: 4026531840, States: some},
			tracer.CensusGroup{Netns: 4026532281, NetnsName: hostileText, States: few}),
		"listener": sampleCensus(tracer.ByListener,
			tracer.CensusGroup{Netns: 4026531840, Listener: netip.MustParseAddrPort("[::]:80"), States: some},
			tracer.CensusGroup{Netns: 4026532281, NetnsName: "blue", States: few}),
		"process": sampleCensus(tracer.ByProcess,
			tracer.CensusGroup{States: some},
			tracer.CensusGroup{PID: 123, Comm: hostileText, States: few}),
		"remote": sampleCensus(tracer.ByRemote,
			tracer.CensusGroup{Remote: netip.MustParseAddr("2001:db8::1"), States: some},
			tracer.CensusGroup{States: few}),
	}
}

func TestCensusTable(t *testing.T) {
	want := map[string]string{
		"empty":   "",
		"nothing": "TIME_WAIT\t30000\nESTABLISHED\t14\nLISTEN\t1\n",
		"netns": "TIME_WAIT\t30000\t4026531840\n" +
			"ESTABLISHED\t7\t4026531840\n" +
			`ESTABLISHED	7	4026532281 a\x1b[2J\x09b\xff` + "\n" +
			`LISTEN	1	4026532281 a\x1b[2J\x09b\xff` + "\n",
		"listener": "TIME_WAIT\t30000\t[::]:80 netns 4026531840\n" +
			"ESTABLISHED\t7\t- netns 4026532281 blue\n" +
			"ESTABLISHED\t7\t[::]:80 netns 4026531840\n" +
			"LISTEN\t1\t- netns 4026532281 blue\n",
		"process": "TIME_WAIT\t30000\t-\nESTABLISHED\t7\t-\n" +
			`ESTABLISHED	7	123/a\x1b[2J\x09b\xff` + "\n" +
			`LISTEN	1	123/a\x1b[2J\x09b\xff` + "\n",
		"remote": "TIME_WAIT\t30000\t2001:db8::1\nESTABLISHED\t7\t-\nESTABLISHED\t7\t2001:db8::1\nLISTEN\t1\t-\n",
	}
	for name, c := range censusSamples() {
		t.Run(name, func(t *testing.T) {
			qt.Assert(t, qt.Equals(string(AppendCensusTable(nil, c)), want[name]))
		})
	}
}

func TestCensusTableOneNamespace(t *testing.T) {
	c := censusSamples()["listener"]
	c.Namespaces, c.Groups = 1, c.Groups[:1]
	qt.Assert(t, qt.Equals(string(AppendCensusTable(nil, c)), "TIME_WAIT\t30000\t[::]:80\nESTABLISHED\t7\t[::]:80\n"))
}

func TestCensusJSON(t *testing.T) {
	const (
		head = `{"time":"2026-11-22T10:00:00.000000007Z","source":"kernel","netns_count":2,"netns_missed":0,"states":{"ESTABLISHED":14,` +
			`"SYN_SENT":0,"SYN_RECV":0,"FIN_WAIT1":0,"FIN_WAIT2":0,"TIME_WAIT":30000,"CLOSE":0,"CLOSE_WAIT":0,` +
			`"LAST_ACK":0,"LISTEN":1,"CLOSING":0}`
		some = `"states":{"ESTABLISHED":7,"TIME_WAIT":30000}`
		few  = `"states":{"ESTABLISHED":7,"LISTEN":1}`
	)
	want := map[string]string{
		"empty": `{"time":"2026-11-22T10:00:00.000000007Z","source":"kernel","netns_count":2,"netns_missed":1,"states":{"ESTABLISHED":0,` +
			`"SYN_SENT":0,"SYN_RECV":0,"FIN_WAIT1":0,"FIN_WAIT2":0,"TIME_WAIT":0,"CLOSE":0,"CLOSE_WAIT":0,` +
			`"LAST_ACK":0,"LISTEN":0,"CLOSING":0}}`,
		"nothing": head + `}`,
		"netns": head + `,"by":"netns","groups":[{"netns":4026531840,` + some + `},` +
			`{"netns":4026532281,"netns_name":"a\u001b[2J\u0009b\ufffd",` + few + `}]}`,
		"listener": head + `,"by":"listener","groups":[{"listener":"[::]:80","netns":4026531840,` + some + `},` +
			`{"netns":4026532281,"netns_name":"blue",` + few + `}]}`,
		"process": head + `,"by":"process","groups":[{` + some + `},` +
			`{"pid":123,"comm":"a\u001b[2J\u0009b\ufffd",` + few + `}]}`,
		"remote": head + `,"by":"remote","groups":[{"remote":"2001:db8::1",` + some + `},{` + few + `}]}`,
	}
	for name, c := range censusSamples() {
		t.Run(name, func(t *testing.T) {
			line := AppendCensusJSON(nil, c, "kernel")
			qt.Assert(t, qt.IsTrue(json.Valid(line)))
			qt.Assert(t, qt.Equals(string(line), want[name]+"\n"))
		})
	}
}
