package deploy

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"go.yaml.in/yaml/v3"

	"github.com/finwait/finwait/tracer"
)

// settings are the keys of the configuration, which are the flags of serve.
var settings = strings.Fields(`
	evidence buffer
	state transition port lport rport addr pid comm uid cgroup netns ipv4 ipv6 slow reason sample
	records log log-max-size log-max-age log-max-total log-compress log-sync
	listen web-config service-ports by-cgroup
	otlp pin state-dir keep-privileges`)

// TestConfiguration holds the configurations that are shipped to the names that
// there are. Those that are commented out are read as well.
func TestConfiguration(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "deploy/finwait.yaml"))
	qt.Assert(t, qt.IsNil(err))
	t.Run("package", func(t *testing.T) { checkConfiguration(t, string(text)) })
	t.Run("commented out", func(t *testing.T) { checkConfiguration(t, uncommented(string(text))) })
	t.Run("kubernetes", func(t *testing.T) { checkConfiguration(t, configMap(t)) })
}

// uncommented returns only the settings that stand in comments.
func uncommented(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		rest, is := strings.CutPrefix(line, "# ")
		key, _, named := strings.Cut(rest, ": ")
		if is && named && slices.Contains(settings, key) {
			b.WriteString(rest)
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

func checkConfiguration(t *testing.T, text string) {
	t.Helper()
	var config map[string]any
	qt.Assert(t, qt.IsNil(yaml.Unmarshal([]byte(text), &config)))
	qt.Assert(t, qt.Not(qt.HasLen(config, 0)))
	for key := range config {
		qt.Check(t, qt.IsTrue(slices.Contains(settings, key)), qt.Commentf("there is no %s", key))
	}
	for _, name := range words(config["reason"]) {
		_, err := tracer.ParseReasons(name)
		qt.Check(t, qt.IsNil(err))
	}
	for _, word := range words(config["slow"]) {
		state, text, _ := strings.Cut(word, ":")
		_, err := tracer.ParseState(state)
		qt.Check(t, qt.IsNil(err))
		_, err = time.ParseDuration(text)
		qt.Check(t, qt.IsNil(err))
	}
}

// words returns a list of the configuration as text.
func words(list any) (all []string) {
	items, _ := list.([]any)
	for _, item := range items {
		if word, ok := item.(string); ok {
			all = append(all, word)
		}
	}
	return all
}
