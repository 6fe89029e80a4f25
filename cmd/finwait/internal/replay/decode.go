package replay

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/finwait/finwait/tracer"
)

// decoder makes records of lines. What it returns is valid until the next.
type decoder struct {
	scanner
	next int // the field that comes next, if they come in their order
	seen uint64

	record Record
	event  tracer.Event // what both kinds have, and a transition
	conn   tracer.Conn
	walk   []tracer.Visit
	times  clock
	starts clock
	names  names
}

// field is one field of the records.
type field struct {
	name string
	read func(*decoder) error
}

// fields are those of both kinds, in the order in which they are written. The
// others are skipped: newer versions may have more.
var fields = []field{
	{"time", func(d *decoder) (err error) { d.event.Time, err = d.time(&d.times); return err }},
	{"start", func(d *decoder) (err error) { d.conn.Start, err = d.time(&d.starts); return err }},
	{"cookie", func(d *decoder) (err error) { d.event.Cookie, err = d.quoted(); return err }},
	{"netns", func(d *decoder) error { return readNumber(d, &d.event.Netns, 32) }},
	{"family", func(d *decoder) error { return readName(d, &d.event.Family, families) }},
	{"local_addr", func(d *decoder) error { return d.addr(&d.event.Local) }},
	{"local_port", func(d *decoder) error { return d.port(&d.event.Local) }},
	{"remote_addr", func(d *decoder) error { return d.addr(&d.event.Remote) }},
	{"remote_port", func(d *decoder) error { return d.port(&d.event.Remote) }},
	{"old_state", func(d *decoder) error { return readName(d, &d.event.Old, states) }},
	{"new_state", func(d *decoder) error { return readName(d, &d.event.New, states) }},
	{"dwell_ns", func(d *decoder) error { return d.duration(&d.event.Dwell) }},
	{"pid", func(d *decoder) error { return readNumber(d, &d.event.Owner.PID, 32) }},
	{"comm", (*decoder).comm},
	{"uid", func(d *decoder) error { return readNumber(d, &d.event.Owner.UID, 32) }},
	{"cgroup_id", func(d *decoder) (err error) { d.event.Owner.CgroupID, err = d.quoted(); return err }},
	{"container_id", func(d *decoder) error { return d.name(&d.record.ContainerID) }},
	{"pod_uid", func(d *decoder) error { return d.name(&d.record.PodUID) }},
	{"owner", func(d *decoder) error { return readName(d, &d.event.Owner.Origin, origins) }},
	{"role", func(d *decoder) error { return readName(d, &d.event.Role, roles) }},
	{"walk", (*decoder).readWalk},
	{"bytes_sent", func(d *decoder) error { return readNumber(d, &d.conn.BytesSent, 64) }},
	{"bytes_received", func(d *decoder) error { return readNumber(d, &d.conn.BytesReceived, 64) }},
	{"segments_sent", func(d *decoder) error { return readNumber(d, &d.conn.SegmentsSent, 32) }},
	{"segments_received", func(d *decoder) error { return readNumber(d, &d.conn.SegmentsReceived, 32) }},
	{"retransmits", func(d *decoder) error { return readNumber(d, &d.conn.Retransmits, 32) }},
	{"srtt_ns", func(d *decoder) error { return d.duration(&d.conn.SRTT) }},
	{"reason", func(d *decoder) error { return readName(d, &d.event.Reason, reasons) }},
	{"side", func(d *decoder) error { return readName(d, &d.event.Side, sides) }},
	{"time_wait_reason", func(d *decoder) error { return readName(d, &d.conn.TimeWaitReason, reasons) }},
	{"evidence", func(d *decoder) error { return readName(d, &d.event.Evidence, evidence) }},
	{"sampling_ratio", (*decoder).ratio},
	// What another record of finwait has, and neither of these.
	{"state", func(d *decoder) error { return d.value(1) }},
}

// bit returns the bit in seen of the fields of these names.
func bit(names ...string) (mask uint64) {
	for i := range fields {
		for _, name := range names {
			if fields[i].name == name {
				mask |= 1 << i
			}
		}
	}
	return mask
}

var (
	sawTime, sawOld, sawNew = bit("time"), bit("old_state"), bit("new_state")
	sawDwell, sawOwner      = bit("dwell_ns"), bit("owner")
	sawWalk, sawState       = bit("walk"), bit("state")
	sawCounts               = bit("bytes_sent", "bytes_received", "segments_sent", "segments_received", "retransmits")
)

// decode returns the record that line is.
func (d *decoder) decode(line []byte) (*Record, error) {
	d.data, d.pos, d.next, d.seen = line, 0, 0, 0
	d.event, d.conn, d.record, d.walk = tracer.Event{}, tracer.Conn{}, Record{}, d.walk[:0]
	if err := d.object(d.member); err != nil {
		return nil, err
	}
	if d.space(); d.pos < len(d.data) {
		return nil, errors.New("there is more after the object")
	}
	if err := d.finish(); err != nil {
		return nil, err
	}
	return &d.record, nil
}

