package tracer

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// netlinkMessage returns a message as the kernel would write it.
func netlinkMessage(kind, flags uint16, seq uint32, body []byte) []byte {
	ne := binary.NativeEndian
	size := unix.SizeofNlMsghdr + len(body)
	b := make([]byte, nlmsgAlign(size))
	ne.PutUint32(b, uint32(size))
	ne.PutUint16(b[4:], kind)
	ne.PutUint16(b[6:], flags)
	ne.PutUint32(b[8:], seq)
	copy(b[unix.SizeofNlMsghdr:], body)
	return b
}

// diagRecord returns a struct inet_diag_msg.
func diagRecord(family Family, state State, timer Timer, local, remote netip.AddrPort, inode uint32) []byte {
	b := make([]byte, sizeofDiagMsg)
	b[0], b[1], b[2] = uint8(family), uint8(state), uint8(timer)
	binary.BigEndian.PutUint16(b[4:], local.Port())
	binary.BigEndian.PutUint16(b[6:], remote.Port())
	copy(b[8:24], local.Addr().AsSlice())
	copy(b[24:40], remote.Addr().AsSlice())
	binary.NativeEndian.PutUint32(b[68:], inode)
	return b
}

func TestDecodeDiag(t *testing.T) {
	local, remote := netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("198.51.100.7:40000")
	record := diagRecord(FamilyIPv4, StateCloseWait, 1, local, remote, 4711)
	record = append(record, 5, 0, 8, 0, 0, 0, 0, 0) // an attribute, as the kernel adds some
	datagram := netlinkMessage(sockDiagByFamily, unix.NLM_F_MULTI, 7, record)
	datagram = append(datagram, netlinkMessage(sockDiagByFamily, 0, 6, record)...) // left over from another dump
	datagram = append(datagram, netlinkMessage(unix.NLMSG_DONE, unix.NLM_F_DUMP_INTR, 7, make([]byte, 4))...)

	visits := 0
	done, interrupted, err := decodeDiag(datagram, 7, func(m diagMsg) {
		visits++
		qt.Assert(t, qt.Equals(m.family(), FamilyIPv4))
		qt.Assert(t, qt.Equals(m.state(), StateCloseWait))
		qt.Assert(t, qt.Equals(m.local(), local))
		qt.Assert(t, qt.Equals(m.remote(), remote))
		qt.Assert(t, qt.Equals(m.inode(), uint32(4711)))
	})
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsTrue(done))
	qt.Assert(t, qt.IsTrue(interrupted))
	qt.Assert(t, qt.Equals(visits, 1))
}

func TestDecodeDiagErrors(t *testing.T) {
	errno := func(e unix.Errno) []byte {
		return binary.NativeEndian.AppendUint32(nil, uint32(-int32(e)))
	}
	tests := []struct {
		name     string
		datagram []byte
		want     string
	}{
		{"error", netlinkMessage(unix.NLMSG_ERROR, 0, 1, errno(unix.EPERM)), "operation not permitted"},
		{"acknowledgement", netlinkMessage(unix.NLMSG_ERROR, 0, 1, errno(0)), "netlink acknowledgement instead of a dump"},
		{"dump that ended in an error", netlinkMessage(unix.NLMSG_DONE, 0, 1, errno(unix.ENOMEM)), "cannot allocate memory"},
		{"short record", netlinkMessage(sockDiagByFamily, 0, 1, make([]byte, 71)), "socket record of 71 bytes"},
		{"cut off", netlinkMessage(sockDiagByFamily, 0, 1, make([]byte, 72))[:60], "netlink message of 88 bytes in 60"},
		{"no header", []byte{1, 2, 3}, "3 stray bytes after the last netlink message"},
		{"size below the header", make([]byte, 16), "netlink message of 0 bytes in 16"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := decodeDiag(tt.datagram, 1, func(diagMsg) {})
			qt.Assert(t, qt.ErrorMatches(err, tt.want))
		})
	}
}

// TestDecodeSocket decodes a record, of which each field is another number.
func TestDecodeSocket(t *testing.T) {
	ne := binary.NativeEndian
	local, remote := netip.MustParseAddrPort("[::ffff:192.0.2.1]:80"), netip.MustParseAddrPort("[::ffff:198.51.100.7]:40000")
	record := diagRecord(FamilyIPv6, StateFinWait1, TimerProbe, local, remote, 4711)
	record[3] = 7
	ne.PutUint32(record[44:], 0x89abcdef)
	ne.PutUint32(record[48:], 0x01234567)
	for i, n := range []uint32{1500, 23, 29, 1000} {
		ne.PutUint32(record[52+4*i:], n)
	}
	qt.Assert(t, qt.Equals(diagMsg(record).socket(42), Socket{
		Cookie:       0x0123456789abcdef,
		Local:        netip.MustParseAddrPort("192.0.2.1:80"),
		Remote:       netip.MustParseAddrPort("198.51.100.7:40000"),
		Expires:      1500 * time.Millisecond,
		Netns:        42,
		Inode:        4711,
		UID:          1000,
		ReceiveQueue: 23,
		SendQueue:    29,
		Family:       FamilyIPv6,
		State:        StateFinWait1,
		Timer:        TimerProbe,
		Retransmits:  7,
	}))
}

