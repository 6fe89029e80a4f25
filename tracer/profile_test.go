package tracer

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
)

func histogramOf(times ...time.Duration) (h Histogram) {
	for _, d := range times {
		h.Add(d)
	}
	return h
}

// addedTo returns the only bucket that the time is in.
func addedTo(t *testing.T, d time.Duration) int {
	t.Helper()
	h := histogramOf(d)
	qt.Assert(t, qt.Equals(h.Count(), 1))
	return slices.Index(h.Buckets[:], 1)
}

// bucketEdges are times at the edges of buckets, by bucket.
var bucketEdges = map[time.Duration]int{
	0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 7: 2, 8: 3, 953: 9, 954: 10,
	time.Second/2 - 1: 28, time.Second / 2: 29, time.Second - 1: 29, time.Second: 30,
	time.Second<<32 - 1: 61, time.Second << 32: 62,
	50 * time.Millisecond: 25, time.Minute: 35, math.MaxInt64: 63,
}

func TestBuckets(t *testing.T) {
	for d, want := range bucketEdges {
		i := addedTo(t, d)
		qt.Check(t, qt.Equals(i, want), qt.Commentf("%d ns", d))
		low, high := BucketBounds(i)
		qt.Check(t, qt.IsTrue(low <= d && d <= high), qt.Commentf("%d ns in %d to %d", d, low, high))
	}
	for i := 1; i < NumBuckets-1; i++ {
		_, before := BucketBounds(i - 1)
		low, _ := BucketBounds(i)
		qt.Check(t, qt.Equals(low, before+1))
	}
}

func TestQuantile(t *testing.T) {
	for _, test := range []struct {
		name  string
		times []time.Duration
		q     float64
		want  time.Duration
	}{
		{"none", nil, 0.5, 0},
		{"one", []time.Duration{100}, 0, 60},
		{"one, up to the longest", []time.Duration{100}, 1, 100},
		{"half of a bucket", []time.Duration{100, 100}, 0.5, 80},
		{"between buckets", []time.Duration{3, 1000}, 0.5, 3},
		{"the longest", []time.Duration{3, 1000}, 1, 1000},
		{"a full bucket below", []time.Duration{4, 4, 4, 1000}, 0.75, 7},
		{"less than nothing", []time.Duration{4}, -1, 4},
		{"more than all", []time.Duration{4}, 2, 4},
	} {
		h := histogramOf(test.times...)
		qt.Check(t, qt.Equals(h.Quantile(test.q), test.want), qt.Commentf("%s", test.name))
	}
}

// An estimate is between half of the true quantile and twice that, and none
// exceeds the longest time.
func TestQuantileError(t *testing.T) {
	var h Histogram
	var times []time.Duration
	for range 10_007 {
		d := 2 + time.Duration(math.Exp(rand.Float64()*25))
		times = append(times, d)
		h.Add(d)
	}
	slices.Sort(times)
	for _, q := range []float64{0.001, 0.5, 0.9, 0.99, 0.999, 1} {
		got, want := h.Quantile(q), times[max(int(math.Ceil(q*float64(len(times))))-1, 0)]
		qt.Check(t, qt.IsTrue(got <= 2*want && 2*got >= want), qt.Commentf("%g: %v, true %v", q, got, want))
		qt.Check(t, qt.IsTrue(got <= h.Max))
	}
}

func TestMeanAndSum(t *testing.T) {
	var none Histogram
	qt.Check(t, qt.Equals(none.Mean(), 0))
	h := histogramOf(time.Second, 3*time.Second)
	qt.Check(t, qt.Equals(h.Mean(), 2*time.Second))
	qt.Check(t, qt.Equals(h.Seconds(), 4))
	// The sum of these takes more than 64 bits.
	h = histogramOf(math.MaxInt64, math.MaxInt64, math.MaxInt64, math.MaxInt64)
	qt.Check(t, qt.Equals(h.Mean(), math.MaxInt64))
	qt.Check(t, qt.Equals(h.Seconds(), 4*float64(math.MaxInt64)/1e9))
	back := h.Sub(new(histogramOf(math.MaxInt64, math.MaxInt64, math.MaxInt64)))
	qt.Check(t, qt.Equals(back.Mean(), math.MaxInt64))
}

