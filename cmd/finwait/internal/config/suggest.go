package config

import (
	"strings"

	"github.com/spf13/pflag"
)

// nearest returns the name of the flag that the user may have meant, "" if none is
// near.
func nearest(flags *pflag.FlagSet, written string) string {
	const longest = 64 // no name is, and the time grows with the length
	written = strings.ToLower(strings.ReplaceAll(written, "_", "-"))
	if len(written) > longest {
		return ""
	}
	best, least := "", max(2, len(written)/4)+1
	flags.VisitAll(func(flag *pflag.Flag) {
		if flag.Hidden || onlyOnCommandLine(flag) {
			return
		}
		// Few letters are near to all that is short.
		if d := distance(written, flag.Name); d < least && d < len(flag.Name)-1 {
			best, least = flag.Name, d
		}
	})
	return best
}

// distance is how many letters must be put in, taken out or changed to make b of
// a.
func distance(a, b string) int {
	row := make([]int, len(b)+1) // distances of a[:i] from b[:j]
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
