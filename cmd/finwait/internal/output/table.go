package output

import (
	"math"
	"net/netip"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/finwait/finwait/tracer"
)

// defaultWidth is the narrowest terminal that rows are made for: those of IPv4
// fit in, with its last column free.
const defaultWidth = 80

// wideWidth is the terminal from which on no row of IPv4 is shortened.
const wideWidth = 112

// tableEncoder writes one line of columns per event.
//
// Columns have fixed stops. A cell that is too long for its column pushes the
// next ones to the right, only as far as it must. Two addresses, two states
// and the owner can be longer than 80 columns, so below wideWidth times go
// without milliseconds. A row that is still too long loses, in this order: the
// pid, the end of the process name (marked by an ellipsis), the full names of
// states. Addresses, ports and dwell are never cut. A row of IPv6 that cannot
// be made to fit is not cut at all.
type tableEncoder struct {
	color  bool
	room   int // columns that a row may take
	loc    *time.Location
	layout *tableLayout
}

// tableLayout holds the stops: the column where each cell begins.
type tableLayout struct {
	time                             string
	local, remote, transition, dwell int
	owner                            int
}

var narrowLayout = tableLayout{
	time:  time.TimeOnly,
	local: 9, remote: 25, transition: 41, dwell: 64, owner: 70,
}

var wideLayout = tableLayout{
	time:  "15:04:05.000",
	local: 13, remote: 35, transition: 57, dwell: 80, owner: 86,
}

// spellings are the names of states, the longest first. The others are for
// rows that do not fit otherwise: first the one that ss has too.
var spellings = []*stateNames{
	newStateNames(nil),
	newStateNames(map[tracer.State]string{tracer.StateEstablished: "ESTAB"}),
	newStateNames(map[tracer.State]string{
		tracer.StateEstablished: "ESTAB",
		tracer.StateFinWait1:    "FIN_W1",
		tracer.StateFinWait2:    "FIN_W2",
		tracer.StateTimeWait:    "TIME_W",
		tracer.StateCloseWait:   "CLOSE_W",
		tracer.StateNewSynRecv:  "NEW_SYN",
	}),
}

const (
	dwellWidth = 5
	// minOwner is how many columns of the process name are worth more than
	// the full names of states.
	minOwner = 6
)

func newTable(opts Options) *tableEncoder {
	room := max(opts.Width, defaultWidth) - 1
	t := &tableEncoder{color: opts.Color, room: room, loc: opts.Location, layout: &narrowLayout}
	if opts.Width >= wideWidth {
		t.layout = &wideLayout
	}
	if t.loc == nil {
		t.loc = time.Local
	}
	return t
}

func (t *tableEncoder) AppendHeader(dst []byte) []byte {
	r := row{buf: dst}
	r.text("TIME")
	r.to(t.layout.local)
	r.text("LOCAL")
	r.to(t.layout.remote)
	r.text("REMOTE")
	r.to(t.layout.transition)
	r.text("TRANSITION")
	r.to(t.layout.dwell)
	r.text("DWELL")
	r.to(t.layout.owner)
	r.text("OWNER")
	return append(r.buf, '\n')
}

func (t *tableEncoder) AppendEvent(dst []byte, ev *tracer.Event) []byte {
	var scratch [128]byte
	owner, commWidth := appendOwner(scratch[:0], ev)

	r := row{buf: dst}
	r.advance(len(t.layout.time), ev.Time.In(t.loc).AppendFormat(r.buf, t.layout.time))
	r.to(t.layout.local)
	r.addrPort(ev.Local)
	r.to(t.layout.remote)
	if hasRemote(ev) {
		r.addrPort(ev.Remote)
	}
	r.to(t.layout.transition)

	names, ownerRoom := t.fit(&r, ev.Transition, commWidth)
	r.transition(names, ev.Transition, t.color)
	if ev.DwellKnown {
		r.to(t.layout.dwell)
		r.dwell(ev.Dwell)
	}
	if len(owner) > 0 && ownerRoom > 0 {
		r.to(t.layout.owner)
		r.owner(owner, commWidth, ownerRoom)
	}
	return append(r.buf, '\n')
}

