package oracle

import (
	"net/netip"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestParseCookies(t *testing.T) {
	got, err := parseCookies(`0      0          198.51.100.254:4321  198.51.100.1:40001 timer:(on,880ms,0) ino:0 sk:1f cgroup:unreachable:1 <->
0      0      [2001:db8:51::fe]:4321 [2001:db8:51::1]:40002 timer:(timewait,59sec,0) ino:0 sk:beef
`)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.DeepEquals(got, map[Tuple]uint64{
		{netip.MustParseAddrPort("198.51.100.254:4321"), netip.MustParseAddrPort("198.51.100.1:40001")}:        0x1f,
		{netip.MustParseAddrPort("[2001:db8:51::fe]:4321"), netip.MustParseAddrPort("[2001:db8:51::1]:40002")}: 0xbeef,
	}))
	for _, bad := range []string{"0 0 x y z", "0 0 127.0.0.1:1 127.0.0.1:2 sk:xyz", "one"} {
		_, err := parseCookies(bad)
		qt.Check(t, qt.IsNotNil(err), qt.Commentf("%q", bad))
	}
}
