package config

import (
	"github.com/spf13/pflag"

	"github.com/finwait/finwait/cmd/finwait/internal/suggest"
)

// nearest returns the name of the flag that the user may have meant, "" if none is
// near.
func nearest(flags *pflag.FlagSet, written string) string {
	var names []string
	flags.VisitAll(func(flag *pflag.Flag) {
		if !flag.Hidden && !onlyOnCommandLine(flag) {
			names = append(names, flag.Name)
		}
	})
	return suggest.Nearest(names, written)
}
