package config

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

const exampleHead = `# Settings of finwait serve. Each is a flag of that name, and an environment
# variable: --log-max-size is FINWAIT_LOG_MAX_SIZE. The command line counts first,
# then the environment, then this file. What is commented out is the default.
`

// Example returns a file with all settings and what they are for: those that are
// set as they are, the others commented out with their defaults.
func Example(flags *pflag.FlagSet) string {
	var b strings.Builder
	b.WriteString(exampleHead)
	flags.VisitAll(func(flag *pflag.Flag) {
		if flag.Hidden || flag.Deprecated != "" || flag.Name == FileFlag || onlyOnCommandLine(flag) {
			return
		}
		_, usage := pflag.UnquoteUsage(flag)
		b.WriteString("\n" + comment(usage))
		if !flag.Changed {
			b.WriteString("#")
		}
		fmt.Fprintf(&b, "%s: %s\n", flag.Name, valueOf(flag))
	})
	return b.String()
}

// comment breaks text into lines of a comment.
func comment(text string) string {
	const width = 80
	var b strings.Builder
	line := "#"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > width {
			b.WriteString(line + "\n")
			line = "#"
		}
		line += " " + word
	}
	return b.String() + line + "\n"
}

// valueOf writes the flag's value as YAML has it.
func valueOf(flag *pflag.Flag) string {
	slice, isSlice := flag.Value.(pflag.SliceValue)
	switch {
	case isSlice && flag.Changed:
		return list(slice.GetSlice())
	case isSlice:
		return list(defaultList(flag))
	case flag.Changed:
		return scalar(flag.Value.Type(), flag.Value.String())
	}
	return scalar(flag.Value.Type(), flag.DefValue)
}

// defaultList reads how pflag writes down a list: [a,b].
func defaultList(flag *pflag.Flag) []string {
	inner := strings.TrimSuffix(strings.TrimPrefix(flag.DefValue, "["), "]")
	if inner == "" {
		return nil
	}
	values, err := csv.NewReader(strings.NewReader(inner)).Read()
	if err != nil {
		return []string{inner}
	}
	return values
}

func list(values []string) string {
	words := make([]string, len(values))
	for i, value := range values {
		words[i] = scalar("string", value)
	}
	return "[" + strings.Join(words, ", ") + "]"
}

// bare are the types of flags whose values need no quotes.
var bare = []string{"bool", "duration", "float64", "int", "int64", "size", "uint", "uint64"}

// scalar writes a value of a flag of that type. Text is quoted where YAML could
// take it for something else.
func scalar(kind, value string) string {
	isNull := slices.Contains([]string{"null", "Null", "NULL"}, value)
	if slices.Contains(bare, kind) || plainWord.MatchString(value) && !isNull {
		return value
	}
	quoted, err := json.Marshal(value) // which YAML reads too
	if err != nil {                    // not of a string
		panic(err)
	}
	return string(quoted)
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9/][A-Za-z0-9/_.-]*$`)
