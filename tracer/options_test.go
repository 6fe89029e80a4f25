package tracer

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestOptionsValidate(t *testing.T) {
	prefix := netip.MustParsePrefix
	for _, test := range []struct {
		name    string
		opts    Options
		wantErr string // empty for none
	}{
		{name: "zero"},
		{name: "buffer", opts: Options{EventBuffer: 1 << 16}},
		{name: "buffer odd", opts: Options{EventBuffer: 5000}, wantErr: "event buffer of 5000 bytes is not a power of two .*"},
		{name: "buffer small", opts: Options{EventBuffer: 2048}, wantErr: "event buffer of 2048 .*"},
		{name: "minis", opts: Options{MiniSockets: -1}, wantErr: "number of mini-sockets -1 is not between 0 and 262144"},
		{name: "ports", opts: Options{Filter: Filter{Ports: []PortRange{{80, 80}, {8000, 8999}}}}},
		{name: "port 0", opts: Options{Filter: Filter{LocalPorts: []PortRange{{0, 80}}}}, wantErr: "port range 0-80 .*"},
		{name: "ports backwards", opts: Options{Filter: Filter{RemotePorts: []PortRange{{90, 80}}}}, wantErr: "port range 90-80 .*"},
		{name: "family", opts: Options{Filter: Filter{Family: 3}}, wantErr: "unknown address family 3"},
		{name: "too many", opts: Options{Filter: Filter{PIDs: make([]uint32, 17)}}, wantErr: "filter has 17 process ids, at most 16 fit"},
		{name: "comm long", opts: Options{Filter: Filter{Comms: []string{strings.Repeat("x", 16)}}}, wantErr: "process name .* has 16 bytes.*"},
		{name: "comm empty", opts: Options{Filter: Filter{Comms: []string{""}}}, wantErr: "process name .* has 0 bytes.*"},
		{name: "prefix zero", opts: Options{Filter: Filter{Addrs: []netip.Prefix{{}}}}, wantErr: "filter has an invalid address prefix"},
		{name: "v4 wants v6", opts: Options{Filter: Filter{Family: FamilyIPv4, Addrs: []netip.Prefix{prefix("2001:db8::/32")}}}, wantErr: ".*IPv4 sockets with IPv6 addresses"},
		{name: "v4 mapped", opts: Options{Filter: Filter{Family: FamilyIPv4, Addrs: []netip.Prefix{prefix("::ffff:10.0.0.0/104")}}}},
		{name: "v6 with mapped v4", opts: Options{Filter: Filter{Family: FamilyIPv6, Addrs: []netip.Prefix{prefix("10.0.0.0/8")}}}},
		{name: "impossible", opts: Options{Filter: Filter{Transitions: []Transition{{StateListen, StateEstablished}}}}, wantErr: ".*LISTEN→ESTABLISHED does not happen in Linux"},
		{name: "tracepoint's words", opts: Options{Filter: Filter{Transitions: []Transition{{StateListen, StateSynRecv}}}}, wantErr: ".*comes by NEW_SYN_RECV:SYN_RECV.*"},
		{name: "half-open", opts: Options{Filter: Filter{States: []State{StateNewSynRecv}}}},
		{name: "evidence", opts: Options{Evidence: EvidenceProbe + 1}, wantErr: "unknown evidence 3"},
		{name: "state and transition", opts: Options{Filter: Filter{States: []State{StateListen}, Transitions: []Transition{{StateFinWait2, StateTimeWait}}}}, wantErr: ".*out of or into \\[LISTEN\\]"},
		{name: "state with transition", opts: Options{Filter: Filter{States: []State{StateTimeWait}, Transitions: []Transition{{StateFinWait2, StateTimeWait}}}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.opts.validate()
			if test.wantErr == "" {
				qt.Assert(t, qt.IsNil(err))
				return
			}
			qt.Assert(t, qt.ErrorMatches(err, test.wantErr))
		})
	}
}
