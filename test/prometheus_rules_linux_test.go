package test

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"go.yaml.in/yaml/v3"
)

const (
	rulesDir  = "../deploy/prometheus"
	goldenDir = "../cmd/finwait/internal/metrics/testdata"
)

// promtool runs promtool, which must have nothing to complain about.
func promtool(t *testing.T, stdin []byte, args ...string) {
	t.Helper()
	cmd := exec.Command(requireProgram(t, "promtool"), args...)
	cmd.Dir = rulesDir
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	qt.Assert(t, qt.IsNil(err), qt.Commentf("promtool %s: %s", strings.Join(args, " "), out))
}

func TestPrometheusRules(t *testing.T) {
	promtool(t, nil, "check", "rules", "rules.yml")
	promtool(t, nil, "test", "rules", "rules_test.yml")
	promtool(t, nil, "check", "config", "scrape.yml")
}

// TestExposition has promtool find no fault with what /metrics says.
func TestExposition(t *testing.T) {
	for _, text := range goldenMetrics(t) {
		promtool(t, text, "check", "metrics")
	}
}

func goldenMetrics(t *testing.T) (texts [][]byte) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(goldenDir, "*.golden"))
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsTrue(len(paths) > 0))
	for _, path := range paths {
		text, err := os.ReadFile(path)
		qt.Assert(t, qt.IsNil(err))
		texts = append(texts, text)
	}
	return texts
}

func readYAML(t *testing.T, name string, into any) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(rulesDir, name))
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(yaml.Unmarshal(text, into)))
	return text
}

// TestEveryAlertHasCases has each alert fire in one case, and not in another.
func TestEveryAlertHasCases(t *testing.T) {
	var rules struct {
		Groups []struct {
			Rules []struct{ Alert, Record string }
		}
	}
	readYAML(t, "rules.yml", &rules)
	var cases struct {
		Tests []struct {
			Alerts []struct {
				Name string `yaml:"alertname"`
				Want []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
			Expressions []struct{ Expr string } `yaml:"promql_expr_test"`
		}
	}
	readYAML(t, "rules_test.yml", &cases)
	fires, silent, exprs := map[string]bool{}, map[string]bool{}, ""
	for _, c := range cases.Tests {
		for _, a := range c.Alerts {
			fires[a.Name] = fires[a.Name] || len(a.Want) > 0
			silent[a.Name] = silent[a.Name] || len(a.Want) == 0
		}
		for _, e := range c.Expressions {
			exprs += e.Expr + "\n"
		}
	}
	alerts := 0
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			if rule.Alert == "" {
				qt.Check(t, qt.StringContains(exprs, rule.Record))
				continue
			}
			alerts++
			qt.Check(t, qt.IsTrue(fires[rule.Alert]), qt.Commentf("%s fires in no case", rule.Alert))
			qt.Check(t, qt.IsTrue(silent[rule.Alert]), qt.Commentf("%s is silent in no case", rule.Alert))
		}
	}
	qt.Check(t, qt.IsTrue(alerts > 0))
}

var (
	// After a colon is what rules record.
	inRules  = regexp.MustCompile(`(?:^|[^:\w])(finwait_\w+)(\{[^}]*\})?`)
	matchers = regexp.MustCompile(`([a-z_]+)(=~?|!=|!~)"([^"]*)"`)
)

// TestRulesNameMetrics looks for each metric that the rules are about, and each value
// of a label that they choose, in what /metrics says.
func TestRulesNameMetrics(t *testing.T) {
	var document any
	rules := string(readYAML(t, "rules.yml", &document))
	exposed := string(bytes.Join(goldenMetrics(t), nil))
	found := map[string]bool{}
	for _, selector := range inRules.FindAllStringSubmatch(rules, -1) {
		name, labels := selector[1], selector[2]
		found[name] = true
		isExposed := strings.Contains(exposed, "\n"+name+"{") || strings.Contains(exposed, "# TYPE "+name+" ")
		qt.Check(t, qt.IsTrue(isExposed), qt.Commentf("%s", name))
		for _, m := range matchers.FindAllStringSubmatch(labels, -1) {
			for value := range strings.SplitSeq(m[3], "|") {
				qt.Check(t, qt.StringContains(exposed, m[1]+`="`+value+`"`), qt.Commentf("in %s%s", name, labels))
			}
		}
	}
	qt.Check(t, qt.IsTrue(len(found) > 8), qt.Commentf("%v", slices.Sorted(maps.Keys(found))))
}
