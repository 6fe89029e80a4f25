package output

import "github.com/finwait/finwait/tracer"

// logfmtEncoder writes key=value pairs, one event a line. A value that holds
// anything else than plain letters is quoted, with the escapes of JSON.
type logfmtEncoder struct{}

func (logfmtEncoder) AppendHeader(dst []byte) []byte { return dst }

func (logfmtEncoder) AppendEvent(dst []byte, ev *tracer.Event) []byte {
	start := len(dst)
	for f := range numFields {
		if !f.known(ev) {
			continue
		}
		if len(dst) > start {
			dst = append(dst, ' ')
		}
		dst = append(dst, fieldNames[f]...)
		dst = append(dst, '=')
		if f == fieldComm && !isBare(ev.Owner.Comm()) {
			dst = appendJSONString(dst, ev.Owner.Comm())
		} else {
			dst = f.append(dst, ev)
		}
	}
	return append(dst, '\n')
}

// isBare says whether s is a logfmt value without quotes.
func isBare(s []byte) bool {
	for _, c := range s {
		if c <= ' ' || c == '=' || c == '"' || c == '\\' || c >= 0x7f {
			return false
		}
	}
	return len(s) > 0
}
