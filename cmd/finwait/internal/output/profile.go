package output

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/finwait/finwait/tracer"
)

// ProfileOptions are the choices of a profile's formats.
type ProfileOptions struct {
	// Top is how many histograms are shown, those with the most times. 0 is all.
	Top int
	// Color tints the names of states with terminal escapes. JSON has none.
	Color bool
}

// quantiles are what a profile says of each histogram.
var quantiles = []struct {
	q            float64
	title, field string
}{
	{0.5, "P50", "p50_ns"},
	{0.9, "P90", "p90_ns"},
	{0.99, "P99", "p99_ns"},
	{0.999, "P99.9", "p999_ns"},
}

// profileTitles are the headings of what a histogram is about.
var profileTitles = map[tracer.ProfileDimension]string{
	tracer.ProfileByService:    "SERVICE",
	tracer.ProfileByRemotePort: "REMOTE PORT",
	tracer.ProfileByCgroup:     "CGROUP",
	tracer.ProfileByProcess:    "PROCESS",
	tracer.ProfileByState:      "SOCKETS",
}

// The stops of the table's columns, and of the bars below each row.
const (
	profileKeyCol   = 13
	profileKeyWidth = 19
	profileCountEnd = 41
	profileUnkEnd   = 49
	profileTimeStep = 6

	bucketFromEnd  = 13
	bucketToEnd    = 21
	bucketCountEnd = profileCountEnd
	barCol         = bucketCountEnd + 1
	barWidth       = 36
)

// ranked returns the rows with the most times first, as many as are asked for.
func ranked(p *tracer.Profile, top int) []tracer.ProfileRow {
	rows := slices.Clone(p.Rows)
	slices.SortStableFunc(rows, func(a, b tracer.ProfileRow) int {
		return cmp.Or(cmp.Compare(b.Count(), a.Count()), cmp.Compare(b.Unknown, a.Unknown))
	})
	if top > 0 && len(rows) > top {
		rows = rows[:top]
	}
	return rows
}

// AppendProfileTable appends a line for each histogram of p, and its bars below.
// No line has more than 79 columns, as long as no count has more than 8 digits.
func AppendProfileTable(dst []byte, p *tracer.Profile, opts ProfileOptions) []byte {
	r := row{buf: dst}
	r.text("STATE")
	r.to(profileKeyCol)
	r.text(profileTitles[p.By])
	r.rightText("COUNT", profileCountEnd)
	r.rightText("UNKNOWN", profileUnkEnd)
	end := profileUnkEnd
	for _, q := range quantiles {
		end += profileTimeStep
		r.rightText(q.title, end)
	}
	r.rightText("MAX", end+profileTimeStep)
	dst = append(r.buf, '\n')
	rows := ranked(p, opts.Top)
	for i := range rows {
		dst = appendProfileRow(dst, p.By, &rows[i], opts.Color)
		dst = appendBars(dst, &rows[i].Histogram)
	}
	if hidden := len(p.Rows) - len(rows); hidden > 0 {
		dst = strconv.AppendInt(dst, int64(hidden), 10)
		dst = append(dst, " more (--top 0 shows all)\n"...)
	}
	return dst
}

func appendProfileRow(dst []byte, by tracer.ProfileDimension, p *tracer.ProfileRow, color bool) []byte {
	r := row{buf: dst}
	r.state(p.Key.State.String(), stateTint(p.Key.State), color)
	r.to(profileKeyCol)
	key := appendProfileKey(nil, by, p)
	if by == tracer.ProfileByProcess { // a name may take any number of columns
		r.owner(key, textWidth(key), profileKeyWidth)
	} else {
		r.text(string(key))
	}
	count := p.Count()
	r.rightNumber(count, profileCountEnd)
	r.rightNumber(p.Unknown, profileUnkEnd)
	if count > 0 {
		end := profileUnkEnd
		for _, q := range quantiles {
			end += profileTimeStep
			r.rightDuration(p.Quantile(q.q), end)
		}
		r.rightDuration(p.Max, end+profileTimeStep)
	}
	return append(r.buf, '\n')
}

// appendProfileKey appends what the histogram is about. It is safe on a terminal.
func appendProfileKey(dst []byte, by tracer.ProfileDimension, p *tracer.ProfileRow) []byte {
	if p.Key.Group != tracer.GroupOne {
		return append(dst, p.Key.Group.String()...)
	}
	if by == tracer.ProfileByState {
		return append(dst, "all"...)
	}
	dst = strconv.AppendUint(dst, p.Key.Value, 10)
	if by == tracer.ProfileByProcess {
		dst = append(dst, '/')
		dst = Quote(dst, p.Comm())
	}
	return dst
}

// maxGap is how many empty buckets between others have a line each.
const maxGap = 3

// appendBars appends a line for each bucket from the first to the last that has
// something. The longest bar is that of the largest.
func appendBars(dst []byte, h *tracer.Histogram) []byte {
	most := slices.Max(h.Buckets[:])
	before := -1
	for i, n := range h.Buckets {
		if n == 0 {
			continue
		}
		if gap := i - before - 1; before >= 0 && gap <= maxGap {
			for empty := before + 1; empty < i; empty++ {
				dst = appendBar(dst, empty, 0, most)
			}
		} else if before >= 0 {
			r := row{buf: dst}
			r.rightText("...", bucketFromEnd)
			dst = append(r.buf, '\n')
		}
		dst = appendBar(dst, i, n, most)
		before = i
	}
	return dst
}

