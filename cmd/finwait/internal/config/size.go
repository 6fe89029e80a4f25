package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes that is given as 100MiB, 1GB or 1048576. It is a
// [pflag.Value].
type Size int64

// sizeUnits are from the largest to the smallest.
var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"PiB", 1 << 50}, {"PB", 1e15}, {"TiB", 1 << 40}, {"TB", 1e12}, {"GiB", 1 << 30}, {"GB", 1e9},
	{"MiB", 1 << 20}, {"MB", 1e6}, {"KiB", 1 << 10}, {"kB", 1e3}, {"B", 1},
}

// Set implements pflag.Value.
func (s *Size) Set(text string) error {
	size, err := ParseSize(text)
	if err == nil {
		*s = size
	}
	return err
}

// String implements pflag.Value.
func (s *Size) String() string {
	n := int64(*s)
	for _, unit := range sizeUnits {
		if n != 0 && n%unit.bytes == 0 && unit.bytes > 1 {
			return strconv.FormatInt(n/unit.bytes, 10) + unit.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// Type implements pflag.Value.
func (s *Size) Type() string { return "size" }

// ParseSize returns the size that is written as a whole number and a unit. A number
// alone is bytes.
func ParseSize(text string) (Size, error) {
	digits := strings.TrimRight(text, "BKMGTPbikmgtp ")
	word := strings.TrimLeft(text[len(digits):], " ")
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil && !strings.Contains(err.Error(), strconv.ErrRange.Error()) {
		return 0, fmt.Errorf("%q is not a size such as 100MiB, 1GB or 1048576", text)
	}
	bytes := int64(0)
	for _, unit := range sizeUnits {
		if strings.EqualFold(word, unit.name) || word == "" && unit.bytes == 1 {
			bytes = unit.bytes
		}
	}
	switch {
	case bytes == 0 && len(word) == 1 && word != "i" && word != "I":
		word = strings.ToUpper(word)
		return 0, fmt.Errorf("%q can be read in two ways: say %s%siB (steps of 1024) or %s%sB (of 1000)", text, digits, word, digits, word)
	case bytes == 0:
		return 0, fmt.Errorf("%q is not a size such as 100MiB, 1GB or 1048576", text)
	case err != nil || n > uint64(math.MaxInt64/bytes):
		return 0, fmt.Errorf("%q is more than there can be", text)
	}
	return Size(int64(n) * bytes), nil
}
