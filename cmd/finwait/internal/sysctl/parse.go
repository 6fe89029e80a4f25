package sysctl

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"
)

// maxProblems is how many lines of a file are told as problems one by one.
const maxProblems = 20

// whitespace is what systemd and sysctl(8) take away around keys and values.
const whitespace = " \t\n\r"

var (
	errNotAssignment = errors.New("neither a comment nor an assignment")
	errKey           = errors.New("not the name of a sysctl")
	errGlob          = errors.New("not a pattern of glob(7)")
	errLineEnd       = errors.New("a NUL or a carriage return inside a line, which ends it for systemd and not for others")
)

// parse returns the lines of a file, and those that are none.
func parse(file string, text []byte) (lines []Line, problems []Problem) {
	number, more := 0, 0
	for raw := range strings.Lines(string(text)) {
		number++
		line, ok, err := parseLine(raw)
		switch {
		case err != nil && len(problems) == maxProblems:
			more++
		case err != nil:
			problems = append(problems, Problem{File: file, Number: number, Text: cut(raw), Err: err})
		case ok:
			line.File, line.Number = file, number
			lines = append(lines, line)
		}
	}
	if more > 0 {
		problems = append(problems, Problem{File: file, Err: fmt.Errorf("%d more lines that cannot be understood", more)})
	}
	return lines, problems
}

// cut returns what a problem shows of a text.
func cut(text string) string {
	text = strings.Trim(text, whitespace)
	return text[:min(len(text), MaxText)]
}

// parseLine reads one line of a file as sysctl.d(5) has it. It is none if ok is false.
func parseLine(text string) (line Line, ok bool, err error) {
	text = strings.Trim(text, whitespace)
	if strings.ContainsAny(text, "\x00\r") {
		return Line{}, false, errLineEnd
	}
	if text == "" || text[0] == '#' || text[0] == ';' {
		return Line{}, false, nil
	}
	text, dash := strings.CutPrefix(text, "-")
	name, value, assigns := strings.Cut(text, "=")
	if !assigns && !dash {
		return Line{}, false, errNotAssignment
	}
	key, err := canonical(strings.Trim(name, whitespace))
	if err != nil {
		return Line{}, false, err
	}
	return Line{
		Key:           key,
		Value:         strings.Trim(value, whitespace),
		IgnoreFailure: assigns && dash,
		Exclude:       !assigns,
	}, true, nil
}

// swap makes a key of a path under /proc/sys, and a path of a key.
var swap = strings.NewReplacer(".", "/", "/", ".")

// canonical returns the one key of all the ways in which its name can be written: "If
// the first separator is a slash, remaining slashes and dots are left intact. If the
// first separator is a dot, dots and slashes are interchanged" (sysctl.d(5)). Slashes
// too many do not count, as for systemd (path_simplify).
//
// What no sysctl can have in its name is an error: it is a line that is mistyped, and
// to systemd a sysctl that the kernel lacks, which it passes over in silence.
func canonical(name string) (string, error) {
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		name = swap.Replace(name)
	}
	parts := slices.DeleteFunc(strings.Split(name, "/"), func(part string) bool { return part == "" || part == "." })
	if len(parts) == 0 || slices.Contains(parts, "..") {
		return "", errKey
	}
	// Those below /proc/sys itself are words: kernel, net, vm. Others have names of
	// interfaces in them, which have no spaces (dev_valid_name).
	if strings.Contains(parts[0], ".") || strings.ContainsAny(parts[0][:1], "-#;") {
		return "", errKey
	}
	key := swap.Replace(strings.Join(parts, "/"))
	if strings.ContainsFunc(key, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return "", errKey
	}
	if isGlob(key) && slices.ContainsFunc(parts, badPattern) {
		return "", errGlob
	}
	return key, nil
}

// isGlob reports whether the key stands for others: systemd's string_is_glob.
func isGlob(key string) bool { return strings.ContainsAny(key, "*?[") }

// goPattern is a pattern of glob(7) for path.Match, which negates with a ^ alone.
func goPattern(part string) string { return strings.ReplaceAll(part, "[!", "[^") }

// badPattern reports whether path.Match would not understand the pattern, or would
// take a class of characters for something else.
func badPattern(part string) bool {
	if strings.Contains(part, "[:") || strings.Contains(part, "[=") || strings.Contains(part, "[.") {
		return true
	}
	_, err := path.Match(goPattern(part), "")
	return err != nil
}

// matches reports whether a glob stands for a key. As in glob(3) no wildcard
// stands for a separator.
func matches(pattern, key string) bool {
	return slices.EqualFunc(strings.Split(swap.Replace(pattern), "/"), strings.Split(swap.Replace(key), "/"),
		func(pattern, part string) bool {
			ok, _ := path.Match(goPattern(pattern), part)
			return ok
		})
}
