package lifecycle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// manager is a service manager that listens.
type manager struct {
	t    testing.TB
	conn *net.UnixConn
}

func startManager(t testing.TB, address string) *manager {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", address)
	return &manager{t, conn}
}

// hear returns the next message.
func (m *manager) hear() string {
	m.t.Helper()
	qt.Assert(m.t, qt.IsNil(m.conn.SetReadDeadline(time.Now().Add(30*time.Second))))
	buf := make([]byte, 4096)
	n, err := m.conn.Read(buf)
	qt.Assert(m.t, qt.IsNil(err))
	return string(buf[:n])
}

func TestNotify(t *testing.T) {
	for name, address := range map[string]string{
		"path":     filepath.Join(t.TempDir(), "notify"),
		"abstract": fmt.Sprintf("@finwait-test-%d", os.Getpid()),
	} {
		t.Run(name, func(t *testing.T) {
			m := startManager(t, address)
			qt.Assert(t, qt.IsNil(Ready("tracing")))
			qt.Check(t, qt.Equals(m.hear(), "READY=1\nSTATUS=tracing"))
			qt.Assert(t, qt.IsNil(Stopping("a\nREADY=1\r\nb")))
			qt.Check(t, qt.Equals(m.hear(), "STOPPING=1\nSTATUS=a READY=1 b"))
		})
	}
}

func TestNotifyReloading(t *testing.T) {
	m := startManager(t, filepath.Join(t.TempDir(), "notify"))
	before := monotonic(t)
	qt.Assert(t, qt.IsNil(Reloading()))
	after := monotonic(t)
	word, ok := strings.CutPrefix(m.hear(), "RELOADING=1\nMONOTONIC_USEC=")
	qt.Assert(t, qt.IsTrue(ok))
	at, err := strconv.ParseInt(word, 10, 64)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsTrue(before <= at && at <= after), qt.Commentf("%d %d %d", before, at, after))
}

// monotonic returns the time in microseconds.
func monotonic(t testing.TB) int64 {
	t.Helper()
	var now unix.Timespec
	qt.Assert(t, qt.IsNil(unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)))
	return now.Nano() / 1000
}

func TestNotifyNobody(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	qt.Check(t, qt.IsNil(Ready("tracing")))
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody"))
	qt.Check(t, qt.ErrorMatches(Ready("tracing"), "notify the service manager: .*no such file or directory"))
}

// TestWatch lets the agent hang and recover: the watchdog is fed before and after.
func TestWatch(t *testing.T) {
	m := startManager(t, filepath.Join(t.TempDir(), "notify"))
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	var ill atomic.Bool
	check := func() error {
		if ill.Load() {
			return errors.New("no progress for 31s")
		}
		return nil
	}
	var logged bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		Watch(ctx, slog.New(slog.NewTextHandler(&logged, nil)), check)
	}()
	const fed = "WATCHDOG=1"
	for range 3 {
		qt.Check(t, qt.Equals(m.hear(), fed))
	}
	ill.Store(true)
	heard := m.hear()
	for heard == fed { // said before it was ill
		heard = m.hear()
	}
	qt.Check(t, qt.Equals(heard, "STATUS=hangs: no progress for 31s"))
	time.Sleep(60 * time.Millisecond) // several times as long as it waits to feed
	ill.Store(false)
	qt.Check(t, qt.Equals(m.hear(), fed+"\nSTATUS=works again"))
	qt.Check(t, qt.Equals(m.hear(), fed))
	cancel()
	<-done
	qt.Check(t, qt.Equals(strings.Count(logged.String(), "level=ERROR"), 1), qt.Commentf("%s", &logged))
	qt.Check(t, qt.Equals(strings.Count(logged.String(), "works again"), 1), qt.Commentf("%s", &logged))
}

// TestWatchUnwanted returns at once where there is nobody to tell.
func TestWatchUnwanted(t *testing.T) {
	check := func() error { t.Error("checked"); return nil }
	for pid, usec := range map[string]string{strconv.Itoa(os.Getpid()): "", "1": "20000", "": "-1"} {
		t.Setenv("WATCHDOG_PID", pid)
		t.Setenv("WATCHDOG_USEC", usec)
		Watch(t.Context(), slog.New(slog.DiscardHandler), check)
	}
}
