package output

import (
	"bytes"
	"unicode/utf8"
)

// csvSyntax is RFC 4180 with one difference: lines end with a newline alone, as
// programs on this system expect. A field that is not known is empty.
var csvSyntax = syntax{end: "\n", named: true, column: csvColumn}

func csvColumn(f *field) column {
	c := column{after: newLabel(","), absent: ",", append: f.append}
	if f.kind == text {
		c.append = escaped(f, appendCSVText)
	}
	return c
}

// appendCSVText appends one cell of text that somebody else chose: escaped by
// Quote, with an apostrophe before what a spreadsheet takes for a formula, and
// in quotes where the cell needs them.
func appendCSVText(dst, s []byte) []byte {
	if !bytes.ContainsAny(s, `,"`) {
		return appendCSVCell(dst, s)
	}
	dst = append(dst, '"')
	start := len(dst)
	dst = appendCSVCell(dst, s)
	return append(doubleQuotes(dst, start), '"')
}

func appendCSVCell(dst, s []byte) []byte {
	if isFormula(s) {
		dst = append(dst, '\'')
	}
	return Quote(dst, s)
}

// isFormula says whether a spreadsheet would run s: it begins with one of the
// characters that start a formula, narrow or full-width, or with a tab or a
// carriage return that some programs skip before they look.
func isFormula(s []byte) bool {
	first, _ := utf8.DecodeRune(s)
	switch first {
	case '=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠':
		return true
	}
	return false
}

// doubleQuotes doubles each quote in dst[start:], in place.
func doubleQuotes(dst []byte, start int) []byte {
	n := bytes.Count(dst[start:], []byte{'"'})
	read := len(dst) - 1
	for range n {
		dst = append(dst, 0)
	}
	for write := len(dst) - 1; write > read; read-- {
		dst[write] = dst[read]
		write--
		if dst[read] == '"' {
			dst[write] = '"'
			write--
		}
	}
	return dst
}
