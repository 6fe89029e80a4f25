// Package suggest finds the name that somebody may have meant.
package suggest

import "strings"

// longest is how long something may be that is compared: no name is longer, and the
// time grows with the length.
const longest = 64

// Nearest returns the one of names that was meant, "" if none is near. Case does not
// count, and a name has "-" where "_" was written.
func Nearest(names []string, written string) string {
	written = fold(written)
	if len(written) > longest {
		return ""
	}
	best, least := "", max(2, len(written)/4)+1
	for _, name := range names {
		// Few letters are near to all that is short.
		if d := distance(written, name); d < least && d < len(name)-1 {
			best, least = name, d
		}
	}
	return best
}

// Containing returns the names that have all that was written in them, in their order;
// none if that is so little that it says nothing.
func Containing(names []string, written string) (all []string) {
	written = fold(written)
	if len(written) < 3 {
		return nil
	}
	for _, name := range names {
		if strings.Contains(name, written) {
			all = append(all, name)
		}
	}
	return all
}

func fold(written string) string { return strings.ToLower(strings.ReplaceAll(written, "_", "-")) }

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