// member reads the field of that name.
func (d *decoder) member(name []byte) error {
	i := d.find(name)
	if i < 0 {
		return d.value(1)
	}
	d.next = i + 1
	if d.null() { // as if it were not there
		return nil
	}
	d.seen |= 1 << i
	if err := fields[i].read(d); err != nil {
		return fmt.Errorf("%s: %w", fields[i].name, err)
	}
	return nil
}

// find returns the number of the field, -1 if there is none of that name.
func (d *decoder) find(name []byte) int {
	for i := d.next; i < len(fields); i++ {
		if fields[i].name == string(name) {
			return i
		}
	}
	for i := range d.next {
		if fields[i].name == string(name) {
			return i
		}
	}
	return -1
}

func (d *decoder) saw(field uint64) bool { return d.seen&field == field }

// finish decides what the line is.
func (d *decoder) finish() error {
	switch {
	case !d.saw(sawTime):
		return errors.New("there is no time in it")
	case d.saw(sawNew) != d.saw(sawOld):
		return errors.New("there is only one state in it")
	}
	d.event.DwellKnown = d.saw(sawDwell)
	if d.event.Owner.Origin == tracer.OriginUnknown {
		d.event.Owner = tracer.Owner{}
	}
	d.restoreRemote()
	if d.saw(sawNew) {
		d.record.Event = &d.event
		return nil
	}
	// The walk is missing where the kernel had no memory to keep it.
	if !d.saw(sawWalk) && (!d.saw(sawOwner) || d.saw(sawState)) {
		return errors.New("neither a transition nor a connection (there is no new_state and no walk in it)")
	}
	return d.finishConn()
}

// restoreRemote sets the unspecified address, which is not written.
func (d *decoder) restoreRemote() {
	ev := &d.event
	if ev.Remote.Addr().IsValid() {
		return
	}
	switch ev.Family {
	case tracer.FamilyIPv4:
		ev.Remote = netip.AddrPortFrom(netip.IPv4Unspecified(), ev.Remote.Port())
	case tracer.FamilyIPv6:
		ev.Remote = netip.AddrPortFrom(netip.IPv6Unspecified(), ev.Remote.Port())
	}
}

// finishConn gives the connection what both kinds have.
func (d *decoder) finishConn() error {
	c, ev := &d.conn, &d.event
	c.Counted = d.saw(sawCounts)
	if !c.Counted && d.seen&sawCounts != 0 {
		return errors.New("there are only some of its bytes and segments in it")
	}
	c.End, c.Cookie, c.Netns, c.Family, c.Local, c.Remote = ev.Time, ev.Cookie, ev.Netns, ev.Family, ev.Local, ev.Remote
	c.Owner, c.Role, c.Reason, c.Side = ev.Owner, ev.Role, ev.Reason, ev.Side
	c.SetWalk(d.walk...)
	d.record.Conn = c
	return nil
}

func readNumber[T uint32 | uint64](d *decoder, into *T, bits int) error {
	n, err := d.unsigned(bits)
	*into = T(n)
	return err
}

// readName reads one of names.
func readName[T any](d *decoder, into *T, names map[string]T) error {
	word, err := d.text()
	if err != nil {
		return err
	}
	value, ok := names[string(word)]
	if !ok {
		return fmt.Errorf("%.30q is not known to this version", word)
	}
	*into = value
	return nil
}

// quoted reads a whole number of 64 bits, which stands as a string.
func (d *decoder) quoted() (uint64, error) {
	word, err := d.text()
	if err != nil {
		return 0, err
	}
	return parseUnsigned(word, 64)
}

func (d *decoder) duration(into *time.Duration) error {
	ns, err := d.signed()
	*into = time.Duration(ns)
	return err
}

func (d *decoder) port(into *netip.AddrPort) error {
	port, err := d.unsigned(16)
	*into = netip.AddrPortFrom(into.Addr(), uint16(port))
	return err
}

func (d *decoder) addr(into *netip.AddrPort) error {
	word, err := d.text()
	if err != nil {
		return err
	}
	addr, ok := parseIPv4(word)
	if !ok {
		if addr, err = netip.ParseAddr(string(word)); err != nil || addr.Zone() != "" {
			return fmt.Errorf("%.50q is not an address", word)
		}
	}
	*into = netip.AddrPortFrom(addr, into.Port())
	return nil
}

// parseIPv4 takes what netip.ParseAddr takes for IPv4, without allocation.
func parseIPv4(word []byte) (netip.Addr, bool) {
	var octets [4]byte
	part, digits, value := 0, 0, 0
	for _, c := range word {
		switch {
		case c == '.' && digits > 0 && part < 3:
			octets[part] = byte(value)
			part, digits, value = part+1, 0, 0
		case c >= '0' && c <= '9' && (digits == 0 || value > 0) && value*10+int(c-'0') < 256:
			digits, value = digits+1, value*10+int(c-'0')
		default:
			return netip.Addr{}, false
		}
	}
	octets[part] = byte(value)
	return netip.AddrFrom4(octets), part == 3 && digits > 0
}