// TestDecodeHalfOpen tells requests from full sockets by their attributes.
func TestDecodeHalfOpen(t *testing.T) {
	var none netip.AddrPort
	tests := []struct {
		name       string
		state      State
		attributes []byte
		want       bool
	}{
		{"request", StateSynRecv, nil, true},
		{"request as such", StateNewSynRecv, nil, true},
		{"request with a mark", StateSynRecv, []byte{8, 0, 15, 0, 0, 0, 0, 0}, true},
		{"full", StateSynRecv, []byte{5, 0, diagShutdown, 0, 0, 0, 0, 0}, false},
		{"full, not padded", StateSynRecv, []byte{5, 0, diagShutdown, 0, 0}, false},
		{"full, behind another", StateSynRecv, []byte{5, 0, 5, 0, 0, 0, 0, 0, 5, 0, diagShutdown, 0, 0, 0, 0, 0}, false},
		{"cut off", StateSynRecv, []byte{6, 0, diagShutdown, 0, 0}, true},
		{"size of none", StateSynRecv, []byte{0, 0, diagShutdown, 0, 0, 0, 0, 0}, true},
		{"another state", StateEstablished, nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			record := diagRecord(FamilyIPv4, tt.state, TimerRetransmit, none, none, 0)
			m := diagMsg(append(record, tt.attributes...))
			qt.Assert(t, qt.Equals(m.socket(0).HalfOpen, tt.want))
		})
	}
}

// TestSocketAllocations checks that a socket costs no allocation.
func TestSocketAllocations(t *testing.T) {
	record := diagMsg(diagRecord(FamilyIPv6, StateSynRecv, TimerRetransmit,
		netip.MustParseAddrPort("[::ffff:192.0.2.1]:80"), netip.MustParseAddrPort("[2001:db8::1]:4000"), 0))
	sockets := make([]Socket, 0, 1)
	allocs := testing.AllocsPerRun(100, func() { sockets = append(sockets[:0], record.socket(1)) })
	qt.Assert(t, qt.Equals(allocs, 0))
	qt.Assert(t, qt.Equals(unsafe.Sizeof(sockets[0]), 112))
}

func TestMissingTCPDiag(t *testing.T) {
	err := explainDiag(unix.ENOENT)
	qt.Assert(t, qt.ErrorIs(err, ErrNotSupported))
	qt.Assert(t, qt.ErrorMatches(err, `the kernel has no tcp_diag \(modprobe tcp_diag\): not supported`))
	qt.Assert(t, qt.Equals(explainDiag(unix.EPERM), error(unix.EPERM)))
}

// TestCensusAllocations checks that a socket costs no allocation, whatever it
// is grouped by.
func TestCensusAllocations(t *testing.T) {
	record := diagRecord(FamilyIPv6, StateTimeWait, TimerTimeWait,
		netip.MustParseAddrPort("[::ffff:192.0.2.1]:80"), netip.MustParseAddrPort("[::ffff:192.0.2.2]:4000"), 0)
	var datagram []byte
	for range 100 {
		datagram = append(datagram, netlinkMessage(sockDiagByFamily, 0, 1, record)...)
	}
	for by := ByNothing; by <= ByRemote; by++ {
		tally := newTally(by)
		visit := tally.add
		allocs := testing.AllocsPerRun(10, func() {
			if _, _, err := decodeDiag(datagram, 1, visit); err != nil {
				t.Fatal(err)
			}
		})
		qt.Assert(t, qt.Equals(allocs, 0), qt.Commentf("by %s", by))
	}
}

// FuzzDecodeDiag feeds the decoder what no kernel would send. It must not
// panic, and must show no record that is shorter than it says.
func FuzzDecodeDiag(f *testing.F) {
	local, remote := netip.MustParseAddrPort("[2001:db8::1]:80"), netip.MustParseAddrPort("[2001:db8::2]:40000")
	record := diagRecord(FamilyIPv6, StateEstablished, 0, local, remote, 1)
	f.Add(netlinkMessage(sockDiagByFamily, 0, 1, record), uint32(1))
	request := diagRecord(FamilyIPv6, StateNewSynRecv, TimerRetransmit, local, remote, 0)
	for _, attributes := range [][]byte{{5, 0, diagShutdown, 0, 3}, {0, 0, 1, 0}, {9, 0, 1, 0}, {4, 0, 1, 0, 5, 0}} {
		f.Add(netlinkMessage(sockDiagByFamily, 0, 1, append(bytes.Clone(request), attributes...)), uint32(1))
	}
	f.Add(netlinkMessage(unix.NLMSG_DONE, 0, 1, make([]byte, 4)), uint32(1))
	f.Add(netlinkMessage(unix.NLMSG_ERROR, 0, 1, make([]byte, 20)), uint32(1))
	f.Add(append(netlinkMessage(sockDiagByFamily, 0, 1, record), 1, 2), uint32(1))
	f.Add([]byte{}, uint32(0))
	f.Fuzz(func(t *testing.T, datagram []byte, seq uint32) {
		tallies := []*tally{newTally(ByListener), newTally(ByProcess), newTally(ByRemote)}
		visits := 0
		_, _, _ = decodeDiag(datagram, seq, func(m diagMsg) {
			visits++
			if len(m) < sizeofDiagMsg {
				t.Fatalf("record of %d bytes", len(m))
			}
			for _, tally := range tallies {
				tally.add(m)
			}
			if s := m.socket(1); s.HalfOpen && s.State != StateSynRecv {
				t.Fatalf("half-open in %v", s.State)
			}
		})
		if visits > len(datagram)/sizeofDiagMsg {
			t.Fatalf("%d records in %d bytes", visits, len(datagram))
		}
		if total := tallies[0].states.Total(); total > uint64(visits) {
			t.Fatalf("%d sockets of %d records", total, visits)
		}
	})
}
