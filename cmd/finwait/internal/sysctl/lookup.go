package sysctl

import (
	"iter"
	"slices"
)

// Keys are the keys of all lines, each once, in the order in which they first appear.
// Globs and excludes are among them.
func (f *Files) Keys() iter.Seq[string] {
	return func(yield func(string) bool) {
		seen := map[string]bool{}
		for i := range f.Lines {
			key := f.Lines[i].Key
			if !seen[key] && !yield(key) {
				return
			}
			seen[key] = true
		}
	}
}

// All returns the lines that bear on a key, which is written as [Line] has it, in the
// order in which they take effect: each overrides those before it. They are the
// kernel's command line, the globs, and those with the key itself, since "keys for
// which an explicit pattern exists will be excluded from any glob matching"
// (sysctl.d(5)), wherever the glob is. The lines of a glob are those with the same
// pattern.
func (f *Files) All(key string) []Line {
	var kernel, exact []Line
	var globs globLines
	for _, line := range f.Lines {
		switch {
		case line.Key == key && line.File == Cmdline:
			kernel = append(kernel, line)
		case line.Key == key:
			exact = append(exact, line)
		case line.File != Cmdline && !isGlob(key) && isGlob(line.Key) && matches(line.Key, key):
			globs.add(line)
		}
	}
	return slices.Concat(kernel, globs.void, slices.Concat(globs.applied...), exact)
}

// Last returns the line that sets a key in the end, and false if none does.
func (f *Files) Last(key string) (Line, bool) {
	all := f.All(key)
	if len(all) == 0 {
		return Line{}, false
	}
	if last := all[len(all)-1]; !last.Exclude {
		return last, true
	}
	// What the kernel has set before any file was read stays.
	for _, line := range slices.Backward(all) {
		if line.File == Cmdline {
			return line, true
		}
	}
	return Line{}, false
}

// globLines are lines with globs that stand for the same key, in the order in which
// systemd-sysctl applies them. It keeps one entry for each pattern. A line with
// another value for a pattern goes to the end, one with the same value changes
// nothing, and an exclude of the very pattern takes it away (parse_line in systemd's
// sysctl.c).
type globLines struct {
	void    []Line
	applied [][]Line // by pattern; all of a pattern have the same value
}

func (g *globLines) add(line Line) {
	i := slices.IndexFunc(g.applied, func(same []Line) bool { return same[0].Key == line.Key })
	if i >= 0 && !line.Exclude && g.applied[i][0].Value == line.Value {
		g.applied[i] = append(g.applied[i], line)
		return
	}
	if i >= 0 {
		g.void = append(g.void, g.applied[i]...)
		g.applied = slices.Delete(g.applied, i, i+1)
	}
	if line.Exclude {
		g.void = append(g.void, line)
		return
	}
	g.applied = append(g.applied, []Line{line})
}
