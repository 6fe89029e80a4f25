package config

import (
	"slices"

	"github.com/spf13/pflag"
)

// Changes compares the flags of a running command with those of a fresh one, which
// the same command line and a newer file have set. It returns the names of those
// that differ: those that are among reloadable, and those that take a restart.
func Changes(running, fresh *pflag.FlagSet, reloadable []string) (reload, restart []string) {
	fresh.VisitAll(func(flag *pflag.Flag) {
		old := running.Lookup(flag.Name)
		switch {
		case old == nil || old.Value.String() == flag.Value.String():
		case slices.Contains(reloadable, flag.Name):
			reload = append(reload, flag.Name)
		default:
			restart = append(restart, flag.Name)
		}
	})
	return reload, restart
}
