package output

import "github.com/finwait/finwait/tracer"

// jsonEncoder writes one object a line.
type jsonEncoder struct{ cgroups cgroupLookup }

func (jsonEncoder) AppendHeader(dst []byte) []byte { return dst }

func (e jsonEncoder) AppendEvent(dst []byte, ev *tracer.Event) []byte {
	r := e.cgroups.record(ev)
	sep := byte('{')
	for f := range numFields {
		if !f.known(&r) {
			continue
		}
		dst = append(dst, sep, '"')
		dst = append(dst, fieldNames[f]...)
		dst = append(dst, '"', ':')
		dst = appendJSONValue(dst, f, &r)
		sep = ','
	}
	return append(dst, '}', '\n')
}

func appendJSONValue(dst []byte, f field, r *record) []byte {
	if f.text() {
		var scratch [textRoom]byte
		return appendJSONString(dst, f.append(scratch[:0], r))
	}
	if f.number() {
		return f.append(dst, r)
	}
	dst = append(dst, '"')
	dst = f.append(dst, r)
	return append(dst, '"')
}
