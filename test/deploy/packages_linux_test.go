package deploy

import (
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/finwait/finwait/test/internal/netns"
)

// TestPackages builds the packages, twice the same, lets lintian read the .deb,
// and installs, upgrades, removes and purges both in a copy of this system.
func TestPackages(t *testing.T) {
	inSource(t)
	netns.RequireRoot(t)
	need(t, "lintian", "rpm", "dpkg", "unshare")
	deb, rpm := buildPackages(t)
	again, rpmAgain := buildPackages(t)
	qt.Check(t, qt.Equals(digest(t, again), digest(t, deb)), qt.Commentf("the .deb is another each time"))
	qt.Check(t, qt.Equals(digest(t, rpmAgain), digest(t, rpm)), qt.Commentf("the .rpm is another each time"))

	t.Run("lintian", func(t *testing.T) {
		inRepository(t, nil, "lintian", "--allow-root", "--fail-on", "error,warning", deb)
	})
	t.Run("install", func(t *testing.T) {
		out := inRepository(t, nil, "unshare", "--mount", "bash", "test/deploy/install.sh", t.TempDir(), deb, rpm)
		qt.Check(t, qt.StringContains(out, "nothing is left"))
	})
}

// buildPackages returns the paths of a new .deb and .rpm.
func buildPackages(t *testing.T) (deb, rpm string) {
	t.Helper()
	dir := t.TempDir()
	inRepository(t, nil, "deploy/packages/build.sh", dir)
	return only(t, dir, "*.deb"), only(t, dir, "*.rpm")
}

func only(t *testing.T, dir, pattern string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(files, 1))
	return files[0]
}

func digest(t *testing.T, file string) [sha256.Size]byte {
	t.Helper()
	text, err := os.ReadFile(file)
	qt.Assert(t, qt.IsNil(err))
	return sha256.Sum256(text)
}

// exposure is the most that systemd may say of the unit, in tenths. deploy/README.md
// has what the rest of it is for.
const exposure = "35"

// TestUnit lets systemd read the unit and say how much it is exposed.
func TestUnit(t *testing.T) {
	inSource(t)
	need(t, "systemd-analyze")
	unit := "deploy/systemd/finwait.service"
	out := inRepository(t, nil, "systemd-analyze", "security", "--no-pager", "--offline=yes", "--threshold="+exposure, unit)
	t.Log(lastLine(out))
	text, err := os.ReadFile(filepath.Join(root, unit))
	qt.Assert(t, qt.IsNil(err))
	// verify wants the program and the man page to be installed.
	copied := filepath.Join(t.TempDir(), "finwait.service")
	words := strings.NewReplacer("/usr/bin/finwait", "/bin/true", "man:finwait(1)", "man:sh(1)").Replace(string(text))
	qt.Assert(t, qt.IsNil(os.WriteFile(copied, []byte(words), 0o644)))
	out = inRepository(t, nil, "systemd-analyze", "verify", "--man=no", copied)
	qt.Check(t, qt.Equals(strings.TrimSpace(out), ""))
}

// TestCapabilities holds the unit to what SECURITY.md says that the agent uses.
func TestCapabilities(t *testing.T) {
	inSource(t)
	text, err := os.ReadFile(filepath.Join(root, "SECURITY.md"))
	qt.Assert(t, qt.IsNil(err))
	var used []string
	for line := range strings.Lines(string(text)) {
		// The unit says why it has no use for CAP_SETPCAP.
		if name, _, ok := strings.Cut(strings.TrimPrefix(line, "| "), " |"); ok && strings.HasPrefix(name, "CAP_") && name != "CAP_SETPCAP" {
			used = append(used, name)
		}
	}
	qt.Check(t, qt.ContentEquals(unitCapabilities(t), used))
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
