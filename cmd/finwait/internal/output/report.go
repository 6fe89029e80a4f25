package output

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/finwait/finwait/cmd/finwait/internal/summary"
	"github.com/finwait/finwait/tracer"
)

// reportQuantiles are what a report says of the times in a state.
var reportQuantiles = quantiles[:3]

// reportStates are the states in the order of a connection's life.
var reportStates = []tracer.State{
	tracer.StateListen, tracer.StateSynSent, tracer.StateNewSynRecv, tracer.StateSynRecv, tracer.StateEstablished,
	tracer.StateFinWait1, tracer.StateClosing, tracer.StateFinWait2, tracer.StateTimeWait, tracer.StateCloseWait,
	tracer.StateLastAck,
}

// The stops of a report's columns.
const (
	reportToCol    = 13 // of a transition
	reportCountEnd = 37
	reportHalf     = 40 // where the second of two transitions in a line begins

	reportDwellEnd = 27 // of the count of times
	reportUnkEnd   = 38
	reportTimeStep = 7

	reportSideEnd  = 33 // of the first side
	reportSideStep = 11

	reportTopCol    = 23 // where the second and the third table begin
	reportOwnerCol  = 46
	reportTopEnd    = 20 // of the count, within a table
	reportNameWidth = 15
	reportPIDsEnd   = 22
	reportOwnersEnd = 33
)

// AppendReportText appends r for people, with the top so many rows of each table
// that may be long. No line has more than 79 columns, as long as no count has
// more than 10 digits.
func AppendReportText(dst []byte, r *summary.Report, top int) []byte {
	dst = appendReportHead(dst, r)
	if k := &r.Transitions; k.Records > 0 {
		dst = fmt.Appendf(dst, "\n%d TRANSITIONS\n", k.Records)
		dst = appendSampled(dst, &k.Sampling)
		dst = appendHappened(dst, r)
		dst = appendKind(dst, k, top)
	}
	if k := &r.Conns; k.Records > 0 {
		dst = fmt.Appendf(dst, "\n%d CONNECTIONS\n", k.Records)
		dst = appendSampled(dst, &k.Sampling)
		dst = appendKind(dst, k, top)
		dst = appendTimeWaitEnded(dst, r)
	}
	return dst
}

func appendReportHead(dst []byte, r *summary.Report) []byte {
	if r.Last.IsZero() {
		dst = append(dst, "time         unknown"...)
	} else {
		dst = append(dst, "time         "...)
		dst = r.First.UTC().AppendFormat(dst, time.DateTime)
		dst = append(dst, " to "...)
		dst = r.Last.UTC().AppendFormat(dst, time.DateTime)
		dst = append(dst, " UTC, "...)
		dst = AppendDuration(dst, r.Last.Sub(r.First))
	}
	dst = fmt.Appendf(dst, "\nread         %d transitions, %d connections; files: %d\n", r.Transitions.Records, r.Conns.Records, r.Files)
	if r.Damaged+r.Broken > 0 {
		dst = fmt.Appendf(dst, "not read     damaged lines: %d; files not read, or not to their end: %d\n", r.Damaged, r.Broken)
	}
	return fmt.Appendf(dst, "percentiles  within %.1f %% of the true ones\n", 100*summary.RelativeError)
}

// appendSampled says how many connections stand behind the records, if there is
// not a record of every one.
func appendSampled(dst []byte, s *summary.Sampling) []byte {
	if len(s.Ratios) == 0 {
		return dst
	}
	for _, ratio := range slices.Sorted(maps.Keys(s.Ratios)) {
		dst = fmt.Appendf(dst, "sampled      %d records, at a ratio of %.6g\n", s.Ratios[ratio], ratio)
	}
	if s.Others > 0 {
		dst = fmt.Appendf(dst, "sampled      %d records, at other ratios\n", s.Others)
	}
	if s.All > 0 {
		dst = fmt.Appendf(dst, "not sampled  %d records\n", s.All)
	}
	estimate := fmt.Sprintf("%.0f", s.Estimate)
	if s.Estimate >= 1e15 { // which a log may say
		estimate = fmt.Sprintf("%.3g", s.Estimate)
	}
	return fmt.Appendf(dst, "estimate     %s records in all; the counts below are as recorded\n", estimate)
}

// appendHappened appends the transitions, two in a line: one column, then the other.
func appendHappened(dst []byte, r *summary.Report) []byte {
	all := r.Happened()
	half := (len(all) + 1) / 2
	line := row{buf: append(dst, '\n')}
	title := func(line *row, start int) {
		line.text("FROM")
		line.to(start + reportToCol)
		line.text("TO")
		line.rightText("COUNT", start+reportCountEnd)
	}
	cell := func(line *row, start int, t tracer.Transition) {
		line.text(t.Old.String())
		line.to(start + reportToCol)
		line.text(t.New.String())
		line.rightNumber(r.Count(t), start+reportCountEnd)
	}
	title(&line, 0)
	if len(all) > 1 {
		line.to(reportHalf)
		title(&line, reportHalf)
	}
	for i := range half {
		line = row{buf: append(line.buf, '\n')}
		cell(&line, 0, all[i])
		if i+half < len(all) {
			line.to(reportHalf)
			cell(&line, reportHalf, all[i+half])
		}
	}
	return append(line.buf, '\n')
}

func appendKind(dst []byte, k *summary.Kind, top int) []byte {
	dst = appendDwells(dst, k)
	dst = appendEnds(dst, k)
	return appendTops(dst, k, top)
}

