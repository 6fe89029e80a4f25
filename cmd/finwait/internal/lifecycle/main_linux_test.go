package lifecycle

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/go-quicktest/qt"
)

// others are what this binary is, instead of tests, when the variable is set.
var others = []struct {
	variable string
	be       func(value string) error
}{
	{subjectKeeps, beSubject},
	{hostUID, beHost},
	{threadsDir, beThreads},
	{agentDir, beAgent},
}

func TestMain(m *testing.M) {
	for _, o := range others {
		value, set := os.LookupEnv(o.variable)
		if !set {
			continue
		}
		if err := o.be(value); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// requireRoot skips the test without privileges, unless CI_PRIVILEGED=1 says
// that they are there.
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

// executable is this binary.
func executable(t testing.TB) string {
	t.Helper()
	path, err := os.Executable()
	qt.Assert(t, qt.IsNil(err))
	return path
}

// openCopy returns a copy of this binary that every user may run. It is there
// until the test ends.
func openCopy(t testing.TB) string {
	t.Helper()
	binary, err := os.ReadFile(executable(t))
	qt.Assert(t, qt.IsNil(err))
	path := filepath.Join(openDir(t), "copy")
	qt.Assert(t, qt.IsNil(os.WriteFile(path, binary, 0o755)))
	return path
}

// openDir returns a directory that every user may look into. It is there until the
// test ends.
func openDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "finwait-test")
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(os.RemoveAll(dir))) })
	qt.Assert(t, qt.IsNil(os.Chmod(dir, 0o755)))
	return dir
}
