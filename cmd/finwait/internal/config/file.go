package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v4"
)

const (
	// maxFile is more than a file of all settings can reasonably have.
	maxFile = 1 << 20
	// maxMistakes is how many of a file are told.
	maxMistakes = 10
)

// file returns the settings in the file that the flags name, none if they do not.
func file(flags *pflag.FlagSet) []setting {
	flag := flags.Lookup(FileFlag)
	if flag == nil || flag.Value.String() == "" {
		return nil
	}
	path := flag.Value.String()
	text, err := readFile(path)
	if err != nil {
		return []setting{{err: fmt.Errorf("configuration: %w", err)}}
	}
	settings, err := parse(flags, path, text)
	if err != nil {
		return []setting{{err: err}}
	}
	return settings
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("%s is larger than 1 MiB", path)
	}
	return text, err
}

// parse returns the settings in text, which is the file at path. The error is of a
// file that has none.
func parse(flags *pflag.FlagSet, path string, text []byte) ([]setting, error) {
	p := parser{flags: flags, path: path}
	if line := badLine(text); line > 0 {
		return nil, p.errorf(line, "is not text in UTF-8")
	}
	root, err := p.document(text)
	if root == nil || err != nil {
		return nil, err
	}
	if root.Kind != yaml.MappingNode {
		return nil, p.errorf(root.Line, "want lines such as log-max-size: 100MiB, not %s", kindWord(root))
	}
	if err := p.plain(root); err != nil {
		return nil, err
	}
	lines := map[string]int{} // by key
	mistakes := 0
	for i := 0; i+1 < len(root.Content); i += 2 {
		key := root.Content[i]
		if mistakes == maxMistakes {
			p.settings = append(p.settings, setting{err: p.errorf(key.Line, "and what follows has not been looked at")})
			break
		}
		s := p.setting(key, root.Content[i+1], lines)
		if s.err != nil {
			mistakes++
		}
		p.settings = append(p.settings, s)
	}
	return p.settings, nil
}

// badLine returns the number of the first line that is not text, 0 if all are.
// YAML's own message does not say which.
func badLine(text []byte) int {
	n := 1
	for line := range bytes.Lines(text) {
		if !utf8.Valid(line) || bytes.IndexByte(line, 0) >= 0 {
			return n
		}
		n++
	}
	return 0
}

// parser reads one file.
type parser struct {
	flags    *pflag.FlagSet
	path     string
	settings []setting
}

func (p *parser) errorf(line int, format string, args ...any) error {
	return fmt.Errorf("%s:%d: %w", p.path, line, fmt.Errorf(format, args...))
}

// document returns what is in the only document of the file, nil if it has none.
func (p *parser) document(text []byte) (*yaml.Node, error) {
	loader, err := yaml.NewLoader(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.path, err)
	}
	var first, second yaml.Node
	if err := loader.Load(&first); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, p.syntax(err)
	}
	switch err := loader.Load(&second); {
	case err == nil:
		return nil, p.errorf(second.Line, "a second document begins; put all in one")
	case !errors.Is(err, io.EOF):
		return nil, p.syntax(err)
	case len(first.Content) == 0, first.Content[0].ShortTag() == "!!null":
		return nil, nil
	}
	return first.Content[0], nil
}

// syntax says where YAML does not understand the file.
func (p *parser) syntax(err error) error {
	var at *yaml.LoadError
	if !errors.As(err, &at) || at.Mark.Line == 0 {
		return fmt.Errorf("%s: %w", p.path, err)
	}
	hint := ""
	if strings.HasPrefix(at.Message, "block sequence entries are not allowed") {
		hint = ` (a value that is or begins with a dash needs quotes: "-")`
	}
	return p.errorf(at.Mark.Line, "not YAML: %s%s", at.Message, hint)
}

// setting reads that of a key.
func (p *parser) setting(key, value *yaml.Node, lines map[string]int) setting {
	fail := func(format string, args ...any) setting { return setting{err: p.errorf(key.Line, format, args...)} }
	if key.Kind != yaml.ScalarNode {
		return fail("want the name of a setting, not %s", kindWord(key))
	}
	if before, twice := lines[key.Value]; twice {
		return fail("%q stands in line %d already", key.Value, before)
	}
	lines[key.Value] = key.Line
	flag, err := p.flag(key.Value)
	if err != nil {
		return fail("%w", err)
	}
	s := setting{flag: flag, where: fmt.Sprintf("%s:%d", p.path, key.Line), key: flag.Name, list: value.Kind == yaml.SequenceNode}
	if err := s.read(value); err != nil {
		s.err = s.errorf("%w", err)
	}
	return s
}

func (p *parser) flag(name string) (*pflag.Flag, error) {
	if name == FileFlag {
		return nil, errors.New("a configuration file does not name another")
	}
	return settable(p.flags, name, name, func(near string) string { return near })
}

// read takes the value.
func (s *setting) read(value *yaml.Node) error {
	elements := []*yaml.Node{value}
	if s.list {
		elements = value.Content
	}
	for _, element := range elements {
		switch {
		case element.Kind != yaml.ScalarNode && s.list:
			return fmt.Errorf("want a list of values, and %s is in it", kindWord(element))
		case element.Kind != yaml.ScalarNode:
			return fmt.Errorf("want a value, not %s; all settings are at the top", kindWord(element))
		case element.ShortTag() == "!!null":
			return errors.New("has no value; give it one, or leave the line out")
		}
		s.values = append(s.values, element.Value)
	}
	return nil
}

// plain refuses what makes a file mean something else than it says.
func (p *parser) plain(node *yaml.Node) error {
	switch {
	case node.Anchor != "":
		return p.errorf(node.Line, "anchors (&%s) are not used here", node.Anchor)
	case node.Kind == yaml.AliasNode:
		return p.errorf(node.Line, "aliases (*%s) are not used here", node.Value)
	case node.Style&yaml.TaggedStyle != 0:
		return p.errorf(node.Line, "tags (%s) are not used here", node.Tag)
	}
	for _, child := range node.Content {
		if err := p.plain(child); err != nil {
			return err
		}
	}
	return nil
}

func kindWord(node *yaml.Node) string {
	switch node.Kind {
	case yaml.MappingNode:
		return "a map"
	case yaml.SequenceNode:
		return "a list"
	}
	return "a single value"
}
