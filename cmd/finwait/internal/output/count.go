package output

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	"github.com/finwait/finwait/tracer"
)

// censusStates are the states that a census can have, as netstat lists them.
var censusStates = slices.DeleteFunc(tracer.States(), func(s tracer.State) bool {
	return s == tracer.StateNewSynRecv
})

// censusUnknown stands in a table for a process, listener or peer that is not there.
const censusUnknown = "-"

// censusRow is a line of the table.
type censusRow struct {
	state  tracer.State
	number uint64
	key    string
}

// AppendCensusTable appends c as lines of state, tab and number, the largest
// first. Where c has groups, a line is a state in a group, and the group stands
// behind another tab.
func AppendCensusTable(dst []byte, c *tracer.Census) []byte {
	var rows []censusRow
	if c.By == tracer.ByNothing {
		rows = appendCensusRows(rows, &c.States, "")
	}
	for i := range c.Groups {
		g := &c.Groups[i]
		rows = appendCensusRows(rows, &g.States, string(appendCensusKey(nil, c, g)))
	}
	slices.SortStableFunc(rows, func(a, b censusRow) int {
		return cmp.Or(
			cmp.Compare(b.number, a.number),
			cmp.Compare(a.state.String(), b.state.String()),
			cmp.Compare(a.key, b.key),
		)
	})
	for _, r := range rows {
		dst = append(dst, r.state.String()...)
		dst = append(dst, '\t')
		dst = strconv.AppendUint(dst, r.number, 10)
		if r.key != "" {
			dst = append(dst, '\t')
			dst = append(dst, r.key...)
		}
		dst = append(dst, '\n')
	}
	return dst
}

func appendCensusRows(rows []censusRow, counts *tracer.StateCounts, key string) []censusRow {
	for _, s := range censusStates {
		if n := counts[s]; n > 0 {
			rows = append(rows, censusRow{s, n, key})
		}
	}
	return rows
}

// appendCensusKey appends what tells the group from others. It is safe on a
// terminal.
func appendCensusKey(dst []byte, c *tracer.Census, g *tracer.CensusGroup) []byte {
	switch c.By {
	case tracer.ByNetns:
		return appendCensusNetns(dst, g)
	case tracer.ByListener:
		dst = appendCensusListener(dst, g.Listener)
		if c.Namespaces > 1 {
			dst = append(dst, " netns "...)
			dst = appendCensusNetns(dst, g)
		}
		return dst
	case tracer.ByProcess:
		return appendCensusProcess(dst, g)
	default:
		if !g.Remote.IsValid() {
			return append(dst, censusUnknown...)
		}
		return appendAddr(dst, g.Remote)
	}
}

// appendCensusNetns appends "4026532281 blue", or the number alone.
func appendCensusNetns(dst []byte, g *tracer.CensusGroup) []byte {
	dst = strconv.AppendUint(dst, uint64(g.Netns), 10)
	if g.NetnsName != "" {
		dst = append(dst, ' ')
		dst = Quote(dst, []byte(g.NetnsName))
	}
	return dst
}

func appendCensusListener(dst []byte, listener netip.AddrPort) []byte {
	if !listener.IsValid() {
		return append(dst, censusUnknown...)
	}
	return listener.AppendTo(dst)
}

// appendCensusProcess appends "123/nginx", as netstat -p does.
func appendCensusProcess(dst []byte, g *tracer.CensusGroup) []byte {
	if g.PID == 0 {
		return append(dst, censusUnknown...)
	}
	dst = strconv.AppendUint(dst, uint64(g.PID), 10)
	dst = append(dst, '/')
	return Quote(dst, []byte(g.Comm))
}

// AppendCensusJSON appends c as one JSON object and a newline. "states" has
// every state, those of a group only the ones that have sockets. source is whose
// counts they are.
func AppendCensusJSON(dst []byte, c *tracer.Census, source string) []byte {
	dst = append(dst, `{"time":"`...)
	dst = appendTime(dst, c.Time)
	dst = append(dst, `","source":"`...)
	dst = append(dst, source...)
	dst = append(dst, '"')
	if c.Namespaces > 0 { // which an agent does not know
		dst = strconv.AppendInt(append(dst, `,"netns_count":`...), int64(c.Namespaces), 10)
		dst = strconv.AppendInt(append(dst, `,"netns_missed":`...), int64(len(c.Missed.Netns)), 10)
	}
	dst = append(dst, `,"states":`...)
	dst = appendCensusStates(dst, &c.States, true)
	if c.By != tracer.ByNothing {
		dst = append(dst, `,"by":"`...)
		dst = append(dst, c.By.String()...)
		dst = append(dst, `","groups":[`...)
		for i := range c.Groups {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendCensusGroup(dst, c.By, &c.Groups[i])
		}
		dst = append(dst, ']')
	}
	return append(dst, '}', '\n')
}

func appendCensusGroup(dst []byte, by tracer.Dimension, g *tracer.CensusGroup) []byte {
	dst = append(dst, '{')
	if by == tracer.ByListener && g.Listener.IsValid() {
		dst = append(dst, `"listener":"`...)
		dst = g.Listener.AppendTo(dst)
		dst = append(dst, `",`...)
	}
	if by == tracer.ByRemote && g.Remote.IsValid() {
		dst = append(dst, `"remote":"`...)
		dst = appendAddr(dst, g.Remote)
		dst = append(dst, `",`...)
	}
	if by == tracer.ByNetns || by == tracer.ByListener {
		dst = appendCensusNumber(dst, `"netns":`, g.Netns)
		dst = appendCensusText(dst, `"netns_name":`, g.NetnsName)
	}
	if by == tracer.ByProcess && g.PID != 0 {
		dst = appendCensusNumber(dst, `"pid":`, g.PID)
		dst = appendCensusText(dst, `"comm":`, g.Comm)
	}
	dst = append(dst, `"states":`...)
	dst = appendCensusStates(dst, &g.States, false)
	return append(dst, '}')
}

func appendCensusNumber(dst []byte, key string, n uint32) []byte {
	dst = append(dst, key...)
	dst = strconv.AppendUint(dst, uint64(n), 10)
	return append(dst, ',')
}

func appendCensusText(dst []byte, key, text string) []byte {
	if text == "" {
		return dst
	}
	dst = append(dst, key...)
	dst = appendJSONString(dst, []byte(text))
	return append(dst, ',')
}

func appendCensusStates(dst []byte, counts *tracer.StateCounts, zeros bool) []byte {
	dst = append(dst, '{')
	for _, s := range censusStates {
		n := counts[s]
		if n == 0 && !zeros {
			continue
		}
		if dst[len(dst)-1] != '{' {
			dst = append(dst, ',')
		}
		dst = append(dst, '"')
		dst = append(dst, s.String()...)
		dst = append(dst, '"', ':')
		dst = strconv.AppendUint(dst, n, 10)
	}
	return append(dst, '}')
}
