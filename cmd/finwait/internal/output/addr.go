package output

import (
	"net/netip"
	"strconv"
)

// appendAddr leaves a zone out: it is a name that somebody chose.
func appendAddr(dst []byte, addr netip.Addr) []byte {
	if !addr.Is4() {
		return addr.WithZone("").AppendTo(dst)
	}
	for _, b := range addr.As4() {
		o := &octets[b]
		dst = append(dst, o.text[0], o.text[1], o.text[2], o.text[3])[:len(dst)+o.size]
	}
	return dst[:len(dst)-1]
}

// octets are the numbers of an IPv4 address, each with a point behind it. To move
// all four bytes is quicker than to look how many it takes.
var octets = func() (o [256]octet) {
	for i := range o {
		o[i].size = copy(o[i].text[:], strconv.Itoa(i)+".")
	}
	return o
}()

type octet struct {
	text [4]byte
	size int
}
