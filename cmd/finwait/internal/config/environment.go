package config

import (
	"fmt"
	"strings"

	"github.com/spf13/pflag"
)

const (
	prefix = "FINWAIT_"
	// testPrefix is that of variables that are for tests, and no settings.
	testPrefix = "FINWAIT_TEST_"
)

// Variable returns the environment variable of a flag.
func Variable(flag string) string {
	return prefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// environment returns the settings in env.
func environment(flags *pflag.FlagSet, env []string) (settings []setting) {
	for _, entry := range env {
		variable, value, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(variable, prefix) || strings.HasPrefix(variable, testPrefix) {
			continue
		}
		name := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(variable, prefix), "_", "-"))
		flag, err := settable(flags, name, variable, Variable)
		if err == nil && Variable(name) != variable {
			err = fmt.Errorf("no setting is called %q; did you mean %s?", variable, Variable(name))
		}
		if err != nil {
			err = fmt.Errorf("environment: %w", err)
		}
		settings = append(settings, setting{err: err, flag: flag, where: variable, values: []string{value}})
	}
	return settings
}
