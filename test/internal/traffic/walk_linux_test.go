package traffic

import (
	"net/netip"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/tracer"
)

func TestWant(t *testing.T) {
	tests := []struct {
		name string
		walk Walk
		want []tracer.Transition
	}{
		{"TIME_WAIT has its name", client(fin1, fin2, closed).timeWait(), []tracer.Transition{
			{Old: closed, New: synSent}, {Old: synSent, New: estab},
			{Old: estab, New: fin1}, {Old: fin1, New: fin2}, {Old: fin2, New: tw},
		}},
		{"orphan that is not answered", raw(fin1, fin2, closed).orphan(), []tracer.Transition{
			{Old: fin1, New: fin2}, {Old: fin2, New: closed},
		}},
		{"no self-loop", raw(fin1, fin2, fin2, closed).timeWait(), []tracer.Transition{
			{Old: fin1, New: fin2}, {Old: fin2, New: tw},
		}},
		{"accepted socket does not leave LISTEN", server(closed), []tracer.Transition{
			{Old: closed, New: newSyn}, {Old: newSyn, New: synRecv}, {Old: synRecv, New: estab}, {Old: estab, New: closed},
		}},
		{"accepted socket that was not half-open", server(closed).direct(), []tracer.Transition{
			{Old: closed, New: synRecv}, {Old: synRecv, New: estab}, {Old: estab, New: closed},
		}},
		{"listener does", listener(), []tracer.Transition{
			{Old: closed, New: listen}, {Old: listen, New: closed},
		}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			qt.Assert(t, qt.DeepEquals(tc.walk.Want(), tc.want))
		})
	}
}

func TestParseEndpoint(t *testing.T) {
	tests := []struct{ in, want string }{
		{"0100007F:1F90", "127.0.0.1:8080"},
		{"00000000000000000000000001000000:0016", "[::1]:22"},
		{"000000FD000000000000000002010000:FFFF", "[fd00::102]:65535"},
	}
	for _, tc := range tests {
		got, err := parseEndpoint(tc.in)
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.Equals(got, netip.MustParseAddrPort(tc.want)))
	}
	for _, bad := range []string{"", "0100007F", "0100007F:", "01:02", "xyz:0016"} {
		_, err := parseEndpoint(bad)
		qt.Assert(t, qt.IsNotNil(err), qt.Commentf("%q", bad))
	}
}
