package output

import (
	"maps"
	"math"
	"slices"
	"strconv"

	"github.com/finwait/finwait/cmd/finwait/internal/summary"
	"github.com/finwait/finwait/tracer"
)

// AppendReportJSON appends r as one JSON object and a newline, with the top so
// many rows of each list that may be long. What is not known is absent.
func AppendReportJSON(dst []byte, r *summary.Report, top int) []byte {
	dst = append(dst, '{')
	if !r.Last.IsZero() {
		dst = append(dst, `"first":"`...)
		dst = appendTime(dst, r.First)
		dst = append(dst, `","last":"`...)
		dst = appendTime(dst, r.Last)
		dst = append(dst, `",`...)
	}
	dst = append(dst, `"files":`...)
	dst = strconv.AppendInt(dst, int64(r.Files), 10)
	dst = appendProfileNumber(dst, "damaged_lines", r.Damaged)
	dst = appendProfileNumber(dst, "broken_files", r.Broken)
	dst = append(dst, `,"quantile_relative_error":`...)
	dst = strconv.AppendFloat(dst, summary.RelativeError, 'g', -1, 64)
	dst = append(dst, `,"transitions":{`...)
	dst = appendKindJSON(dst, &r.Transitions, top)
	dst = append(dst, `,"matrix":`...)
	dst = appendJSONList(dst, r.Happened(), func(dst []byte, t tracer.Transition) []byte {
		dst = append(append(append(dst, `{"old_state":"`...), t.Old.String()...), `","new_state":"`...)
		return append(appendProfileNumber(append(append(dst, t.New.String()...), '"'), "count", r.Count(t)), '}')
	})
	dst = append(dst, `},"connections":{`...)
	dst = appendKindJSON(dst, &r.Conns, top)
	dst = append(dst, `,"time_wait_ends":`...)
	ended := slices.DeleteFunc(tracer.Reasons(), func(reason tracer.Reason) bool { return r.TimeWaitEnded(reason) == 0 })
	dst = appendJSONList(dst, ended, func(dst []byte, reason tracer.Reason) []byte {
		dst = append(append(append(dst, `{"reason":"`...), reason.String()...), '"')
		return append(appendProfileNumber(dst, "count", r.TimeWaitEnded(reason)), '}')
	})
	return append(dst, "}}\n"...)
}

// appendJSONList appends a list of what appends one.
func appendJSONList[T any](dst []byte, list []T, one func([]byte, T) []byte) []byte {
	dst = append(dst, '[')
	for i, v := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = one(dst, v)
	}
	return append(dst, ']')
}

func appendKindJSON(dst []byte, k *summary.Kind, top int) []byte {
	dst = append(dst, `"records":`...)
	dst = strconv.AppendUint(dst, k.Records, 10)
	dst = appendSamplingJSON(dst, &k.Sampling)
	states := slices.DeleteFunc(slices.Clone(reportStates), func(s tracer.State) bool { return k.Dwell(s) == nil })
	dst = append(dst, `,"dwell":`...)
	dst = appendJSONList(dst, states, func(dst []byte, s tracer.State) []byte { return appendDwellJSON(dst, s, k.Dwell(s)) })
	dst = append(dst, `,"ends":`...)
	dst = appendJSONList(dst, endsOf(k), func(dst []byte, way summary.End) []byte { return appendEndJSON(dst, way, k.Ended(way)) })
	dst = append(dst, `,"services":`...)
	dst = appendPortsJSON(dst, "local_port", &k.Services, top)
	dst = append(dst, `,"remote_services":`...)
	dst = appendPortsJSON(dst, "remote_port", &k.Remotes, top)
	dst = appendProfileNumber(dst, "role_unknown", k.Unplaced)
	dst = append(dst, `,"owners":`...)
	return appendOwnersJSON(dst, &k.Owners, top)
}

