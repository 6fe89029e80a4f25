package doctor

import (
	"github.com/finwait/finwait/cmd/finwait/internal/observe"
	"github.com/finwait/finwait/cmd/finwait/internal/prose"
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
func number(n uint64) string { return prose.Number(n) }

// rate returns how many a second: 0.3, 12, 10,013.
func rate(perSecond float64) string { return prose.Rate(perSecond) }
