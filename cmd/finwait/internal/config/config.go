// Package config sets the flags of a command from environment variables and from a
// YAML file. Both have the flags' names: --log-max-size is FINWAIT_LOG_MAX_SIZE and
// the key log-max-size. What is on the command line counts first, then the
// environment, then the file.
package config

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/spf13/pflag"
)

// FileFlag is the flag that names the file.
const FileFlag = "config"

// Annotations of flags.
const (
	commandLineOnly = "finwait_command_line_only"
	source          = "finwait_source"
)

// CommandLineOnly has the flags be for the command line alone.
func CommandLineOnly(flags *pflag.FlagSet, names ...string) {
	for _, name := range names {
		annotate(flags, name, commandLineOnly, "")
	}
}

func annotate(flags *pflag.FlagSet, name, key, value string) {
	if err := flags.SetAnnotation(name, key, []string{value}); err != nil { // the flag does not exist
		panic(err)
	}
}

// Load sets the flags that are not given on the command line from env, which is in
// the form of [os.Environ], and from the file that [FileFlag] names, if it is set.
// A flag that was set so has changed, as if it had been given.
//
// The error has a line for each mistake, which begins with the file and the line,
// or the variable.
func Load(flags *pflag.FlagSet, env []string) error {
	var errs []error
	for _, read := range []func(*pflag.FlagSet) []setting{
		func(flags *pflag.FlagSet) []setting { return environment(flags, env) },
		file,
	} {
		settings := read(flags)
		// What the command line has set, or the environment before, stays.
		settings = slices.DeleteFunc(settings, func(s setting) bool { return s.err == nil && s.flag.Changed })
		for i := range settings {
			errs = append(errs, settings[i].apply(flags))
		}
	}
	return errors.Join(errs...)
}

// Source returns where the flag's value is from: the file and the line, the
// environment variable, or the flag itself. It is "" for a default.
func Source(flags *pflag.FlagSet, name string) string {
	flag := flags.Lookup(name)
	switch {
	case flag == nil || !flag.Changed:
		return ""
	case len(flag.Annotations[source]) > 0:
		return flag.Annotations[source][0]
	}
	return "--" + name
}

// settable returns the flag that is set under that name from elsewhere than the
// command line, or an error that says why there is none. spell spells a flag's name
// as it is written there.
func settable(flags *pflag.FlagSet, name, written string, spell func(string) string) (*pflag.Flag, error) {
	flag := flags.Lookup(name)
	if flag == nil || flag.Name != name {
		if near := nearest(flags, name); near != "" {
			return nil, fmt.Errorf("no setting is called %q; did you mean %s?", written, spell(near))
		}
		return nil, fmt.Errorf("no setting is called %q", written)
	}
	if onlyOnCommandLine(flag) {
		return nil, fmt.Errorf("--%s is for the command line alone", name)
	}
	return flag, nil
}

func onlyOnCommandLine(flag *pflag.Flag) bool {
	_, only := flag.Annotations[commandLineOnly]
	return only || flag.Name == "help"
}

// A setting is a value for a flag, and where it is from; or why it is none.
type setting struct {
	err    error
	flag   *pflag.Flag
	where  string // file and line, or variable
	key    string // "" if where says it
	values []string
	list   bool
}

func (s *setting) errorf(format string, args ...any) error {
	where := s.where
	if s.key != "" {
		where += ": " + s.key
	}
	return fmt.Errorf(where+": "+format, args...)
}

// apply sets the flag.
func (s *setting) apply(flags *pflag.FlagSet) error {
	if s.err != nil {
		return s.err
	}
	for _, value := range s.values {
		if strings.ContainsFunc(value, unicode.IsControl) {
			return s.errorf("%q has a line break or another control character in it", value)
		}
	}
	if err := s.set(flags); err != nil {
		return s.errorf("%w", err)
	}
	annotate(flags, s.flag.Name, source, s.where)
	return nil
}

func (s *setting) set(flags *pflag.FlagSet) error {
	slice, isSlice := s.flag.Value.(pflag.SliceValue)
	switch {
	case !s.list:
		return set(flags, s.flag, s.values[0])
	case !isSlice:
		return errors.New("takes one value, not a list")
	case s.flag.Value.Type() == "stringSlice":
		line, err := commaSeparated(s.values)
		if err != nil {
			return err
		}
		return set(flags, s.flag, line)
	case len(s.values) == 0:
		s.flag.Changed = true
		return slice.Replace(nil)
	}
	for _, value := range s.values { // the first replaces the default
		if err := set(flags, s.flag, value); err != nil {
			return err
		}
	}
	return nil
}

// commaSeparated is how a list of strings is given to its flag.
func commaSeparated(values []string) (string, error) {
	if len(values) == 0 {
		return "", nil
	}
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	err := w.Write(values)
	w.Flush()
	return strings.TrimSuffix(b.String(), "\n"), errors.Join(err, w.Error())
}

// set sets the flag. The error says what the value should have been.
func set(flags *pflag.FlagSet, flag *pflag.Flag, value string) error {
	err := flags.Set(flag.Name, value)
	var invalid *pflag.InvalidValueError
	if err == nil || !errors.As(err, &invalid) {
		return err
	}
	if want := wanted[flag.Value.Type()]; want != "" {
		return fmt.Errorf("%q is not %s", value, want)
	}
	return invalid.Unwrap()
}

// wanted says what the values of flags are whose own message speaks of Go.
var wanted = map[string]string{
	"bool":        "true or false",
	"duration":    "a time such as 30s or 24h",
	"float64":     "a number",
	"int":         "a whole number",
	"int64":       "a whole number",
	"intSlice":    "a whole number, or several with commas between them",
	"stringSlice": `a list such as a,b or "a,b",c`,
	"uint":        "a whole number of 0 or more",
	"uint64":      "a whole number of 0 or more",
}