// appendSamplingJSON appends nothing if there is a record of every connection.
func appendSamplingJSON(dst []byte, s *summary.Sampling) []byte {
	if len(s.Ratios) == 0 {
		return dst
	}
	dst = append(dst, `,"sampling":{"ratios":`...)
	dst = appendJSONList(dst, slices.Sorted(maps.Keys(s.Ratios)), func(dst []byte, ratio float64) []byte {
		dst = strconv.AppendFloat(append(dst, `{"sampling_ratio":`...), ratio, 'g', -1, 64)
		return append(appendProfileNumber(dst, "count", s.Ratios[ratio]), '}')
	})
	dst = appendProfileNumber(dst, "other_ratios", s.Others)
	dst = appendProfileNumber(dst, "not_sampled", s.All)
	if s.Estimate <= math.MaxFloat64 { // a log may say any ratio
		dst = strconv.AppendFloat(append(dst, `,"estimated_records":`...), math.Round(s.Estimate), 'g', -1, 64)
	}
	return append(dst, '}')
}

func appendDwellJSON(dst []byte, s tracer.State, d *summary.Dwell) []byte {
	dst = append(append(append(dst, `{"state":"`...), s.String()...), '"')
	dst = appendProfileNumber(dst, "count", d.Count)
	dst = appendProfileNumber(dst, "unknown", d.Unknown)
	if d.Count > 0 {
		for _, q := range reportQuantiles {
			dst = appendProfileNumber(dst, q.field, uint64(d.Quantile(q.q)))
		}
		dst = appendProfileNumber(dst, "max_ns", uint64(d.Max))
	}
	return append(dst, '}')
}

// endsOf returns the ways in which something has ended.
func endsOf(k *summary.Kind) (ways []summary.End) {
	for _, reason := range k.Ends() {
		for _, side := range summary.Sides {
			if way := (summary.End{Reason: reason, Side: side}); k.Ended(way) > 0 {
				ways = append(ways, way)
			}
		}
	}
	return ways
}

func appendEndJSON(dst []byte, way summary.End, n uint64) []byte {
	dst = append(dst, `{"count":`...)
	dst = strconv.AppendUint(dst, n, 10)
	if way.Reason != tracer.ReasonUnknown {
		dst = append(append(append(dst, `,"reason":"`...), way.Reason.String()...), '"')
	}
	if way.Side != tracer.SideUnknown {
		dst = append(append(append(dst, `,"side":"`...), way.Side.String()...), '"')
	}
	return append(dst, '}')
}

func appendPortsJSON(dst []byte, name string, t *summary.Top[uint16], top int) []byte {
	rows, others := t.First(top)
	dst = append(dst, `{"rows":`...)
	dst = appendJSONList(dst, rows, func(dst []byte, r summary.Row[uint16]) []byte {
		dst = strconv.AppendUint(append(append(append(dst, `{"`...), name...), `":`...), uint64(r.Key), 10)
		return append(appendProfileNumber(dst, "count", r.Count), '}')
	})
	return append(appendProfileNumber(dst, "others", others), '}')
}

func appendOwnersJSON(dst []byte, o *summary.Owners, top int) []byte {
	rows, others := o.First(top)
	dst = append(dst, `{"rows":`...)
	dst = appendJSONList(dst, rows, func(dst []byte, r summary.Row[string]) []byte {
		dst = append(dst, '{')
		if r.Key != "" {
			dst = append(appendJSONString(append(dst, `"comm":`...), []byte(r.Key)), ',')
		}
		dst = strconv.AppendUint(append(dst, `"count":`...), r.Count, 10)
		if r.Over > 0 {
			dst = appendProfileNumber(dst, "count_too_high_by_up_to", r.Over)
		}
		n, exact := o.Processes(r.Key)
		dst = appendProfileNumber(dst, "pids", uint64(n))
		if !exact {
			dst = append(dst, `,"pids_at_least":true`...)
		}
		return append(dst, '}')
	})
	dst = appendProfileNumber(dst, "others", others)
	return append(appendProfileNumber(dst, "unknown", o.Unknown), '}')
}
