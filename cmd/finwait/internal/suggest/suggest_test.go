package suggest

import (
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

var names = []string{"close-wait-leak", "time-wait-large", "time-wait-limit", "log"}

func TestNearest(t *testing.T) {
	for written, want := range map[string]string{
		"close-wait-leek":     "close-wait-leak",
		"CLOSE_WAIT_LEAK":     "close-wait-leak",
		"time-wait-larg":      "time-wait-large",
		"timewait-limit":      "time-wait-limit",
		"lg":                  "log",
		"xyz":                 "",
		"":                    "",
		"something else":      "",
		"\x1b[31mclose-w\xff": "",
	} {
		qt.Check(t, qt.Equals(Nearest(names, written), want), qt.Commentf("%q", written))
	}
	qt.Check(t, qt.Equals(Nearest(names, strings.Repeat("close-wait-leak", 1<<20)), ""))
}

func TestContaining(t *testing.T) {
	qt.Check(t, qt.DeepEquals(Containing(names, "TIME_WAIT"), []string{"time-wait-large", "time-wait-limit"}))
	qt.Check(t, qt.DeepEquals(Containing(names, "wa"), nil))
	qt.Check(t, qt.DeepEquals(Containing(names, "xyz"), nil))
}
