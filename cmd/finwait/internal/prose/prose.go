// Package prose writes text for people: lines that fit on a terminal, and the numbers
// in them.
package prose

import (
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Width is the most columns of a line: the last one of a terminal stays free.
const Width = 79

// Wrap appends text to dst, broken between words into lines of at most Width columns,
// and a line end. The line that dst ends with has that column already, the next ones are
// indented. A word that is longer than a line stands alone. Any whitespace of text is
// one space.
func Wrap(dst []byte, column, indent int, text string) []byte {
	first := true
	for word := range strings.FieldsSeq(text) {
		width := utf8.RuneCountInString(word)
		switch {
		case first:
		case column+1+width > Width:
			dst = append(dst, '\n')
			dst = append(dst, strings.Repeat(" ", indent)...)
			column = indent
		default:
			dst = append(dst, ' ')
			column++
		}
		dst = append(dst, word...)
		column += width
		first = false
	}
	return append(dst, '\n')
}

// Hang appends head, and text after it, whose other lines are indented as far.
func Hang(dst []byte, head, text string) []byte {
	column := utf8.RuneCountInString(head)
	return Wrap(append(dst, head...), column, column, text)
}

// Line returns text as one line, with single spaces.
func Line(text string) string { return strings.Join(strings.Fields(text), " ") }

// Lines returns each of them as one line.
func Lines(texts []string) []string {
	all := make([]string, 0, len(texts))
	for _, text := range texts {
		all = append(all, Line(text))
	}
	return all
}

// Join returns the items as a sentence has them: "a", "a or b", "a, b or c".
func Join(items []string, last string) string {
	if len(items) < 2 {
		return strings.Join(items, "")
	}
	end := len(items) - 1
	return strings.Join(items[:end], ", ") + " " + last + " " + items[end]
}

// Number returns n as people read it: 131,072.
func Number(n uint64) string {
	text := strconv.FormatUint(n, 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// Rate returns a number with no more digits than matter: 0.3, 12, 10,013.
func Rate(n float64) string {
	if n < 9.95 { // which has two digits when it is rounded
		return strconv.FormatFloat(n, 'f', 1, 64)
	}
	return Number(uint64(n + 0.5))
}

// Duration returns a time with no more digits than matter: 2.5 s, 17 min, 5 days.
func Duration(d time.Duration) string {
	n, unit := d.Seconds(), "s"
	for _, next := range []struct {
		size float64
		unit string
	}{{60, "min"}, {60, "h"}, {24, "days"}} {
		if n < 2*next.size {
			break
		}
		n, unit = n/next.size, next.unit
	}
	return strings.TrimSuffix(Rate(n), ".0") + " " + unit
}

// Bytes returns a size as people read it: 250 B, 33 MB.
func Bytes(n uint64) string {
	if n < 1000 {
		return strconv.FormatUint(n, 10) + " B"
	}
	size, unit := float64(n), ""
	for _, next := range []string{"kB", "MB", "GB", "TB"} {
		if size < 999.5 {
			break
		}
		size, unit = size/1000, next
	}
	return Rate(size) + " " + unit
}

// Count returns the number with its noun: 1 file, 1,013 files.
func Count(n uint64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return Number(n) + " " + many
}