func appendBar(dst []byte, bucket int, n, most uint64) []byte {
	r := row{buf: dst}
	low, high := tracer.BucketBounds(bucket)
	r.rightDuration(low, bucketFromEnd)
	r.text(" -")
	r.rightDuration(high+1, bucketToEnd)
	r.rightNumber(n, bucketCountEnd)
	if n > 0 {
		r.to(barCol)
		r.text(strings.Repeat("#", max(1, int(float64(n)/float64(most)*barWidth+0.5))))
	}
	return append(r.buf, '\n')
}

// right appends text so that it ends before that column, one space at least
// before it.
func (r *row) rightText(text string, end int) { r.rightBefore([]byte(text), end) }

func (r *row) rightNumber(n uint64, end int) { r.rightBefore(strconv.AppendUint(nil, n, 10), end) }

func (r *row) rightDuration(d time.Duration, end int) { r.rightBefore(AppendDuration(nil, d), end) }

func (r *row) rightBefore(text []byte, end int) {
	width := len([]rune(string(text)))
	r.to(end - width)
	r.advance(width, append(r.buf, text...))
}

// AppendProfileJSON appends p, which began at since, as one JSON object and a
// newline.
func AppendProfileJSON(dst []byte, p *tracer.Profile, since time.Time, opts ProfileOptions) []byte {
	dst = append(dst, `{"since":"`...)
	dst = appendTime(dst, since)
	dst = append(dst, `","time":"`...)
	dst = appendTime(dst, p.Time)
	dst = append(dst, `","by":"`...)
	dst = append(dst, p.By.String()...)
	dst = append(dst, `","row_count":`...)
	dst = strconv.AppendInt(dst, int64(len(p.Rows)), 10)
	dst = append(dst, `,"rows":[`...)
	rows := ranked(p, opts.Top)
	for i := range rows {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendProfileObject(dst, p.By, &rows[i])
	}
	return append(dst, "]}\n"...)
}

func appendProfileObject(dst []byte, by tracer.ProfileDimension, p *tracer.ProfileRow) []byte {
	dst = append(dst, `{"state":"`...)
	dst = append(dst, p.Key.State.String()...)
	dst = append(dst, `","group":"`...)
	dst = append(dst, p.Key.Group.String()...)
	dst = append(dst, '"')
	if p.Key.Group == tracer.GroupOne {
		dst = appendProfileValue(dst, by, p)
	}
	count := p.Count()
	dst = appendProfileNumber(dst, "count", count)
	dst = appendProfileNumber(dst, "unknown", p.Unknown)
	if count > 0 {
		dst = appendProfileTimes(dst, &p.Histogram)
	}
	return append(dst, '}')
}

// appendProfileValue appends the field of the transition record that all these
// sockets share.
func appendProfileValue(dst []byte, by tracer.ProfileDimension, p *tracer.ProfileRow) []byte {
	switch by {
	case tracer.ProfileByService:
		return appendProfileNumber(dst, "local_port", p.Key.Value)
	case tracer.ProfileByRemotePort:
		return appendProfileNumber(dst, "remote_port", p.Key.Value)
	case tracer.ProfileByCgroup:
		dst = append(dst, `,"cgroup_id":"`...)
		dst = strconv.AppendUint(dst, p.Key.Value, 10)
		return append(dst, '"')
	case tracer.ProfileByProcess:
		dst = appendProfileNumber(dst, "pid", p.Key.Value)
		dst = append(dst, `,"comm":`...)
		return appendJSONString(dst, p.Comm())
	}
	return dst
}

func appendProfileNumber(dst []byte, name string, n uint64) []byte {
	dst = append(dst, ',', '"')
	dst = append(dst, name...)
	dst = append(dst, '"', ':')
	return strconv.AppendUint(dst, n, 10)
}

func appendProfileTimes(dst []byte, h *tracer.Histogram) []byte {
	dst = append(dst, `,"sum_seconds":`...)
	dst = strconv.AppendFloat(dst, h.Seconds(), 'f', 9, 64)
	dst = appendProfileNumber(dst, "mean_ns", uint64(h.Mean()))
	for _, q := range quantiles {
		dst = appendProfileNumber(dst, q.field, uint64(h.Quantile(q.q)))
	}
	dst = appendProfileNumber(dst, "max_ns", uint64(h.Max))
	dst = append(dst, `,"buckets":[`...)
	var sum uint64
	for i, n := range h.Buckets {
		if n == 0 {
			continue
		}
		if sum > 0 {
			dst = append(dst, ',')
		}
		_, high := tracer.BucketBounds(i)
		sum += n
		dst = append(dst, `{"le_ns":`...)
		dst = strconv.AppendInt(dst, int64(high), 10)
		dst = appendProfileNumber(dst, "count", sum)
		dst = append(dst, '}')
	}
	return append(dst, ']')
}
