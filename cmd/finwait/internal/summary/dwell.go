package summary

import (
	"math"
	"math/bits"
	"time"
)

// The buckets are exact below 256 ns, and from there on each power of two is in 128
// parts.
const (
	subBits    = 7
	subBuckets = 1 << subBits
	numBuckets = (63-subBits)*subBuckets + subBuckets
)

// RelativeError is by how much a quantile may differ from the true one, as a share
// of it.
const RelativeError = 1.0 / (2 * subBuckets)

// Dwell is the times that were spent in one state.
type Dwell struct {
	Count uint64
	// Unknown is the number of stays of which the time is not known.
	Unknown uint64
	// Min and Max are the shortest and the longest time, exactly.
	Min, Max time.Duration

	buckets [numBuckets]uint64
}

func (d *Dwell) add(t time.Duration) {
	t = max(t, 0)
	if d.Min = min(d.Min, t); d.Count == 0 {
		d.Min = t
	}
	d.Count++
	d.Max = max(d.Max, t)
	d.buckets[bucketOf(uint64(t))]++
}

// Quantile returns the time that a share q of all times does not exceed, within
// RelativeError; 0 if there are none.
func (d *Dwell) Quantile(q float64) time.Duration {
	rank := uint64(math.Ceil(min(max(q, 0), 1) * float64(d.Count)))
	var sum uint64
	for i, n := range d.buckets {
		if sum += n; n > 0 && sum >= rank {
			return min(max(middleOf(i), d.Min), d.Max)
		}
	}
	return d.Max
}

func bucketOf(ns uint64) int {
	if ns < 2*subBuckets {
		return int(ns)
	}
	shift := bits.Len64(ns) - subBits - 1
	return shift<<subBits + int(ns>>shift)
}

func middleOf(bucket int) time.Duration {
	if bucket < 2*subBuckets {
		return time.Duration(bucket)
	}
	shift := bucket>>subBits - 1
	return time.Duration(bucket-shift<<subBits)<<shift + (1<<shift-1)/2
}
