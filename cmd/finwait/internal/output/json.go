package output

import (
	"strconv"

	"github.com/finwait/finwait/tracer"
)

// jsonEncoder writes one object a line.
type jsonEncoder struct{ cgroups cgroupLookup }

func (jsonEncoder) AppendHeader(dst []byte) []byte { return dst }

func (e jsonEncoder) AppendEvent(dst []byte, ev *tracer.Event) []byte {
	r := e.cgroups.record(ev)
	return appendJSON(dst, eventFields, &r)
}

func (e jsonEncoder) AppendConn(dst []byte, c *tracer.Conn) []byte {
	var ev tracer.Event
	r := e.cgroups.conn(c, &ev)
	return appendJSON(dst, connFields, &r)
}

func appendJSON(dst []byte, fields []field, r *record) []byte {
	sep := byte('{')
	for _, f := range fields {
		if !f.known(r) {
			continue
		}
		dst = append(dst, sep, '"')
		dst = append(dst, fieldNames[f]...)
		dst = append(dst, '"', ':')
		dst = appendJSONValue(dst, f, r)
		sep = ','
	}
	return append(dst, '}', '\n')
}

func appendJSONValue(dst []byte, f field, r *record) []byte {
	if f.text() {
		var scratch [textRoom]byte
		return appendJSONString(dst, f.append(scratch[:0], r))
	}
	if f == fieldWalk {
		return appendJSONWalk(dst, r.conn.Walk())
	}
	if f.number() {
		return f.append(dst, r)
	}
	dst = append(dst, '"')
	dst = f.append(dst, r)
	return append(dst, '"')
}

// appendJSONWalk appends [{"state":"SYN_SENT","dwell_ns":95000}].
func appendJSONWalk(dst []byte, walk []tracer.Visit) []byte {
	sep := byte('[')
	for _, v := range walk {
		dst = append(dst, sep)
		dst = append(append(append(dst, `{"state":"`...), v.State.String()...), '"')
		if v.DwellKnown {
			dst = strconv.AppendInt(append(dst, `,"dwell_ns":`...), v.Dwell.Nanoseconds(), 10)
		}
		dst = append(dst, '}')
		sep = ','
	}
	return append(dst, ']')
}
