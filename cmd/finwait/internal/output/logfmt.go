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
		dst = appendLogfmtValue(dst, f, ev)
	}
	return append(dst, '\n')
}

func appendLogfmtValue(dst []byte, f field, ev *tracer.Event) []byte {
	if f == fieldComm && !isBare(ev.Owner.Comm()) {
		return appendJSONString(dst, ev.Owner.Comm())
	}
	return f.append(dst, ev)
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
