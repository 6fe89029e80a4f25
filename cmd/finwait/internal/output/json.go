package output

import "github.com/finwait/finwait/tracer"

// jsonEncoder writes one object a line.
type jsonEncoder struct{}

func (jsonEncoder) AppendHeader(dst []byte) []byte { return dst }

func (jsonEncoder) AppendEvent(dst []byte, ev *tracer.Event) []byte {
	sep := byte('{')
	for f := range numFields {
		if !f.known(ev) {
			continue
		}
		dst = append(dst, sep, '"')
		dst = append(dst, fieldNames[f]...)
		dst = append(dst, '"', ':')
		dst = appendJSONValue(dst, f, ev)
		sep = ','
	}
	return append(dst, '}', '\n')
}

func appendJSONValue(dst []byte, f field, ev *tracer.Event) []byte {
	if f == fieldComm {
		return appendJSONString(dst, ev.Owner.Comm())
	}
	if f.number() {
		return f.append(dst, ev)
	}
	dst = append(dst, '"')
	dst = f.append(dst, ev)
	return append(dst, '"')
}
