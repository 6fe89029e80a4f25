package replay

import (
	"errors"
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// scanner reads JSON from a line.
type scanner struct {
	data    []byte
	pos     int
	scratch []byte // for text with escapes
}

// maxDepth is how deep values may be inside each other. Those of a record are two
// deep.
const maxDepth = 64

var (
	errEnds   = errors.New("the line ends too early")
	errDeep   = errors.New("values are inside each other too deep")
	errLetter = errors.New("a text with a control character or a wrong escape in it")
)

// space skips white space, and returns the byte after it, 0 at the end.
func (s *scanner) space() byte {
	for s.pos < len(s.data) {
		switch c := s.data[s.pos]; c {
		case ' ', '\t', '\n', '\r':
			s.pos++
		default:
			return c
		}
	}
	return 0
}

// expect skips white space and then c.
func (s *scanner) expect(c byte) error {
	if s.space() != c || s.pos == len(s.data) {
		return s.unexpected(string(rune(c)))
	}
	s.pos++
	return nil
}

// unexpected returns the error for something else than what is wanted here.
func (s *scanner) unexpected(wanted string) error {
	if s.pos >= len(s.data) {
		return errEnds
	}
	return fmt.Errorf("byte %d is no %s", s.pos+1, wanted)
}

// text reads a string. What is not UTF-8 in it becomes U+FFFD, as in
// encoding/json. The bytes are valid until the next text is read.
func (s *scanner) text() ([]byte, error) {
	if err := s.expect('"'); err != nil {
		return nil, err
	}
	start := s.pos
	for i, c := range s.data[start:] {
		if isPlain[c] {
			continue
		}
		s.pos = start + i
		if c == '"' {
			s.pos++
			return s.data[start : s.pos-1], nil
		}
		return s.unquote(start)
	}
	return nil, errEnds
}

// isPlain says which bytes stand for themselves within a text and are ASCII.
var isPlain = func() (plain [256]bool) {
	for c := ' '; c < utf8.RuneSelf; c++ {
		plain[c] = c != '"' && c != '\\'
	}
	return plain
}()

// unquote goes on with a text that begins at start and is no plain ASCII.
func (s *scanner) unquote(start int) ([]byte, error) {
	s.scratch = append(s.scratch[:0], s.data[start:s.pos]...)
	for s.pos < len(s.data) {
		switch c := s.data[s.pos]; {
		case c == '"':
			s.pos++
			return s.scratch, nil
		case c == '\\':
			if err := s.escape(); err != nil {
				return nil, err
			}
		case c < ' ':
			return nil, errLetter
		default:
			r, size := utf8.DecodeRune(s.data[s.pos:])
			s.scratch = utf8.AppendRune(s.scratch, r)
			s.pos += size
		}
	}
	return nil, errEnds
}

// escapes are the characters that a backslash and a letter stand for.
var escapes = [256]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

// escape appends the character that the escape here stands for.
func (s *scanner) escape() error {
	if s.pos+1 >= len(s.data) {
		return errEnds
	}
	letter := s.data[s.pos+1]
	if letter != 'u' {
		c := escapes[letter]
		if c == 0 {
			return errLetter
		}
		s.scratch = append(s.scratch, c)
		s.pos += 2
		return nil
	}
	r, ok := s.unicode()
	if !ok {
		return errLetter
	}
	s.pos += 6
	if utf16.IsSurrogate(r) {
		second, ok := s.unicode()
		if r = utf16.DecodeRune(r, second); ok && r != utf8.RuneError {
			s.pos += 6
		} else {
			r = utf8.RuneError
		}
	}
	s.scratch = utf8.AppendRune(s.scratch, r)
	return nil
}

// unicode returns the number of \uNNNN here.
func (s *scanner) unicode() (rune, bool) {
	if s.pos+6 > len(s.data) || s.data[s.pos] != '\\' || s.data[s.pos+1] != 'u' {
		return 0, false
	}
	var r rune
	for _, c := range s.data[s.pos+2 : s.pos+6] {
		switch {
		case c >= '0' && c <= '9':
			r = r<<4 | rune(c-'0')
		case c >= 'a' && c <= 'f':
			r = r<<4 | rune(c-'a'+10)
		case c >= 'A' && c <= 'F':
			r = r<<4 | rune(c-'A'+10)
		default:
			return 0, false
		}
	}
	return r, true
}

// number reads a number, as it is written.
func (s *scanner) number() ([]byte, error) {
	s.space()
	start := s.pos
	s.skip('-', '-')
	if s.skip('0', '0') == 0 && s.digits() == 0 {
		return nil, s.unexpected("number")
	}
	if s.skip('.', '.') > 0 && s.digits() == 0 {
		return nil, s.unexpected("number")
	}
	if s.skip('e', 'e')+s.skip('E', 'E') > 0 {
		if s.skip('+', '+') == 0 {
			s.skip('-', '-')
		}
		if s.digits() == 0 {
			return nil, s.unexpected("number")
		}
	}
	return s.data[start:s.pos], nil
}

// skip skips one byte, if it is from first to last, and returns how many it was.
func (s *scanner) skip(first, last byte) int {
	if s.pos < len(s.data) && s.data[s.pos] >= first && s.data[s.pos] <= last {
		s.pos++
		return 1
	}
	return 0
}

// digits skips digits, and returns how many there were.
func (s *scanner) digits() (n int) {
	for s.skip('0', '9') > 0 {
		n++
	}
	return n
}

// unsigned reads a whole number that is not negative and fits into so many bits.
func (s *scanner) unsigned(bits int) (uint64, error) {
	word, err := s.number()
	if err != nil {
		return 0, err
	}
	return parseUnsigned(word, bits)
}

// signed reads a whole number of 64 bits.
func (s *scanner) signed() (int64, error) {
	word, err := s.number()
	if err != nil {
		return 0, err
	}
	digits, negative := word, word[0] == '-'
	if negative {
		digits = word[1:]
	}
	n, err := parseUnsigned(digits, 64)
	switch {
	case err == nil && negative && n <= 1<<63:
		return -int64(n), nil
	case err == nil && !negative && n < 1<<63:
		return int64(n), nil
	}
	return 0, fmt.Errorf("%s is no whole number of 64 bits", word)
}

func parseUnsigned(word []byte, bits int) (n uint64, err error) {
	const most = 1 << 60 // ten times that is still a number of 64 bits
	for _, c := range word {
		if c < '0' || c > '9' || n >= most {
			// Seldom, so it may take its time.
			if n, err = strconv.ParseUint(string(word), 10, bits); err != nil {
				return 0, fmt.Errorf("%.30q is no whole number of %d bits", word, bits)
			}
			return n, nil
		}
		n = n*10 + uint64(c-'0')
	}
	if len(word) == 0 || bits < 64 && n>>bits != 0 {
		return 0, fmt.Errorf("%.30q is no whole number of %d bits", word, bits)
	}
	return n, nil
}

// null skips null, if that is what is here.
func (s *scanner) null() bool {
	return s.space() == 'n' && s.literal("null") == nil
}

func (s *scanner) literal(word string) error {
	if end := s.pos + len(word); end <= len(s.data) && string(s.data[s.pos:end]) == word {
		s.pos = end
		return nil
	}
	return s.unexpected("value")
}

// value skips a value of any kind.
func (s *scanner) value(depth int) error {
	if depth > maxDepth {
		return errDeep
	}
	switch s.space() {
	case '"':
		_, err := s.text()
		return err
	case '{':
		return s.object(func([]byte) error { return s.value(depth + 1) })
	case '[':
		return s.array(func() error { return s.value(depth + 1) })
	case 't':
		return s.literal("true")
	case 'f':
		return s.literal("false")
	case 'n':
		return s.literal("null")
	}
	_, err := s.number()
	return err
}

// object reads an object; member reads the value that has that name.
func (s *scanner) object(member func(name []byte) error) error {
	if err := s.expect('{'); err != nil {
		return err
	}
	if s.space() == '}' {
		s.pos++
		return nil
	}
	for {
		name, err := s.text()
		if err != nil {
			return err
		}
		if err := s.expect(':'); err != nil {
			return err
		}
		if err := member(name); err != nil {
			return err
		}
		if s.space() == '}' {
			s.pos++
			return nil
		}
		if err := s.expect(','); err != nil {
			return err
		}
	}
}

// array reads an array; element reads one of its values.
func (s *scanner) array(element func() error) error {
	if err := s.expect('['); err != nil {
		return err
	}
	if s.space() == ']' {
		s.pos++
		return nil
	}
	for {
		if err := element(); err != nil {
			return err
		}
		if s.space() == ']' {
			s.pos++
			return nil
		}
		if err := s.expect(','); err != nil {
			return err
		}
	}
}
