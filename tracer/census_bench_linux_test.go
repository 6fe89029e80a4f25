package tracer

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// benchTimeWait is how many TIME_WAIT sockets BenchmarkCensus counts.
const benchTimeWait = 50_000

// netstatLine is the line that people use for what a census does.
const netstatLine = `netstat -n | awk '/^tcp/ {++s[$NF]} END {for (k in s) print k "\t" s[k]}'`

// BenchmarkCensus counts 50,000 TIME_WAIT sockets, and has netstat count them
// for comparison. They last a minute, which -benchtime should not exceed.
func BenchmarkCensus(b *testing.B) {
	for by := ByNothing; by <= ByRemote; by++ {
		b.Run("by="+by.String(), func(b *testing.B) {
			enterNetns(b)
			fillTimeWait(b, benchTimeWait)
			qt.Assert(b, qt.Equals(ssStates(b)[StateTimeWait], benchTimeWait))
			netstat := timeNetstat(b)
			b.ReportAllocs()
			for b.Loop() {
				c := takeCensus(b, SelfNetns, by)
				if n := c.States[StateTimeWait]; n != benchTimeWait {
					b.Fatalf("%d sockets in TIME_WAIT, want %d", n, benchTimeWait)
				}
			}
			census := b.Elapsed() / time.Duration(b.N)
			b.ReportMetric(float64(netstat)/float64(census), "x-faster-than-netstat")
		})
	}
}

// BenchmarkListSockets lists 100,000 sockets. They last a minute.
func BenchmarkListSockets(b *testing.B) {
	const sockets = 100_000
	enterNetns(b)
	fillTimeWait(b, sockets)
	b.ReportAllocs()
	for b.Loop() {
		if n := len(listSockets(b)); n != sockets+1 {
			b.Fatalf("%d sockets, want %d and a listener", n, sockets)
		}
	}
}

// timeNetstat returns the best of three runs, the shell's start included.
func timeNetstat(b *testing.B) time.Duration {
	b.Helper()
	if _, err := exec.LookPath("netstat"); err != nil {
		b.Skip("compares with netstat, which is not installed")
	}
	best := time.Duration(1<<63 - 1)
	for range 3 {
		start := time.Now()
		out, err := exec.Command("sh", "-c", netstatLine).Output()
		best = min(best, time.Since(start))
		qt.Assert(b, qt.IsNil(err))
		qt.Assert(b, qt.StringContains(string(out), "TIME_WAIT\t"+strconv.Itoa(benchTimeWait)))
	}
	return best
}

// fillTimeWait leaves n connections in TIME_WAIT. They come from several
// addresses, each of which has fewer ports than are asked for.
func fillTimeWait(b *testing.B, n int) {
	b.Helper()
	setSysctl(b, "net.ipv4.tcp_max_tw_buckets", "1000000")
	setSysctl(b, "net.ipv4.ip_local_port_range", "1024 65535")
	setSysctl(b, "net.ipv4.tcp_tw_reuse", "0") // on loopback it is on by default
	l := listen(b, loopback(unix.AF_INET, 0), 128)
	to := loopback(unix.AF_INET, portOf(b, l))
	for i := range n {
		from := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 1, byte(i / 10_000)}}
		if err := leaveTimeWait(l, from, to); err != nil {
			b.Fatal(err)
		}
	}
	eventually(b, func() bool {
		sum, err := readMiniSockets()
		return err == nil && sum == uint64(n)
	}, func() string { return "connections did not end in TIME_WAIT" })
}

// leaveTimeWait makes one connection and closes it, the client first.
func leaveTimeWait(listener int, from, to unix.Sockaddr) error {
	client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(client)
	// Without it, bind takes a port for the address alone, and runs out.
	if err := unix.SetsockoptInt(client, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
		return err
	}
	if err := unix.Bind(client, from); err != nil {
		return err
	}
	if err := unix.Connect(client, to); err != nil {
		return err
	}
	server, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(server) // after the client's FIN
	return unix.Shutdown(client, unix.SHUT_WR)
}

// setSysctl sets a sysctl of the calling thread's network namespace.
func setSysctl(t testing.TB, name, value string) {
	t.Helper()
	path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
	qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte(value), 0)))
}
