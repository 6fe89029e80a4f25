package doctor

import (
	"strconv"

	"github.com/finwait/finwait/cmd/finwait/internal/observe"
)

// eachNetns makes the find of a rule that looks at one network namespace at a time.
func eachNetns(find func(*observe.Host, *observe.Netns) []Finding) func(*observe.Host) []Finding {
	return func(h *observe.Host) (all []Finding) {
		for i := range h.Namespaces {
			n := &h.Namespaces[i]
			for _, f := range find(h, n) {
				f.Netns = n
				all = append(all, f)
			}
		}
		return all
	}
}

// number returns n as people read it: 131,072.
func number(n uint64) string {
	text := strconv.FormatUint(n, 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// rate returns how many a second: 0.3, 12, 10,013.
func rate(perSecond float64) string {
	if perSecond < 10 {
		return strconv.FormatFloat(perSecond, 'f', 1, 64)
	}
	return number(uint64(perSecond + 0.5))
}

// bytes returns a size as people read it: 250 B, 33 MB.
func bytes(n uint64) string {
	if n < 1000 {
		return number(n) + " B"
	}
	size, unit := float64(n), "B"
	for _, next := range []string{"kB", "MB", "GB", "TB"} {
		if size < 1000 {
			break
		}
		size, unit = size/1000, next
	}
	return rate(size) + " " + unit
}
