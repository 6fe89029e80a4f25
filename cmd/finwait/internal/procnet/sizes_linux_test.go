package procnet

import (
	"os"
	"testing"

	"github.com/go-quicktest/qt"
)

// TestSizes has the sizes from each of the sources, which say the same.
func TestSizes(t *testing.T) {
	byTypes, err := typeSizes()
	qt.Assert(t, qt.IsNil(err))
	t.Logf("by types %+v", byTypes)
	qt.Check(t, qt.IsTrue(byTypes.TimeWait >= 128 && byTypes.TimeWait <= 1024))

	got, err := ReadSizes()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(timeWait(got), byTypes))
	if os.Geteuid() != 0 {
		t.Skip("the allocator tells root only")
	}
	qt.Check(t, qt.IsTrue(got.Bind > 0), qt.Commentf("%+v", got))
	bySLUB, err := slubSizes()
	qt.Assert(t, qt.IsNil(err))
	t.Logf("by SLUB %+v", bySLUB)
	qt.Check(t, qt.Equals(bySLUB, got))
	bySlabinfo, err := slabinfoSizes()
	qt.Assert(t, qt.IsNil(err))
	t.Logf("by slabinfo %+v", bySlabinfo)
	qt.Check(t, qt.Equals(timeWait(bySlabinfo), byTypes))
}

// timeWait is without what types do not tell.
func timeWait(s Sizes) Sizes { return Sizes{TimeWait: s.TimeWait, TimeWait6: s.TimeWait6} }

func BenchmarkSizes(b *testing.B) {
	for _, source := range []struct {
		name string
		read func() (Sizes, error)
	}{{"slub", slubSizes}, {"slabinfo", slabinfoSizes}, {"types", typeSizes}} {
		b.Run(source.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := source.read(); err != nil {
					b.Skip(err)
				}
			}
		})
	}
}
