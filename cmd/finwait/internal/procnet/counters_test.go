package procnet

import (
	"testing"

	"github.com/go-quicktest/qt"
)

const (
	snmpText = `Ip: Forwarding DefaultTTL
Ip: 1 64
Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens CurrEstab
Tcp: 1 200 120000 -1 72102 22236 4
Udp: InDatagrams
Udp: 17
`
	netstatText = `TcpExt: SyncookiesSent ListenOverflows TCPAbortOnData
TcpExt: 0 18446744073709551615 23
IpExt: InNoRoutes
IpExt: 0
MPTcpExt: MPCapableSYNRX
MPTcpExt: 5
`
)

var groupTests = []struct {
	name, text, group string
	want              Counters // nil if it is an error
}{
	{"snmp", snmpText, "Tcp", Counters{"Tcp.ActiveOpens": 72102, "Tcp.PassiveOpens": 22236}},
	{"netstat", netstatText, "TcpExt", Counters{"TcpExt.SyncookiesSent": 0, "TcpExt.ListenOverflows": 1<<64 - 1, "TcpExt.TCPAbortOnData": 23}},
	{"not of a longer name", netstatText, "Tcp", nil},
	{"names without values", "TcpExt: TW\n", "TcpExt", nil},
	{"values of another group", "TcpExt: TW\nIpExt: 5\n", "TcpExt", nil},
	{"no names", "Tcp:\nTcp:\n", "Tcp", Counters{}},
	{"no line end", "Tcp: InSegs\nTcp: 5", "Tcp", Counters{"Tcp.InSegs": 5}},
	{"more values than names", "Tcp: InSegs\nTcp: 5 6\n", "Tcp", nil},
	{"fewer values than names", "Tcp: InSegs OutSegs\nTcp: 5\n", "Tcp", nil},
	{"negative counter", "Tcp: InSegs\nTcp: -1\n", "Tcp", nil},
	{"negative constant", "Tcp: MaxConn InSegs\nTcp: -1 5\n", "Tcp", Counters{"Tcp.InSegs": 5}},
	{"too great", "Tcp: InSegs\nTcp: 18446744073709551616\n", "Tcp", nil},
	{"words", "Tcp: InSegs\nTcp: many\n", "Tcp", nil},
	{"garbage", "\x00\xff\nTcp\n:\n", "Tcp", nil},
	{"nothing", "", "Tcp", nil},
}

func TestAddGroup(t *testing.T) {
	for _, test := range groupTests {
		t.Run(test.name, func(t *testing.T) {
			got := Counters{}
			err := got.addGroup(test.text, test.group)
			if test.want == nil {
				qt.Assert(t, qt.IsNotNil(err))
				return
			}
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.DeepEquals(got, test.want))
		})
	}
}

func TestSub(t *testing.T) {
	earlier := Counters{"Tcp.InSegs": 5, "Tcp.OutSegs": 7, "Tcp.OutRsts": 9, "TcpExt.TW": 1}
	now := Counters{"Tcp.InSegs": 28, "Tcp.OutSegs": 7, "Tcp.OutRsts": 8, "TcpExt.New": 3}
	qt.Check(t, qt.DeepEquals(now.Sub(earlier), Counters{"Tcp.InSegs": 23, "Tcp.OutSegs": 0}))
	qt.Check(t, qt.DeepEquals(now.Sub(nil), Counters{}))
	qt.Check(t, qt.DeepEquals(Counters(nil).Sub(now), Counters{}))
}

// FuzzAddGroup expects an error, or counters of the group without those that
// are none.
func FuzzAddGroup(f *testing.F) {
	for _, test := range groupTests {
		f.Add(test.text, test.group)
	}
	f.Fuzz(func(t *testing.T, text, group string) {
		c := Counters{}
		if c.addGroup(text, group) != nil {
			return
		}
		for name := range c {
			if len(name) <= len(group)+1 || name[:len(group)+1] != group+"." || notCounters[name] {
				t.Fatalf("%q of %q", name, group)
			}
		}
	})
}
