package metrics

import (
	"math"
	"testing"

	"github.com/go-quicktest/qt"
	dto "github.com/prometheus/client_model/go"

	"github.com/finwait/finwait/tracer"
)

// TestBounds holds the powers of two of a second to where the tracer's buckets are.
func TestBounds(t *testing.T) {
	for i := 10; i < 62; i++ { // no duration is as long as the others
		shortest, _ := tracer.BucketBounds(i + 1)
		qt.Check(t, qt.Equals(math.Round(math.Log2(shortest.Seconds())), float64(bound(i))), qt.Commentf("bucket %d", i))
	}
}

func TestDwell(t *testing.T) {
	families := gather(t, newTestCollector(fullSource(), Options{}))
	// 40 µs, 3 ms, 1.5 s and 100 h: see the classic buckets in full.golden.
	h := find(t, families["finwait_dwell_seconds"], "established").GetHistogram()
	qt.Check(t, qt.Equals(h.GetSampleCount(), 4))
	qt.Check(t, qt.Equals(h.GetSampleSum(), 360001.50304))
	qt.Check(t, qt.Equals(h.GetSchema(), 0))
	qt.Check(t, qt.Equals(h.GetZeroThreshold(), 0x1p-29))
	qt.Check(t, qt.Equals(h.GetZeroCount(), 0))
	qt.Check(t, qt.DeepEquals(nativeBuckets(h), map[float64]int64{0x1p-14: 1, 0x1p-8: 1, 0x1p1: 1, 0x1p19: 1}))
	qt.Check(t, qt.DeepEquals(classicBuckets(h), map[float64]uint64{
		0x1p-16: 0, 0x1p-14: 1, 0x1p-12: 1, 0x1p-10: 1, 0x1p-8: 2, 0x1p-6: 2, 0x1p-4: 2, 0x1p-2: 2,
		0x1p0: 2, 0x1p2: 3, 0x1p4: 3, 0x1p6: 3, 0x1p8: 3, 0x1p10: 3, 0x1p12: 3, 0x1p14: 3, 0x1p16: 3,
	}))

	h = find(t, families["finwait_dwell_seconds"], "time_wait").GetHistogram()
	qt.Check(t, qt.DeepEquals(nativeBuckets(h), map[float64]int64{64: 2}))
	qt.Check(t, qt.Equals(h.GetSampleSum(), 120))
	qt.Check(t, qt.Equals(find(t, families["finwait_dwell_unknown_total"], "time_wait").GetCounter().GetValue(), 5))
}

// nativeBuckets returns the buckets that are not empty, by their upper bounds.
func nativeBuckets(h *dto.Histogram) map[float64]int64 {
	buckets := map[float64]int64{}
	var (
		n      int64
		number int32
		deltas = h.GetPositiveDelta()
	)
	for _, span := range h.GetPositiveSpan() {
		number += span.GetOffset()
		for range span.GetLength() {
			n += deltas[0]
			deltas = deltas[1:]
			if n > 0 {
				buckets[math.Pow(math.Pow(2, math.Pow(2, float64(-h.GetSchema()))), float64(number))] = n
			}
			number++
		}
	}
	return buckets
}

func classicBuckets(h *dto.Histogram) map[float64]uint64 {
	buckets := map[float64]uint64{}
	for _, b := range h.GetBucket() {
		buckets[b.GetUpperBound()] = b.GetCumulativeCount()
	}
	return buckets
}

// TestEveryBucket puts one into each bucket of the kernel, and finds each again.
func TestEveryBucket(t *testing.T) {
	var h tracer.Histogram
	for i := range h.Buckets {
		h.Buckets[i] = uint64(i + 1)
	}
	var out dto.Metric
	qt.Assert(t, qt.IsNil((&dwellMetric{times: &h}).Write(&out)))
	got := out.GetHistogram()
	qt.Check(t, qt.Equals(got.GetSampleCount(), 64*65/2))
	qt.Check(t, qt.Equals(got.GetZeroCount(), 1))
	native := nativeBuckets(got)
	qt.Assert(t, qt.HasLen(native, tracer.NumBuckets-1))
	sum := got.GetZeroCount()
	for i := 1; i < tracer.NumBuckets; i++ {
		n := native[math.Ldexp(1, bound(i))]
		qt.Check(t, qt.Equals(n, int64(i+1)), qt.Commentf("bucket %d", i))
		sum += uint64(n)
		if cumulative, is := classicBuckets(got)[math.Ldexp(1, bound(i))]; is {
			qt.Check(t, qt.Equals(cumulative, sum), qt.Commentf("bucket %d", i))
		}
	}
}
