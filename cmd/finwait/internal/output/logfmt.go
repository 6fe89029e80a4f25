package output

import "github.com/finwait/finwait/tracer"

// logfmtEncoder writes key=value pairs, one event a line. A value that holds
// anything else than plain letters is quoted, with the escapes of JSON.
type logfmtEncoder struct{ cgroups cgroupLookup }

func (logfmtEncoder) AppendHeader(dst []byte) []byte { return dst }

func (e logfmtEncoder) AppendEvent(dst []byte, ev *tracer.Event) []byte {
	r := e.cgroups.record(ev)
	return appendLogfmt(dst, eventFields, &r)
}

func (e logfmtEncoder) AppendConn(dst []byte, c *tracer.Conn) []byte {
	var ev tracer.Event
	r := e.cgroups.conn(c, &ev)
	return appendLogfmt(dst, connFields, &r)
}

func appendLogfmt(dst []byte, fields []field, r *record) []byte {
	start := len(dst)
	for _, f := range fields {
		if !f.known(r) {
			continue
		}
		if len(dst) > start {
			dst = append(dst, ' ')
		}
		dst = append(dst, fieldNames[f]...)
		dst = append(dst, '=')
		dst = appendLogfmtValue(dst, f, r)
	}
	return append(dst, '\n')
}

func appendLogfmtValue(dst []byte, f field, r *record) []byte {
	if !f.text() {
		return f.append(dst, r)
	}
	var scratch [textRoom]byte
	text := f.append(scratch[:0], r)
	if isBare(text) {
		return append(dst, text...)
	}
	return appendJSONString(dst, text)
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