// maxComm is the length of the longest process name that the kernel keeps.
const maxComm = 15

// comm reads the name of a process. A byte that was not UTF-8 is not known any
// more; 0xff is in its place, so that there is room for the name.
func (d *decoder) comm() error {
	word, err := d.text()
	if err != nil {
		return err
	}
	name := string(word)
	if bytes.Contains(word, replacement) {
		name = Comm(name)
	}
	if len(name) > maxComm || strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("%.60q is not the name of a process", word)
	}
	d.event.Owner.SetComm(name)
	return nil
}

// replacement is what stands in a text for a byte that was not UTF-8.
var replacement = []byte(string(utf8.RuneError))

// Comm returns the name of a process as a record has it that is read back: of
// bytes that were not UTF-8 it is not known which they were.
func Comm(name string) string {
	read := make([]byte, 0, len(name))
	for _, r := range name {
		if r == utf8.RuneError {
			read = append(read, 0xff)
		} else {
			read = utf8.AppendRune(read, r)
		}
	}
	return string(read)
}

// name reads a text that is likely to come again.
func (d *decoder) name(into *string) error {
	word, err := d.text()
	*into = d.names.of(word)
	return err
}

// names remembers texts, so that each is allocated once and not for each record.
type names map[string]string

// maxNames is how many are remembered: the containers of a large host.
const maxNames = 1024

func (n *names) of(word []byte) string {
	if s, ok := (*n)[string(word)]; ok {
		return s
	}
	if *n == nil || len(*n) >= maxNames {
		*n = make(names)
	}
	s := string(word)
	(*n)[s] = s
	return s
}

// readWalk reads the states of a connection.
func (d *decoder) readWalk() error {
	d.walk = d.walk[:0]
	return d.array(func() error {
		var (
			visit tracer.Visit
			state bool
		)
		err := d.object(func(name []byte) (err error) {
			switch string(name) {
			case "state":
				state = true
				return readName(d, &visit.State, states)
			case "dwell_ns":
				visit.DwellKnown = true
				return d.duration(&visit.Dwell)
			}
			return d.value(3)
		})
		if err != nil {
			return err
		}
		if !state || len(d.walk) == len(states) {
			return errors.New("not a walk through the states")
		}
		d.walk = append(d.walk, visit)
		return nil
	})
}

// ratio reads the share of connections that were recorded.
func (d *decoder) ratio() error {
	word, err := d.number()
	if err != nil {
		return err
	}
	ratio, err := strconv.ParseFloat(string(word), 64)
	if err != nil || ratio <= 0 || ratio >= 1 {
		return fmt.Errorf("%.30q is not between 0 and 1", word)
	}
	d.record.SamplingRatio = ratio
	return nil
}

// clock reads times, and remembers the second of the last.
type clock struct {
	second int64
	text   [len("2006-01-02T15:04:05.")]byte
}

// time reads a time.
func (d *decoder) time(c *clock) (time.Time, error) {
	word, err := d.text()
	if err != nil {
		return time.Time{}, err
	}
	const digits = 9
	full := len(word) == len(c.text)+digits+1 && word[len(word)-1] == 'Z'
	if full && string(word[:len(c.text)]) == string(c.text[:]) {
		if ns, err := parseUnsigned(word[len(c.text):len(word)-1], 32); err == nil {
			return time.Unix(c.second, int64(ns)).UTC(), nil
		}
	}
	t, err := time.Parse(time.RFC3339Nano, string(word))
	if err != nil {
		return time.Time{}, fmt.Errorf("%.40q is not a time", word)
	}
	if full {
		c.second = t.Unix()
		copy(c.text[:], word)
	}
	return t.UTC(), nil
}

// The names of what is written by name.
var (
	states   = named(tracer.States())
	families = named([]tracer.Family{tracer.FamilyIPv4, tracer.FamilyIPv6})
	origins  = named([]tracer.Origin{
		tracer.OriginUnknown, tracer.OriginConnect, tracer.OriginListen, tracer.OriginAccept, tracer.OriginSnapshot,
	})
	roles    = named([]tracer.Role{tracer.RoleClient, tracer.RoleServer})
	evidence = named([]tracer.Evidence{tracer.EvidenceKernel, tracer.EvidenceTimer, tracer.EvidenceProbe})
	reasons  = named(tracer.Reasons()[1:])
	sides    = named([]tracer.Side{tracer.SideLocal, tracer.SidePeer, tracer.SideBoth})
)

func named[T fmt.Stringer](values []T) map[string]T {
	names := make(map[string]T, len(values))
	for _, v := range values {
		names[v.String()] = v
	}
	return names
}