func appendDwells(dst []byte, k *summary.Kind) []byte {
	line := row{buf: append(dst, '\n')}
	line.text("STATE")
	line.rightText("COUNT", reportDwellEnd)
	line.rightText("UNKNOWN", reportUnkEnd)
	end := reportUnkEnd
	for _, q := range reportQuantiles {
		end += reportTimeStep
		line.rightText(q.title, end)
	}
	line.rightText("MAX", end+reportTimeStep)
	for _, s := range reportStates {
		d := k.Dwell(s)
		if d == nil {
			continue
		}
		line = row{buf: append(line.buf, '\n')}
		line.text(s.String())
		line.rightNumber(d.Count, reportDwellEnd)
		line.rightNumber(d.Unknown, reportUnkEnd)
		if d.Count == 0 {
			continue
		}
		end := reportUnkEnd
		for _, q := range reportQuantiles {
			end += reportTimeStep
			line.rightDuration(d.Quantile(q.q), end)
		}
		line.rightDuration(d.Max, end+reportTimeStep)
	}
	return append(line.buf, '\n')
}

// appendEnds appends a line for each reason, with who closed first.
func appendEnds(dst []byte, k *summary.Kind) []byte {
	reasons := k.Ends()
	if len(reasons) == 0 {
		return dst
	}
	line := row{buf: append(dst, '\n')}
	line.text("END, CLOSED FIRST BY")
	end := reportSideEnd
	for _, side := range summary.Sides {
		line.rightText(strings.ToUpper(side.String()), end)
		end += reportSideStep
	}
	for _, reason := range reasons {
		line = row{buf: append(line.buf, '\n')}
		line.text(reason.String())
		end := reportSideEnd
		for _, side := range summary.Sides {
			line.rightNumber(k.Ended(summary.End{Reason: reason, Side: side}), end)
			end += reportSideStep
		}
	}
	return append(line.buf, '\n')
}

func appendTimeWaitEnded(dst []byte, r *summary.Report) []byte {
	start := len(dst)
	for _, reason := range tracer.Reasons() {
		if n := r.TimeWaitEnded(reason); n > 0 {
			dst = fmt.Appendf(dst, ", %s %d", reason, n)
		}
	}
	if len(dst) == start {
		return dst
	}
	list := string(dst[start+2:])
	return append(append(append(dst[:start], "\nTIME_WAIT ended: "...), list...), '\n')
}

// reportCell is a row of one of the tables that stand beside each other.
type reportCell struct {
	name   string // safe on a terminal
	detail string
	count  string
}

// appendTops appends three tables, beside each other: services, remote services
// and owners.
func appendTops(dst []byte, k *summary.Kind, top int) []byte {
	services, remotes := portCells(&k.Services, k.Unplaced, top), portCells(&k.Remotes, k.Unplaced, top)
	owners := ownerCells(&k.Owners, top)
	line := row{buf: append(dst, '\n')}
	line.text("SERVICE")
	line.rightText("COUNT", reportTopEnd)
	line.to(reportTopCol)
	line.text("REMOTE")
	line.rightText("COUNT", reportTopCol+reportTopEnd)
	line.to(reportOwnerCol)
	line.text("OWNER")
	line.rightText("PIDS", reportOwnerCol+reportPIDsEnd)
	line.rightText("COUNT", reportOwnerCol+reportOwnersEnd)
	for i := range max(len(services), len(remotes), len(owners)) {
		line = row{buf: append(line.buf, '\n')}
		if i < len(services) {
			line.text(services[i].name)
			line.rightText(services[i].count, reportTopEnd)
		}
		if i < len(remotes) {
			line.to(reportTopCol)
			line.text(remotes[i].name)
			line.rightText(remotes[i].count, reportTopCol+reportTopEnd)
		}
		if i < len(owners) {
			line.to(reportOwnerCol)
			name := []byte(owners[i].name)
			line.owner(name, textWidth(name), reportNameWidth)
			line.rightText(owners[i].detail, reportOwnerCol+reportPIDsEnd)
			line.rightText(owners[i].count, reportOwnerCol+reportOwnersEnd)
		}
	}
	dst = append(line.buf, '\n')
	if most := mostOver(&k.Owners, top); most > 0 {
		dst = fmt.Appendf(dst, "There are more owners than are kept: a count with ~ may be up to %d too high.\n", most)
	}
	return dst
}

func portCells(t *summary.Top[uint16], unknown uint64, top int) (cells []reportCell) {
	rows, others := t.First(top)
	for _, r := range rows {
		cells = append(cells, reportCell{name: strconv.Itoa(int(r.Key)), count: strconv.FormatUint(r.Count, 10)})
	}
	return appendRest(cells, others, unknown)
}

func ownerCells(o *summary.Owners, top int) (cells []reportCell) {
	rows, others := o.First(top)
	for _, r := range rows {
		cell := reportCell{name: string(Quote(nil, []byte(r.Key))), count: strconv.FormatUint(r.Count, 10)}
		if r.Key == "" {
			cell.name = "(no name)"
		}
		if r.Over > 0 {
			cell.count = "~" + cell.count
		}
		n, exact := o.Processes(r.Key)
		if cell.detail = strconv.Itoa(n); !exact {
			cell.detail = ">=" + cell.detail
		}
		cells = append(cells, cell)
	}
	return appendRest(cells, others, o.Unknown)
}

// mostOver returns by how much a count may be too high.
func mostOver(o *summary.Owners, top int) (most uint64) {
	rows, _ := o.First(top)
	for _, r := range rows {
		most = max(most, r.Over)
	}
	return most
}

// appendRest appends what the rows do not have.
func appendRest(cells []reportCell, others, unknown uint64) []reportCell {
	if others > 0 {
		cells = append(cells, reportCell{name: "others", count: strconv.FormatUint(others, 10)})
	}
	if unknown > 0 {
		cells = append(cells, reportCell{name: "unknown", count: strconv.FormatUint(unknown, 10)})
	}
	return cells
}
