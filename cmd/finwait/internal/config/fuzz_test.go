package config

import (
	"errors"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/spf13/pflag"
)

// loadText loads text as if it were the file.
func loadText(text string) (*pflag.FlagSet, *settings, error) {
	flags, s := newFlags()
	found, err := parse(flags, "finwait.yaml", []byte(text))
	if err != nil {
		return flags, s, err
	}
	var errs []error
	for i := range found {
		errs = append(errs, found[i].apply(flags))
	}
	return flags, s, errors.Join(errs...)
}

// FuzzFile reads anything. What is accepted means the same when it is written down
// again, and what is not is told with the file's name.
func FuzzFile(f *testing.F) {
	f.Add(everything)
	for _, m := range mistakes {
		if len(m.text) < 1000 {
			f.Add(m.text)
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		flags, s, err := loadText(text)
		if err != nil {
			for line := range strings.Lines(err.Error()) {
				if !strings.HasPrefix(line, "finwait.yaml:") {
					t.Fatalf("%q", err)
				}
			}
			return
		}
		example := Example(flags)
		_, again, err := loadText(example)
		if err != nil {
			t.Fatalf("%v:\n%s", err, example)
		}
		qt.Assert(t, qt.CmpEquals(again, s, byValue...))
	})
}

// FuzzEnvironment gives any text to a variable. It is an error or the value.
func FuzzEnvironment(f *testing.F) {
	f.Add("LOG", "a")
	f.Add("STATE", "a,\"b,c\"")
	f.Add("IPV4", "")
	f.Fuzz(func(t *testing.T, name, value string) {
		flags, s := newFlags()
		if strings.Contains(name, "=") || name == "CONFIG" || strings.HasPrefix(name, "TEST_") {
			return
		}
		err := Load(flags, []string{"FINWAIT_" + name + "=" + value})
		changed := 0
		flags.VisitAll(func(flag *pflag.Flag) {
			if flag.Changed {
				changed++
			}
		})
		if (err == nil) != (changed == 1) {
			t.Fatalf("%d flags have changed: %v", changed, err)
		}
		if name == "LOG" && err == nil && s.log != value {
			t.Fatalf("log is %q", s.log)
		}
	})
}
