package output

import (
	"unicode"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// Quote appends s to dst in a form that is safe on a terminal. Printable text
// stays as it is. A control character and a byte that is not UTF-8 become
// \xNN; a backslash becomes two; any other character that does not print,
// among them the C1 controls and the ones that turn the direction of writing,
// becomes \u{N}. The result is one line and can be turned back.
func Quote(dst, s []byte) []byte {
	for len(s) > 0 {
		if n := plain(s); n > 0 {
			dst, s = append(dst, s[:n]...), s[n:]
			continue
		}
		r, size := utf8.DecodeRune(s)
		switch {
		case r == '\\':
			dst = append(dst, '\\', '\\')
		case r < utf8.RuneSelf && !unicode.IsPrint(r), r == utf8.RuneError && size == 1:
			dst = append(dst, '\\', 'x', hexDigits[s[0]>>4], hexDigits[s[0]&15])
		case !unicode.IsPrint(r):
			dst = append(dst, '\\', 'u', '{')
			dst = appendHex(dst, r, 1)
			dst = append(dst, '}')
		default:
			dst = append(dst, s[:size]...)
		}
		s = s[size:]
	}
	return dst
}

// plain returns how many bytes s begins with that neither Quote nor JSON
// escapes: printable ASCII, which most text is and which is quickest in one
// piece.
func plain(s []byte) int {
	for i, c := range s {
		if c < ' ' || c > '~' || c == '\\' || c == '"' || c == '<' || c == '>' || c == '&' {
			return i
		}
	}
	return len(s)
}

// appendHex appends r in hexadecimal with at least that many digits.
func appendHex(dst []byte, r rune, digits int) []byte {
	for shift := 28; shift >= 0; shift -= 4 {
		if r>>shift != 0 || shift < 4*digits {
			dst = append(dst, hexDigits[r>>shift&15])
		}
	}
	return dst
}

// appendJSONString appends s as a JSON string. Bytes that are not UTF-8 become
// U+FFFD. Like encoding/json it escapes <, > and &, so that a record can stand
// inside a web page, and beyond that every character that does not print, so
// that it can stand on a terminal.
func appendJSONString(dst, s []byte) []byte {
	dst = append(dst, '"')
	for len(s) > 0 {
		if n := plain(s); n > 0 {
			dst, s = append(dst, s[:n]...), s[n:]
			continue
		}
		r, size := utf8.DecodeRune(s)
		switch {
		case r == '"' || r == '\\':
			dst = append(dst, '\\', byte(r))
		case r == utf8.RuneError, r == '<', r == '>', r == '&', !unicode.IsPrint(r):
			dst = appendJSONEscape(dst, r)
		default:
			dst = append(dst, s[:size]...)
		}
		s = s[size:]
	}
	return append(dst, '"')
}

// appendJSONEscape appends r as \uNNNN, or as two of them outside the basic
// plane.
func appendJSONEscape(dst []byte, r rune) []byte {
	if r > 0xffff {
		r -= 0x10000
		dst = appendJSONEscape(dst, 0xd800+r>>10)
		r = 0xdc00 + r&0x3ff
	}
	dst = append(dst, '\\', 'u')
	return appendHex(dst, r, 4)
}
