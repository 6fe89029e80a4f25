package deploy

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/go-quicktest/qt"
)

// TestKubernetes runs the tests of the module that has Kubernetes' types.
func TestKubernetes(t *testing.T) {
	inSource(t)
	inRepository(t, nil, "go", "-C", "test/deploy/kubernetes", "test", "-count=1", "./...")
}

// TestCollector has a Collector with the exporters that deploy/otelcol names read
// the configuration. It takes minutes to build, once: it is kept.
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

// buildCollector returns the path of the Collector in the cache. Where it is not
// there, and not everything has to be, the test is skipped.
func buildCollector(t *testing.T) string {
	t.Helper()
	module := filepath.Join(root, "test/deploy/otelcol")
	h := sha256.New()
	for _, file := range []string{"main.go", "go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(module, file))
		qt.Assert(t, qt.IsNil(err))
		h.Write(text)
	}
	cache, err := os.UserCacheDir()
	qt.Assert(t, qt.IsNil(err))
	file := filepath.Join(cache, "finwait", "otelcol", fmt.Sprintf("%x", h.Sum(nil)[:8]))
	if _, err := os.Stat(file); err == nil {
		return file
	}
	if os.Getenv("CI_PRIVILEGED") != "1" {
		t.Skip("the Collector takes minutes to build: CI_PRIVILEGED=1 has it built")
	}
	qt.Assert(t, qt.IsNil(os.MkdirAll(filepath.Dir(file), 0o755)))
	part := fmt.Sprintf("%s.%d", file, os.Getpid())
	inRepository(t, nil, "go", "-C", "test/deploy/otelcol", "build", "-ldflags=-s", "-o", part, ".")
	qt.Assert(t, qt.IsNil(os.Rename(part, file)))
	return file
}
