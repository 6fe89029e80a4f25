package tracer

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"time"
)

// ProfileOptions asks for histograms of how long sockets stay in each state.
// The kernel keeps them; they are read with [Tracer.Profile].
type ProfileOptions struct {
	// Unfiltered has them have all transitions. Default those that pass
	// Options.Filter, but for its Sample.
	Unfiltered bool

	// By is what there is a histogram of in each state. Default
	// ProfileByService.
	By ProfileDimension

	rows int // that the kernel has room for; 0 for maxProfileRows
}

// maxProfileRows is how many histograms there can be, of 560 bytes each.
const maxProfileRows = 8192

// ProfileDimension is what each histogram of a [Profile] is about, besides its
// state.
type ProfileDimension uint8

// The dimensions.
const (
	// ProfileByService is by local port, of the sockets that came out of a
	// listener, and of listeners. Those that have called connect are together
	// in GroupClients, since the kernel chose their ports. Those that were open
	// when the tracer began are in GroupUnknown: which side they are is not
	// known, and the local port alone does not tell.
	ProfileByService ProfileDimension = iota
	// ProfileByRemotePort is by remote port, of the sockets that have called
	// connect. Listeners and what came out of them are in GroupServers, those
	// that were open when the tracer began in GroupUnknown.
	ProfileByRemotePort
	// ProfileByCgroup is by the id of the owner's cgroup (version 2).
	ProfileByCgroup
	// ProfileByProcess is by the owner's process id. An id that is used again
	// goes on in the same histogram, under its first name.
	ProfileByProcess
	// ProfileByState is one histogram for each state.
	ProfileByState

	numProfileDimensions = iota
)

var profileDimensionNames = [numProfileDimensions]string{"service", "remote-port", "cgroup", "process", "state"}

// String returns the dimension as the command has it, such as "service".
func (d ProfileDimension) String() string { return nameOf(profileDimensionNames[:], uint8(d)) }

// ParseProfileDimension returns the dimension of that name.
func ParseProfileDimension(name string) (ProfileDimension, error) {
	if i := slices.Index(profileDimensionNames[:], name); i >= 0 {
		return ProfileDimension(i), nil
	}
	return 0, fmt.Errorf("unknown dimension %q (want service, remote-port, cgroup, process or state)", name)
}

// ProfileGroup says whose dwell times are in a histogram.
type ProfileGroup uint8

// The groups. The numbers are those of enum finwait_profile_group in
// bpf/finwait.h.
const (
	// GroupOne is the sockets of the one port, cgroup or process that Value
	// names; all sockets, if by state.
	GroupOne ProfileGroup = iota
	// GroupClients is, by service, the sockets that have called connect.
	GroupClients
	// GroupServers is, by remote port, the sockets that have not.
	GroupServers
	// GroupUnknown is the sockets of which it is not known where they belong.
	GroupUnknown
	// GroupOthers is the sockets that belong into a histogram for which there
	// was no room: Ledger.ProfileFull.
	GroupOthers
)

var profileGroupNames = [...]string{"one", "clients", "servers", "unknown", "others"}

// String returns "one", "clients", "servers", "unknown" or "others".
func (g ProfileGroup) String() string { return nameOf(profileGroupNames[:], uint8(g)) }

// ProfileKey is what a histogram is about.
type ProfileKey struct {
	State State
	Group ProfileGroup
	// Value is the port, cgroup id or process id, if Group is GroupOne.
	Value uint64
}

// ProfileRow is the histogram of the times that sockets have stayed in
// Key.State, each counted when the socket left it.
type ProfileRow struct {
	Key ProfileKey
	Histogram

	comm [16]byte
}

// Comm returns the name of the process, if the profile is by process. The
// process chose it: it may hold any byte. The slice is valid as long as r.
func (r *ProfileRow) Comm() []byte {
	if n := bytes.IndexByte(r.comm[:], 0); n >= 0 {
		return r.comm[:n]
	}
	return r.comm[:]
}

// SetComm sets the name that Comm returns, cut to 15 bytes. It is for tests.
func (r *ProfileRow) SetComm(name string) {
	r.comm = [16]byte{}
	copy(r.comm[:len(r.comm)-1], name)
}

// Profile is how long sockets have stayed in each state since the tracer was
// attached. There is nothing about StateClose: who leaves it was not there.
type Profile struct {
	// Time is when it was read, and Since when the histograms began, both in UTC.
	// Since is before the tracer was attached if they are inherited (see
	// Options.PinPath).
	Time, Since time.Time

	By ProfileDimension
	// Rows are those in which something has been counted, by state and value.
	Rows []ProfileRow
}

// Sub returns what has been added since earlier, a profile of the same tracer.
func (p *Profile) Sub(earlier *Profile) *Profile {
	before := make(map[ProfileKey]*Histogram, len(earlier.Rows))
	for i := range earlier.Rows {
		before[earlier.Rows[i].Key] = &earlier.Rows[i].Histogram
	}
	diff := &Profile{Time: p.Time, Since: earlier.Time, By: p.By}
	for i := range p.Rows {
		row := p.Rows[i]
		if h := before[row.Key]; h != nil {
			row.Histogram = row.Sub(h)
		}
		if !row.empty() {
			diff.Rows = append(diff.Rows, row)
		}
	}
	return diff
}

// Total returns the sum of all rows: how many times were measured, and of how
// many transitions the time is not known.
func (p *Profile) Total() (count, unknown uint64) {
	for i := range p.Rows {
		count += p.Rows[i].Count()
		unknown += p.Rows[i].Unknown
	}
	return count, unknown
}

