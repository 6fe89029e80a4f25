package output

import "time"

// clock appends times, and remembers the second of the last.
type clock struct {
	second int64
	text   []byte // empty if there was none
}

// append appends t as appendTime does.
func (c *clock) append(dst []byte, t time.Time) []byte {
	if second := t.Unix(); second != c.second || len(c.text) == 0 {
		c.second, c.text = second, appendSecond(c.text[:0], t)
	}
	return appendNanoseconds(append(dst, c.text...), t.Nanosecond())
}

// appendTime appends t as RFC 3339 in UTC with all nine digits of the
// nanoseconds, so that times sort as text.
func appendTime(dst []byte, t time.Time) []byte {
	return appendNanoseconds(appendSecond(dst, t), t.Nanosecond())
}

// appendSecond appends t up to the point after the seconds. The time package is
// quickest with its own layout, which has none.
func appendSecond(dst []byte, t time.Time) []byte {
	dst = t.UTC().AppendFormat(dst, time.RFC3339)
	dst[len(dst)-1] = '.' // was Z
	return dst
}

// appendNanoseconds appends nine digits and the Z.
func appendNanoseconds(dst []byte, ns int) []byte {
	high, low := uint32(ns)/10_000, uint32(ns)%10_000
	b, c, d, e := &pairs[high/100%100], &pairs[high%100], &pairs[low/100], &pairs[low%100]
	return append(dst, '0'+byte(high/10_000), b[0], b[1], c[0], c[1], d[0], d[1], e[0], e[1], 'Z')
}

// pairs are the numbers below 100 in two digits.
var pairs = func() (p [100][2]byte) {
	for i := range p {
		p[i] = [2]byte{'0' + byte(i/10), '0' + byte(i%10)}
	}
	return p
}()