func TestHistogramSub(t *testing.T) {
	before := histogramOf(5, 1000)
	before.Unknown = 2
	after := before
	after.Add(100)
	after.Unknown = 5
	diff := after.Sub(&before)
	qt.Check(t, qt.Equals(diff.Count(), 1))
	qt.Check(t, qt.Equals(diff.Unknown, 3))
	qt.Check(t, qt.Equals(diff.Mean(), 100))
	qt.Check(t, qt.Equals(diff.Max, 119), qt.Commentf("the longest was before"))
	after.Add(2000)
	qt.Check(t, qt.Equals(after.Sub(&before).Max, 2000))
	again := after.Sub(&after)
	qt.Check(t, qt.IsTrue(again.empty()))
	qt.Check(t, qt.Equals(again.Max, 0))
}

func TestProfileSub(t *testing.T) {
	web := ProfileKey{StateCloseWait, GroupOne, 80}
	mail := ProfileKey{StateCloseWait, GroupOne, 25}
	before := &Profile{By: ProfileByService, Rows: []ProfileRow{{Key: web, Histogram: histogramOf(1)}, {Key: mail, Histogram: histogramOf(1)}}}
	after := &Profile{By: ProfileByService, Rows: []ProfileRow{
		{Key: web, Histogram: histogramOf(1, 1)},
		{Key: mail, Histogram: histogramOf(1)},
		{Key: ProfileKey{StateListen, GroupOne, 25}, Histogram: Histogram{Unknown: 1}},
	}}
	diff := after.Sub(before)
	qt.Assert(t, qt.HasLen(diff.Rows, 2))
	qt.Check(t, qt.Equals(diff.Rows[0].Key, web))
	qt.Check(t, qt.Equals(diff.Rows[0].Count(), 1))
	count, unknown := diff.Total()
	qt.Check(t, qt.Equals(count, 1))
	qt.Check(t, qt.Equals(unknown, 1))
	qt.Check(t, qt.HasLen(after.Sub(after).Rows, 0))
	qt.Check(t, qt.HasLen(after.Sub(&Profile{}).Rows, 3))
}

func TestProfileDimensions(t *testing.T) {
	for d := range ProfileDimension(numProfileDimensions) {
		parsed, err := ParseProfileDimension(d.String())
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.Equals(parsed, d))
	}
	_, err := ParseProfileDimension("colour")
	qt.Assert(t, qt.ErrorMatches(err, `unknown dimension "colour" .*`))
	err = (&Options{Profile: &ProfileOptions{By: numProfileDimensions}}).validate()
	qt.Assert(t, qt.ErrorMatches(err, "unknown profile dimension 5"))
}

// The order in which histograms are merged is the same, to the last bit of the sum.
func TestHistogramMerge(t *testing.T) {
	var rows []Histogram
	for i := range 1000 {
		var h Histogram
		h.Add(time.Duration(i*7919) + time.Duration(i)*time.Hour)
		h.Add(math.MaxInt64)
		h.Unknown = uint64(i)
		rows = append(rows, h)
	}
	merge := func() (all Histogram) {
		for i := range rows {
			all.Merge(&rows[i])
		}
		return all
	}
	all := merge()
	qt.Check(t, qt.Equals(all.Count(), 2000))
	qt.Check(t, qt.Equals(all.Unknown, 999*1000/2))
	qt.Check(t, qt.Equals(all.Max, math.MaxInt64))
	qt.Check(t, qt.IsTrue(all.sumHigh > 0))
	slices.Reverse(rows)
	qt.Check(t, qt.Equals(merge(), all))
}
