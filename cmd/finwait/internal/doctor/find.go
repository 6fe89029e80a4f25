package doctor

import "github.com/finwait/finwait/cmd/finwait/internal/observe"

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
