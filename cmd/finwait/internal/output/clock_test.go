package output

import (
	"math"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
)

// The clock remembers a second, and must not take it for another.
func TestClock(t *testing.T) {
	times := []time.Time{
		time.Unix(0, 0), // what an empty clock seems to remember
		testTime,
		testTime.Add(time.Nanosecond),
		testTime.Truncate(time.Second),
		testTime.Truncate(time.Second).Add(-1), // events of several CPUs may be out of order
		testTime.Truncate(time.Second).Add(time.Second - 1),
		testTime.In(time.FixedZone("", 3600)),
		time.Date(2026, 12, 31, 23, 59, 59, 999_999_999, time.UTC),
		time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC),
		time.Unix(-1, 1),
		time.Date(1, 1, 1, 0, 0, 0, 1, time.UTC),
		time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC),
		time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC),
		time.Unix(math.MaxInt64, 0),
		time.Unix(math.MinInt64, 0),
		testTime,
	}
	var c clock
	for _, at := range times {
		want := at.UTC().Format("2006-01-02T15:04:05.000000000Z")
		for range 2 {
			qt.Check(t, qt.Equals(string(c.append(nil, at)), want))
		}
		qt.Check(t, qt.Equals(string(appendTime(nil, at)), want))
	}
}