func (p *Profile) sort() {
	slices.SortFunc(p.Rows, func(a, b ProfileRow) int {
		return cmp.Or(
			cmp.Compare(a.Key.State, b.Key.State),
			cmp.Compare(a.Key.Group, b.Key.Group),
			cmp.Compare(a.Key.Value, b.Key.Value),
		)
	})
}

// NumBuckets is the number of buckets of a [Histogram].
const NumBuckets = 64

// Histogram counts times by powers of two of a second, as Prometheus' native
// histograms (schema 0) and OpenTelemetry's exponential ones (scale 0) do.
type Histogram struct {
	// Buckets counts the times: see BucketBounds.
	Buckets [NumBuckets]uint64
	// Unknown is the number of transitions of which the time is not known,
	// such as the first that is seen of a socket. They are in no bucket.
	Unknown uint64
	// Max is the longest time. Of what Sub returns it may be less exact: no
	// time was longer.
	Max time.Duration

	sumHigh, sumLow uint64 // nanoseconds
}

// SecondBucket is the number of the bucket that begins with a second: Buckets[i]
// begins with 2^(i-SecondBucket) seconds.
const SecondBucket = 30

// BucketBounds returns the shortest and the longest time in Buckets[i]: from
// 2^(i-30) seconds to less than twice as long, in whole nanoseconds, and from 0 in
// the first.
func BucketBounds(i int) (shortest, longest time.Duration) {
	longest = math.MaxInt64
	if i+1 < NumBuckets {
		longest = bucketStart(i+1) - 1
	}
	if i > 0 {
		shortest = bucketStart(i)
	}
	return shortest, longest
}

// bucketStart returns the shortest time of whole nanoseconds in that bucket.
func bucketStart(i int) time.Duration {
	if i >= SecondBucket {
		return time.Second << (i - SecondBucket)
	}
	return (time.Second<<i + 1<<SecondBucket - 1) >> SecondBucket
}

// bucketOf returns the bucket of a time: profile_bucket of bpf/profile.h.
func bucketOf(d time.Duration) int {
	i := max(bits.Len64(uint64(d)), 1) - 1
	if i+1 < NumBuckets && d >= bucketStart(i+1) {
		i++
	}
	return i
}

// Count returns the number of times in the histogram.
func (h *Histogram) Count() (n uint64) {
	for _, b := range h.Buckets {
		n += b
	}
	return n
}

// Seconds returns the sum of all times, in seconds.
func (h *Histogram) Seconds() float64 {
	return (float64(h.sumHigh)*0x1p64 + float64(h.sumLow)) / float64(time.Second)
}

// Mean returns the mean of all times, 0 if there are none.
func (h *Histogram) Mean() time.Duration {
	count := h.Count()
	if count <= h.sumHigh { // there are none; else a time is at most 64 bits
		return 0
	}
	mean, _ := bits.Div64(h.sumHigh, h.sumLow, count)
	return time.Duration(min(mean, math.MaxInt64))
}

// Quantile returns the time that a share q of all times does not exceed, such
// as the median for 0.5; 0 if there are none. It is an estimate: the bucket is
// exact, and within the bucket, or up to Max, the times are taken to be spread
// evenly. So it is less than twice the true one, and more than half of it.
func (h *Histogram) Quantile(q float64) time.Duration {
	rank := min(max(q, 0), 1) * float64(h.Count())
	before, last := 0.0, -1
	for i, n := range h.Buckets {
		if n == 0 {
			continue
		}
		last = i
		if before+float64(n) >= rank {
			return h.within(i, (rank-before)/float64(n))
		}
		before += float64(n)
	}
	if last < 0 {
		return 0
	}
	return h.within(last, 1) // the sum has been rounded
}

// within returns the time at a share of the bucket.
func (h *Histogram) within(i int, share float64) time.Duration {
	low, high := BucketBounds(i)
	high = max(low, min(high, h.Max))
	return low + time.Duration(share*float64(high-low))
}

// Sub returns what has been added since earlier, a state of the same histogram.
func (h *Histogram) Sub(earlier *Histogram) Histogram {
	d := *h
	for i := range d.Buckets {
		d.Buckets[i] -= earlier.Buckets[i]
	}
	d.Unknown -= earlier.Unknown
	var borrow uint64
	d.sumLow, borrow = bits.Sub64(h.sumLow, earlier.sumLow, 0)
	d.sumHigh, _ = bits.Sub64(h.sumHigh, earlier.sumHigh, borrow)
	if h.Max <= earlier.Max { // the longest time is an older one
		d.Max = min(h.Max, d.longest())
	}
	return d
}

// longest returns the upper bound of the highest bucket that has something.
func (h *Histogram) longest() (bound time.Duration) {
	for i, n := range h.Buckets {
		if n > 0 {
			_, bound = BucketBounds(i)
		}
	}
	return bound
}

// Merge adds what another histogram has. No sum is rounded, so that the order in which
// several are merged is the same.
func (h *Histogram) Merge(other *Histogram) {
	for i, n := range other.Buckets {
		h.Buckets[i] += n
	}
	h.Unknown += other.Unknown
	h.Max = max(h.Max, other.Max)
	var carry uint64
	h.sumLow, carry = bits.Add64(h.sumLow, other.sumLow, 0)
	h.sumHigh += other.sumHigh + carry
}

// Add counts one time, of what is not a tracer's: those histograms are the kernel's.
func (h *Histogram) Add(d time.Duration) {
	ns := uint64(max(d, 0))
	h.Buckets[bucketOf(max(d, 0))]++
	h.Max = max(h.Max, d)
	var carry uint64
	h.sumLow, carry = bits.Add64(h.sumLow, ns, 0)
	h.sumHigh += carry
}

func (h *Histogram) empty() bool { return h.Unknown == 0 && h.Count() == 0 }
