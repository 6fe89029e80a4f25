package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"go.yaml.in/yaml/v3"
)

// TestConfiguration has the agent read the configurations that are shipped, and
// what is commented out in them.
func TestConfiguration(t *testing.T) {
	inSource(t)
	finwait := filepath.Join(t.TempDir(), "finwait")
	inRepository(t, nil, "go", "build", "-buildvcs=false", "-o", finwait, "./cmd/finwait")
	text, err := os.ReadFile(filepath.Join(root, "deploy/finwait.yaml"))
	qt.Assert(t, qt.IsNil(err))
	for _, config := range []struct{ name, text string }{
		{"package", string(text)},
		{"commented out", uncommented(string(text))},
		{"kubernetes", configMap(t)},
	} {
		t.Run(config.name, func(t *testing.T) {
			qt.Assert(t, qt.Not(qt.Equals(config.text, "")))
			out, err := readConfiguration(t, finwait, config.text)
			qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", out))
		})
	}
	_, err = readConfiguration(t, finwait, string(text)+"no-such-key: 1\n")
	qt.Check(t, qt.IsNotNil(err))
}

// readConfiguration returns the settings that the agent takes from a text.
func readConfiguration(t *testing.T, finwait, text string) (string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "finwait.yaml")
	qt.Assert(t, qt.IsNil(os.WriteFile(file, []byte(text), 0o600)))
	out, err := exec.Command(finwait, "serve", "--config", file, "--print-config").CombinedOutput()
	return string(out), err
}

// setting is a line with one that is commented out, not a sentence.
var setting = regexp.MustCompile(`^# ([a-z-]+: [^ ]+|[a-z-]+: \[.*\])$`)

// uncommented returns only the settings that stand in comments.
func uncommented(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if setting.MatchString(strings.TrimSuffix(line, "\n")) {
			b.WriteString(strings.TrimPrefix(line, "# "))
		}
	}
	return b.String()
}

// configMap returns the configuration in the manifests.
func configMap(t *testing.T) string {
	t.Helper()
	f, err := os.Open(filepath.Join(root, "deploy/kubernetes/finwait.yaml"))
	qt.Assert(t, qt.IsNil(err))
	defer f.Close()
	for d := yaml.NewDecoder(f); ; {
		var object struct {
			Kind string
			Data map[string]string
		}
		qt.Assert(t, qt.IsNil(d.Decode(&object)), qt.Commentf("there is no ConfigMap"))
		if object.Kind == "ConfigMap" {
			return object.Data["finwait.yaml"]
		}
	}
}
