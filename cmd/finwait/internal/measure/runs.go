package measure

import (
	"cmp"
	"slices"

	"github.com/finwait/finwait/tracer"
)

// since returns what the programs have done from before to after, without those
// that did nothing, the one that took most time first.
func since(before, after []tracer.ProgramStats) []tracer.ProgramStats {
	earlier := make(map[string]tracer.ProgramStats, len(before))
	for _, p := range before {
		earlier[p.Name] = p
	}
	var runs []tracer.ProgramStats
	for _, p := range after {
		p.Runs -= earlier[p.Name].Runs
		p.RunTime -= earlier[p.Name].RunTime
		p.RecursionMisses -= earlier[p.Name].RecursionMisses
		if p.Runs > 0 || p.RecursionMisses > 0 {
			runs = append(runs, p)
		}
	}
	slices.SortFunc(runs, func(a, b tracer.ProgramStats) int {
		return cmp.Or(cmp.Compare(b.RunTime, a.RunTime), cmp.Compare(a.Name, b.Name))
	})
	return runs
}
