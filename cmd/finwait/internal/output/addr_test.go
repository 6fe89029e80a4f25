package output

import (
	"net/netip"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestAppendAddr(t *testing.T) {
	for i := range 256 {
		addr := netip.AddrFrom4([4]byte{byte(i), byte(255 - i), 0, byte(i)})
		qt.Check(t, qt.Equals(string(appendAddr([]byte("a "), addr)), "a "+addr.String()))
	}
	for addr, want := range map[string]string{
		"::":              "::",
		"fe80::1%eth0":    "fe80::1",
		"::ffff:10.0.0.1": "::ffff:10.0.0.1",
	} {
		qt.Check(t, qt.Equals(string(appendAddr(nil, netip.MustParseAddr(addr))), want))
	}
}
