package output

import (
	"strconv"

	"github.com/finwait/finwait/tracer"
)

// jsonSyntax has one object a line.
var jsonSyntax = syntax{open: "{", end: "}\n", column: jsonColumn}

func jsonColumn(f *field) column {
	c := column{before: newLabel(`"` + f.name + `":`), after: newLabel(","), append: f.append}
	switch f.kind {
	case word:
		c.before, c.after = newLabel(`"`+f.name+`":"`), newLabel(`",`)
	case text:
		c.append = escaped(f, appendJSONString)
	case list:
		c.append = func(dst []byte, r *record) []byte { return appendJSONWalk(dst, r.conn.Walk()) }
	}
	return c
}

// appendJSONWalk appends [{"state":"SYN_SENT","dwell_ns":95000}], and nothing for
// an empty walk.
func appendJSONWalk(dst []byte, walk []tracer.Visit) []byte {
	if len(walk) == 0 {
		return dst
	}
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
