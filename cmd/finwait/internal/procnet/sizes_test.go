package procnet

import (
	"errors"
	"io/fs"
	"testing"

	"github.com/go-quicktest/qt"
)

const slabinfoText = `slabinfo - version: 2.1
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> <batchcount> <sharedfactor>
tw_sock_TCPv6        112    176    264   16    1 : tunables    0    0    0 : slabdata     11     11      0
tw_sock_TCP        77120  77120    256   16    1 : tunables    0    0    0 : slabdata   4820   4820      0
`

func TestSlabSize(t *testing.T) {
	for _, test := range []struct {
		name, text, cache string
		want              uint64
		err               error // nil: any, if want is 0
	}{
		{"IPv4", slabinfoText, "tw_sock_TCP", 256, nil},
		{"IPv6", slabinfoText, "tw_sock_TCPv6", 264, nil},
		{"merged", slabinfoText, "tcp_bind_bucket", 0, fs.ErrNotExist},
		{"too short", "tw_sock_TCP 1 2\n", "tw_sock_TCP", 0, fs.ErrNotExist},
		{"words", "tw_sock_TCP a b c\n", "tw_sock_TCP", 0, nil},
		{"nothing", "", "tw_sock_TCP", 0, fs.ErrNotExist},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := slabSize(test.text, test.cache)
			qt.Check(t, qt.Equals(got, test.want))
			qt.Check(t, qt.Equals(err == nil, test.want != 0))
			if test.err != nil {
				qt.Check(t, qt.ErrorIs(err, test.err))
			}
		})
	}
}

func TestSizesBy(t *testing.T) {
	of := func(sizes map[string]uint64, other error) func(string) (uint64, error) {
		return func(cache string) (uint64, error) {
			if n, known := sizes[cache]; known {
				return n, nil
			}
			return 0, other
		}
	}
	s, err := sizesBy(of(map[string]uint64{"tw_sock_TCP": 1, "tw_sock_TCPv6": 2, "tcp_bind_bucket": 3, "tcp_bind2_bucket": 4}, nil))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(s, Sizes{TimeWait: 1, TimeWait6: 2, Bind: 3, Bind2: 4}))

	s, err = sizesBy(of(map[string]uint64{"tw_sock_TCP": 1}, fs.ErrNotExist))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(s, Sizes{TimeWait: 1}))

	s, err = sizesBy(of(map[string]uint64{"tw_sock_TCPv6": 2}, fs.ErrNotExist))
	qt.Check(t, qt.IsNotNil(err))
	qt.Check(t, qt.Equals(s, Sizes{}))

	denied := errors.New("denied")
	s, err = sizesBy(of(map[string]uint64{"tw_sock_TCP": 1}, denied))
	qt.Check(t, qt.ErrorIs(err, denied))
	qt.Check(t, qt.Equals(s, Sizes{}))
}

// FuzzSlabSize expects an error and no size, or the same size where more follows.
func FuzzSlabSize(f *testing.F) {
	f.Add(slabinfoText, "tw_sock_TCP")
	f.Add("a b c 5\na b c d\n", "a")
	f.Fuzz(func(t *testing.T, text, cache string) {
		n, err := slabSize(text, cache)
		if err != nil {
			qt.Assert(t, qt.Equals(n, 0))
			return
		}
		again, err := slabSize(text+"\n"+cache+" 1 2 x\n", cache)
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.Equals(again, n))
	})
}
