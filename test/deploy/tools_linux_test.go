package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/go-quicktest/qt"
)

// root is the top of the repository, from here.
const root = "../.."

// need skips the test if a program is not there, and fails it where all has to be.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, program := range programs {
		if _, err := exec.LookPath(program); err == nil {
			continue
		}
		if os.Getenv("CI_PRIVILEGED") == "1" {
			t.Fatalf("there is no %s, and CI_PRIVILEGED=1 says that all is there", program)
		}
		t.Skipf("needs %s", program)
	}
}

// inRepository runs a command at the top of the repository and returns what it
// said; the test fails with that if the command does.
func inRepository(t *testing.T, environment []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), environment...)
	out, err := cmd.CombinedOutput()
	qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", out))
	return string(out)
}

// inSource skips a test that needs the repository and Go, where only its binary
// is, as in a virtual machine.
func inSource(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Skip("needs the repository")
	}
	need(t, "go")
}
