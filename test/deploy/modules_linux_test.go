package deploy

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

// TestKubernetes runs the tests of the module that has Kubernetes' types.
func TestKubernetes(t *testing.T) {
	inSource(t)
	inRepository(t, nil, "go", "-C", "test/deploy/kubernetes", "test", "-count=1", "./...")
}

// TestCollector has a Collector with the exporters that deploy/otelcol names read
// the configuration.
func TestCollector(t *testing.T) {
	inSource(t)
	collector := buildCollector(t)
	inRepository(t, nil, collector, "validate", "--config", "deploy/otelcol/collector.yaml")

	// It does refuse what is not right.
	text, err := os.ReadFile(filepath.Join(root, "deploy/otelcol/collector.yaml"))
	qt.Assert(t, qt.IsNil(err))
	wrong := filepath.Join(t.TempDir(), "wrong.yaml")
	qt.Assert(t, qt.IsNil(os.WriteFile(wrong, append(text, "\nno_such_section: {}\n"...), 0o600)))
	qt.Check(t, qt.IsNotNil(exec.Command(collector, "validate", "--config", wrong).Run()))
}

// buildCollector returns the path of the Collector. Where it has not been built, and
// not everything has to be there, the test is skipped.
func buildCollector(t *testing.T) string {
	t.Helper()
	build := exec.Command(filepath.Join(root, "test/collector/build.sh"))
	if os.Getenv("CI_PRIVILEGED") != "1" {
		build.Args = append(build.Args, "--have")
	}
	var said bytes.Buffer
	build.Stderr = &said
	path, err := build.Output()
	if err == nil {
		return strings.TrimSpace(string(path))
	}
	if os.Getenv("CI_PRIVILEGED") == "1" {
		t.Fatalf("%s: %v\n%s", build, err, &said)
	}
	t.Skip(strings.TrimSpace(said.String()))
	return ""
}
