package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"
)

// manDir names the folder that deploy/packages/build.sh wants the pages in.
const manDir = "FINWAIT_MAN_DIR"

// TestManPages writes the man pages. It is a test since what makes them must not
// be in the command, and what they are made of is nowhere else.
func TestManPages(t *testing.T) {
	dir := os.Getenv(manDir)
	if dir == "" {
		dir = t.TempDir()
	}
	root := newRootCommand()
	root.DisableAutoGenTag = true
	date := manDate(t)
	err := doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "finwait", Manual: "User Commands", Date: &date}, dir)
	qt.Assert(t, qt.IsNil(err))
	for _, cmd := range append(root.Commands(), root) {
		if cmd.IsAvailableCommand() {
			checkManPage(t, dir, cmd)
		}
	}
}

// manDate is the day that the pages bear.
func manDate(t *testing.T) time.Time {
	t.Helper()
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return time.Now().UTC()
	}
	return time.Unix(seconds, 0).UTC()
}

func checkManPage(t *testing.T, dir string, cmd *cobra.Command) {
	t.Helper()
	file := filepath.Join(dir, strings.ReplaceAll(cmd.CommandPath(), " ", "-")+".1")
	text, err := os.ReadFile(file)
	qt.Assert(t, qt.IsNil(err))
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		qt.Check(t, qt.IsTrue(f.Hidden || strings.Contains(string(text), "--"+f.Name)), qt.Commentf("%s: --%s", file, f.Name))
	})
	if man, err := exec.LookPath("man"); err == nil {
		out, err := exec.Command(man, "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", file).CombinedOutput()
		qt.Check(t, qt.IsNil(err), qt.Commentf("%s", out))
	}
}
