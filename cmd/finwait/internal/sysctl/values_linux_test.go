package sysctl

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// inNamespace runs f on a thread that is in a network namespace of its own, and that
// ends with it.
func inNamespace(t *testing.T, f func()) {
	t.Helper()
	requireRoot(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("unshare: %v", err)
			return
		}
		f()
	}()
	<-done
}

// set writes a sysctl of the calling thread's namespace.
func set(name, value string) error {
	path, _ := procPath(name)
	return os.WriteFile(path, []byte(value), 0)
}

func TestReadValuesOfNamespace(t *testing.T) {
	const name, here = "net.ipv4.tcp_fin_timeout", "23"
	before := ReadValues([]string{name})
	qt.Check(t, qt.HasLen(before, 1))
	qt.Check(t, qt.Not(qt.Equals(before[name], here)))
	inNamespace(t, func() {
		qt.Check(t, qt.IsNil(set(name, here)))
		qt.Check(t, qt.IsNil(set("net.ipv4.ip_local_port_range", "2300\t2323")))
		values := ReadValues(Names)
		qt.Check(t, qt.Equals(values[name], here))
		qt.Check(t, qt.Equals(values["net.ipv4.ip_local_port_range"], "2300 2323"))
		ports, ok := values.Ports("net.ipv4.ip_local_reserved_ports")
		qt.Check(t, qt.IsTrue(ok))
		qt.Check(t, qt.HasLen(ports, 0))
	})
	qt.Check(t, qt.DeepEquals(ReadValues([]string{name}), before))
}

// TestReadValues reads what every kernel has, and not what none has.
func TestReadValues(t *testing.T) {
	values := ReadValues(append([]string{"net.ipv4.tcp_tw_recycle", "net.ipv4", "", "../net.x", "net/ipv4/tcp_rfc1337", "net.ipv4.tcp_fin\x00"}, Names...))
	for _, name := range Names {
		value, ok := values[name]
		qt.Check(t, qt.Equals(ok, Exists(name)), qt.Commentf(name))
		if ok && name != "net.ipv4.ip_local_reserved_ports" {
			_, ok := values.Ints(name)
			qt.Check(t, qt.IsTrue(ok), qt.Commentf("%s is %q", name, value))
		}
		delete(values, name)
	}
	qt.Check(t, qt.HasLen(values, 0))
	qt.Check(t, qt.IsTrue(Exists("net.ipv4.tcp_fin_timeout")))
	for _, key := range []string{"net.ipv4.tcp_tw_recycle", "net.ipv4", "", "net/ipv4/tcp_fin_timeout", "////kernel"} {
		qt.Check(t, qt.IsFalse(Exists(key)), qt.Commentf(key))
	}
}

// TestReadManyPorts has a list that the kernel gives in one read or not at all.
func TestReadManyPorts(t *testing.T) {
	const name, count = "net.ipv4.ip_local_reserved_ports", 16411 // a prime
	var list []string
	for i := range count {
		list = append(list, fmt.Sprint(2*i+1))
	}
	inNamespace(t, func() {
		qt.Check(t, qt.IsNil(set(name, strings.Join(list, ","))))
		ports, ok := ReadValues([]string{name}).Ports(name)
		qt.Check(t, qt.IsTrue(ok))
		qt.Check(t, qt.HasLen(ports, count))
		for i, p := range ports {
			if want := uint16(2*i + 1); p != (PortRange{want, want}) {
				t.Errorf("port %d is %v", want, p)
				return
			}
		}
	})
}

// TestEqualOfKernel writes values to sysctls: the one that is read then is equal, and
// none is if the kernel has refused it.
func TestEqualOfKernel(t *testing.T) {
	inNamespace(t, func() {
		for _, test := range []struct {
			name, before string
			texts        []string
		}{
			{"net.ipv4.tcp_fin_timeout", "60", []string{
				"23", " 7\t", "010", "0x10", "0X1f", "00", "-0", "000000000000000000005", "00000000000000000005", "+5", "08", "0x", "1_0", "0b1", "1.0", "a",
			}},
			{"net.ipv4.ip_local_port_range", "30000 40000", []string{"2300 2323", "02300\t0x2323", "2323,2324", "2300-2323"}},
			{"net.ipv4.ip_local_reserved_ports", "\n", []string{
				"8080,8081", "9,7,8", "1-9,2-3", "0-65535", "0x10,010", "65536", "5-1", "1,,2", "1,", "1-", "1-2-3", "+1", "1, 2",
			}},
		} {
			for _, text := range test.texts {
				qt.Check(t, qt.IsNil(set(test.name, test.before)))
				err := set(test.name, text)
				now := ReadValues([]string{test.name})[test.name]
				qt.Check(t, qt.Equals(Equal(text, now), err == nil), qt.Commentf("%s: %q is %q, %v", test.name, text, now, err))
			}
		}
	})
}