// fit chooses the names of states for the row r, which has come to its
// transition, and returns how many columns are left for an owner whose process
// name takes comm columns.
func (t *tableEncoder) fit(r *row, tr tracer.Transition, comm int) (names *stateNames, room int) {
	want, least := min(comm, minOwner), 1
	if comm == 0 {
		want, least = -1, -1 // nor the space before it
	}
	for _, names = range spellings {
		if room = t.room - t.ownerCol(r.col+names.width(tr)); room >= want {
			return names, room
		}
	}
	if room >= least {
		return names, room
	}
	return spellings[0], math.MaxInt
}

// ownerCol returns the column where the owner begins in a row whose transition
// ends before column end.
func (t *tableEncoder) ownerCol(end int) int {
	return max(t.layout.owner, max(t.layout.dwell, end+1)+dwellWidth+1)
}

// row is a line in the making. It counts columns; escapes take none.
type row struct {
	buf []byte
	col int
}

// advance takes over buf, to which cols columns have been appended.
func (r *row) advance(cols int, buf []byte) { r.buf, r.col = buf, r.col+cols }

func (r *row) text(s string) { r.advance(len(s), append(r.buf, s...)) }

// to fills up with spaces to the stop, one at least.
func (r *row) to(stop int) {
	for first := true; first || r.col < stop; first = false {
		r.text(" ")
	}
}

// addrPort appends an address and port. A port that is not known is a dash: an
// address with nothing after its colon looks cut off.
func (r *row) addrPort(ap netip.AddrPort) {
	if !ap.Addr().IsValid() {
		return
	}
	start := len(r.buf)
	ap = netip.AddrPortFrom(ap.Addr().WithZone(""), ap.Port())
	buf := ap.AppendTo(r.buf)
	if ap.Port() == 0 {
		buf[len(buf)-1] = '-'
	}
	r.advance(len(buf)-start, buf)
}

func (r *row) transition(names *stateNames, tr tracer.Transition, color bool) {
	oldTint, newTint := tints(tr)
	r.state(names.of(tr.Old), oldTint, color)
	r.advance(1, append(r.buf, "→"...))
	r.state(names.of(tr.New), newTint, color)
}

func (r *row) state(name, tint string, color bool) {
	if !color || tint == "" {
		r.text(name)
		return
	}
	r.buf = append(r.buf, tint...)
	r.text(name)
	r.buf = append(r.buf, tintOff...)
}

func (r *row) dwell(d time.Duration) {
	var scratch [16]byte
	r.right(dwellWidth, AppendDuration(scratch[:0], d))
}

// right appends text with spaces before it up to that width.
func (r *row) right(width int, text []byte) {
	n := utf8.RuneCount(text)
	for range width - n {
		r.text(" ")
	}
	r.advance(n, append(r.buf, text...))
}

// owner appends as much of the owner as fits in room columns. comm is how many
// of its columns are the process name.
func (r *row) owner(owner []byte, comm, room int) {
	if width := textWidth(owner); width <= room {
		r.advance(width, append(r.buf, owner...))
		return
	}
	for width := 0; len(owner) > 0; {
		first, size := utf8.DecodeRune(owner)
		width += runeWidth(first)
		if comm <= room && width > comm {
			return
		}
		if comm > room && width > room-1 {
			r.advance(1, append(r.buf, "…"...))
			return
		}
		r.advance(runeWidth(first), append(r.buf, owner[:size]...))
		owner = owner[size:]
	}
}

// appendOwner appends comm/pid, and returns how many columns comm takes.
func appendOwner(dst []byte, ev *tracer.Event) ([]byte, int) {
	if !hasOwner(ev) {
		return dst, 0
	}
	dst = Quote(dst, ev.Owner.Comm())
	width := textWidth(dst)
	if ev.Owner.PID == 0 {
		return dst, width
	}
	dst = append(dst, '/')
	return strconv.AppendUint(dst, uint64(ev.Owner.PID), 10), width
}

func textWidth(s []byte) int {
	width := 0
	for len(s) > 0 {
		r, size := utf8.DecodeRune(s)
		width += runeWidth(r)
		s = s[size:]
	}
	return width
}

// runeWidth returns the columns that r takes at most: characters beyond ASCII
// are counted as wide ones.
func runeWidth(r rune) int {
	if r < utf8.RuneSelf {
		return 1
	}
	return 2
}
