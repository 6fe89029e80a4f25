package output

import (
	"strconv"
	"unicode/utf8"

	"github.com/finwait/finwait/tracer"
)

// connTable writes two lines for each connection: when it ended, its addresses,
// how long it was, what it carried and whose it was; and why it ended and its
// walk, which goes on in a third line where it is too long for one.
type connTable struct {
	tableEncoder
	stops connStops
}

// connStops are the columns where cells begin.
type connStops struct {
	local, remote, lasted, sent, received, owner int
}

var (
	narrowConnStops = connStops{local: 9, remote: 31, lasted: 53, sent: 59, received: 65, owner: 71}
	wideConnStops   = connStops{local: 13, remote: 35, lasted: 57, sent: 63, received: 69, owner: 75}
)

// walkIndent is where the second line begins.
const walkIndent = 4

func newConnTable(opts Options) *connTable {
	t := &connTable{*newTable(opts), narrowConnStops}
	if opts.Width >= wideWidth {
		t.stops = wideConnStops
	}
	return t
}

func (t *connTable) AppendHeader(dst []byte) []byte {
	r := row{buf: dst}
	r.text("ENDED")
	r.to(t.stops.local)
	r.text("LOCAL")
	r.to(t.stops.remote)
	r.text("REMOTE")
	r.to(t.stops.lasted)
	r.text("LASTED")
	r.to(t.stops.sent)
	r.text(" SENT")
	r.to(t.stops.received)
	r.text(" RECV")
	r.to(t.stops.owner)
	r.text("OWNER")
	return append(r.buf, '\n')
}

func (t *connTable) AppendConn(dst []byte, c *tracer.Conn) []byte {
	r := row{buf: dst}
	r.advance(len(t.layout.time), c.End.In(t.loc).AppendFormat(r.buf, t.layout.time))
	r.to(t.stops.local)
	r.addrPort(c.Local)
	r.to(t.stops.remote)
	r.addrPort(c.Remote)
	if !c.Start.IsZero() {
		r.to(t.stops.lasted)
		r.dwell(c.End.Sub(c.Start))
	}
	if c.Counted {
		r.to(t.stops.sent)
		r.bytes(c.BytesSent)
		r.to(t.stops.received)
		r.bytes(c.BytesReceived)
	}
	t.connOwner(&r, c)
	r.buf = append(r.buf, '\n')
	return append(t.appendWalk(row{buf: r.buf}, c).buf, '\n')
}

func (t *connTable) connOwner(r *row, c *tracer.Conn) {
	var scratch [128]byte
	ev := tracer.Event{Owner: c.Owner}
	owner, commWidth := appendOwner(scratch[:0], &ev)
	if len(owner) == 0 {
		return
	}
	r.to(t.stops.owner)
	r.owner(owner, commWidth, max(t.room-r.col, minOwner))
}

// appendWalk appends the reason, the side, and the states with their dwell, on
// as many lines as it takes.
func (t *connTable) appendWalk(r row, c *tracer.Conn) row {
	r.to(walkIndent)
	r.text(c.Reason.String())
	if c.Side != tracer.SideUnknown {
		r.text(" (" + c.Side.String() + ")")
	}
	r.text(":")
	for _, v := range c.Walk() {
		var scratch [16]byte
		var dwell []byte
		if v.DwellKnown {
			dwell = AppendDuration(append(scratch[:0], ' '), v.Dwell)
		}
		name := v.State.String()
		if r.col+1+len(name)+utf8.RuneCount(dwell) > t.room {
			r = row{buf: append(r.buf, '\n')}
			r.to(2*walkIndent - 1)
		}
		r.text(" ")
		_, tint := tints(tracer.Transition{New: v.State})
		r.state(name, tint, t.color)
		r.advance(utf8.RuneCount(dwell), append(r.buf, dwell...))
	}
	if c.TimeWaitReason != tracer.ReasonUnknown && c.TimeWaitReason != tracer.ReasonExpired {
		r.text(" (" + c.TimeWaitReason.String() + ")")
	}
	return r
}

// bytes appends a number of bytes in five columns: 999, 1.2k, 34M, in powers of
// a thousand, cut off rather than rounded.
func (r *row) bytes(n uint64) {
	var scratch [16]byte
	text := appendBytes(scratch[:0], n)
	for range dwellWidth - len(text) {
		r.text(" ")
	}
	r.advance(len(text), append(r.buf, text...))
}

func appendBytes(dst []byte, n uint64) []byte {
	if n < 1000 {
		return strconv.AppendUint(dst, n, 10)
	}
	unit := uint64(1000)
	units := "kMGTPE"
	for ; n/unit >= 1000 && len(units) > 1; units = units[1:] {
		unit *= 1000
	}
	dst = strconv.AppendUint(dst, n/unit, 10)
	if n/unit < 10 {
		dst = append(dst, '.', '0'+byte(n%unit/(unit/10)))
	}
	return append(dst, units[0])
}
