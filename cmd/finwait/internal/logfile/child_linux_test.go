package logfile

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
)

// These variables make a test binary a child of a test.
const (
	writerVar = "FINWAIT_TEST_LOG_WRITER" // the first number of a writer
	insideVar = "FINWAIT_TEST_LOG_INSIDE" // the directory of a test that goes on in a child
)

func TestMain(m *testing.M) {
	if first := os.Getenv(writerVar); first != "" {
		fmt.Fprintln(os.Stderr, writeForever(first))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// requireRoot skips the test without privileges, unless CI_PRIVILEGED=1 says
// that it must run.
func requireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI_PRIVILEGED") == "1" {
		t.Fatal("CI_PRIVILEGED=1 and not root")
	}
	t.Skip("needs root")
}

// inChild runs the test in a process of its own. It returns the test's directory
// and true in that process, and false in the one that has waited for it.
func inChild(t *testing.T, dir string, attr *syscall.SysProcAttr) (string, bool) {
	t.Helper()
	if inside := os.Getenv(insideVar); inside != "" {
		return inside, true
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run", "^"+t.Name()+"$", "-test.v", "-test.timeout", "2m")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), insideVar+"="+dir)
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(string(out), "--- SKIP") {
		t.Skipf("%s", out)
	}
	qt.Assert(t, qt.StringContains(string(out), "--- PASS: "+t.Name()))
	return "", false
}

// writeForever writes the records from that number on to the log that the
// environment names, and tells on standard output how many are kept.
func writeForever(first string) error {
	number, err := strconv.Atoi(first)
	if err != nil {
		return err
	}
	l, err := Open(killedOptions(os.Getenv(insideVar)))
	if err != nil {
		return err
	}
	kept := uint64(0)
	b := newBatch(number, killedBatch, 0)
	for {
		counts, err := l.Send(context.Background(), b)
		if err != nil {
			return err
		}
		kept += counts.Total()
		for i := range b.Transitions {
			b.Transitions[i].Cookie += killedBatch
		}
		if err := binary.Write(os.Stdout, binary.NativeEndian, kept); err != nil {
			return err
		}
	}
}

const killedBatch = 500

func killedOptions(path string) Options {
	return Options{Path: path, MaxSize: 400_000, Compress: "zstd", Sync: Sync(5 * time.Millisecond)}
}

// A process that is killed while it writes, rotates and compresses leaves nothing
// that the next one does not put right: every record that counted as kept is there
// once, after it at most those of a batch that was not counted yet, and every line
// is whole.
func TestKilled(t *testing.T) {
	path := logPath(t)
	const kills, distance = 23, 10_000_000
	var reported [kills]int
	torn := 0
	for i := range kills {
		reported[i] = killWriter(t, path, i*distance)
		data, _ := os.ReadFile(path) // it may have been between two files
		if !bytes.HasSuffix(data, newline) && len(data) > 0 {
			torn++
		}
	}
	l := mustOpen(t, killedOptions(path))
	eventually(t, "all rotated files are compressed", func() bool { return compressed(t, path, ".zst") })
	qt.Check(t, qt.Equals(l.Stats().CompressFailures, 0))
	qt.Assert(t, qt.IsNil(l.Close()))

	got := allNumbers(t, path)
	for i, kept := range reported {
		n := 0
		for n < len(got) && got[n]/distance == i {
			if got[n] != i*distance+n {
				t.Fatalf("%d comes after %d", got[n], i*distance+n-1)
			}
			n++
		}
		if n < kept || n > kept+killedBatch {
			t.Errorf("%d records of a writer that has counted %d", n, kept)
		}
		got = got[n:]
	}
	qt.Check(t, qt.HasLen(got, 0))
	t.Logf("%d records; %d of %d had left half a line", reported, torn, kills)
}

// killWriter kills a writer after a moment, and returns how many records it has
// counted as kept.
func killWriter(t *testing.T, path string, first int) int {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), writerVar+"="+strconv.Itoa(first), insideVar+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(cmd.Start()))
	var kept uint64
	qt.Assert(t, qt.IsNil(binary.Read(out, binary.NativeEndian, &kept))) // it is on its way
	timer := time.AfterFunc(time.Duration(rand.IntN(8000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	for binary.Read(out, binary.NativeEndian, &kept) == nil {
	}
	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait()
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	qt.Assert(t, qt.Equals(status.Signal(), syscall.SIGKILL))
	return int(kept)
}

// A second process is told that there is a first one.
func TestLocked(t *testing.T) {
	path := logPath(t)
	l := mustOpen(t, Options{Path: path})
	_, err := Open(Options{Path: path})
	qt.Check(t, qt.ErrorIs(err, errLocked))
	qt.Check(t, qt.ErrorMatches(err, ".*"+filepath.Base(path)+".*"))
	mustSend(t, l, newBatch(0, 23, 0))
	qt.Assert(t, qt.IsNil(l.Close()))
	mustSend(t, mustOpen(t, Options{Path: path}), newBatch(23, 23, 0))
	checkNumbers(t, numbers(t, readLog(t, path)), upTo(0, 46))
}
