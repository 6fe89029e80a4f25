package sysctl

import (
	"errors"
	"os"
	"strings"
)

// Cmdline is the file of lines on the kernel's command line, such as
// sysctl.net.ipv4.tcp_tw_reuse=1. The kernel sets those before anything else runs
// (do_sysctl_args), so all files override them.
const Cmdline = "/proc/cmdline"

var errNoValue = errors.New("has no value, so the kernel does not set it")

func (r *reader) readCmdline() {
	text, err := os.ReadFile(Cmdline)
	if err != nil {
		r.problem(Cmdline, err)
		return
	}
	lines, problems := parseCmdline(string(text))
	r.files.Lines = append(r.files.Lines, lines...)
	r.files.Problems = append(r.files.Problems, problems...)
}

// parseCmdline returns what a command line sets. "Both '.' and '/' are recognized as
// separators" (the kernel's admin-guide/kernel-parameters), and it has no globs.
func parseCmdline(text string) (lines []Line, problems []Problem) {
	for _, arg := range arguments(text) {
		name, value, _ := strings.Cut(arg, "=")
		rest, ok := strings.CutPrefix(name, "sysctl")
		if !ok || rest == "" || rest[0] != '.' && rest[0] != '/' {
			continue
		}
		key, err := canonical(strings.ReplaceAll(rest, ".", "/"))
		if err == nil && isGlob(key) {
			err = errKey
		}
		if err == nil && value == "" {
			err = errNoValue
		}
		if err != nil {
			problems = append(problems, Problem{File: Cmdline, Text: cut(arg), Err: err})
			continue
		}
		lines = append(lines, Line{Key: key, Value: strings.Trim(value, whitespace), File: Cmdline})
	}
	return lines, problems
}

// arguments splits a command line as the kernel does (next_arg): whitespace in
// quotes is the argument's, and what comes after "--" is init's.
func arguments(text string) (args []string) {
	start, quoted := 0, false
	for i := 0; i <= len(text); i++ {
		switch {
		case i < len(text) && text[i] == '"':
			quoted = !quoted
		case i == len(text) || !quoted && strings.IndexByte(" \t\n\v\f\r", text[i]) >= 0:
			arg := text[start:i]
			start = i + 1
			if arg == "--" {
				return args
			}
			if arg != "" {
				args = append(args, unquote(arg))
			}
		}
	}
	return args
}

// unquote takes away the quotes around an argument and around its value.
func unquote(arg string) string {
	if rest, ok := strings.CutPrefix(arg, `"`); ok {
		arg = strings.TrimSuffix(rest, `"`)
	}
	name, value, ok := strings.Cut(arg, "=")
	if rest, quoted := strings.CutPrefix(value, `"`); ok && quoted {
		return name + "=" + strings.TrimSuffix(rest, `"`)
	}
	return arg
}
