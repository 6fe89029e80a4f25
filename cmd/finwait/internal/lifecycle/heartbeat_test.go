package lifecycle

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-quicktest/qt"
)

func TestHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHeartbeat(30 * time.Second)
		qt.Check(t, qt.IsNil(h.Check()))
		time.Sleep(30 * time.Second)
		qt.Check(t, qt.IsNil(h.Check()))
		time.Sleep(1500 * time.Millisecond)
		qt.Check(t, qt.ErrorMatches(h.Check(), "no progress for 31s"))
		h.Beat()
		qt.Check(t, qt.IsNil(h.Check()))
		time.Sleep(time.Minute)
		qt.Check(t, qt.ErrorMatches(h.Check(), "no progress for 1m0s"))
	})
}
