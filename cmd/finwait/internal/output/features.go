package output

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/finwait/finwait/cmd/finwait/internal/measure"
	"github.com/finwait/finwait/tracer"
)

// Features is what there is to say about a host.
type Features struct {
	Host *tracer.Features
	// Costs has what the tiers that can be used cost. It lacks those that
	// were not measured.
	Costs []TierCost
	// NotMeasured is why nothing was measured, empty if something was, or
	// was to be.
	NotMeasured string
}

// TierCost is what one tier costs.
type TierCost struct {
	Evidence tracer.Evidence
	// Cost is nil if Err says why it could not be measured.
	Cost *measure.Cost
	Err  error
}

func (f *Features) cost(evidence tracer.Evidence) *TierCost {
	for i := range f.Costs {
		if f.Costs[i].Evidence == evidence {
			return &f.Costs[i]
		}
	}
	return nil
}

// AppendFeaturesJSON appends f as one JSON object and a newline. What is not
// known is absent. Fields may be added; these keep name and meaning:
//
//	release, machine     as uname -r and uname -m print them
//	tracing              whether finwait trace works here
//	tracing_error        why not
//	evidence             what it takes: probe or timer
//	counting             whether finwait count works here
//	counting_error       why not
//	btf, btf_bytes       whether the kernel has BTF, and of what size
//	socket_cookie        whether tracing programs may ask for a socket's cookie
//	lockdown             none, integrity or confidentiality
//	kptr_restrict        the setting
//	symbols_shown        whether kallsyms shows addresses
//	initial_user_ns      whether finwait runs in the initial user namespace
//	capabilities         each with name, effective and purpose
//	tiers                each with evidence, usable, error, chosen, start_ns (time to
//	                     load and attach), missing (name and function of each
//	                     program that it does without), cost and cost_error
//
// and those of cost:
//
//	programs             number of programs
//	map_bytes            kernel memory of all maps
//	run_error            why the run time was not measured
//	connections          number of connections made to measure it
//	transitions          number of transitions seen meanwhile
//	run_time_ns          run time of all programs meanwhile
//	ns_per_transition    that, for each transition
//	program_runs         each program that ran, with name, attached_to, runs,
//	                     run_time_ns and recursion_misses
func AppendFeaturesJSON(dst []byte, f *Features) []byte {
	line, err := json.Marshal(newFeaturesRecord(f))
	if err != nil {
		panic(err) // nothing in a record can be refused
	}
	return append(append(dst, line...), '\n')
}

// jsonText is text that the kernel or a process has written.
type jsonText string

// MarshalJSON escapes what encoding/json would let onto a terminal.
func (s jsonText) MarshalJSON() ([]byte, error) { return appendJSONString(nil, []byte(s)), nil }

type featuresRecord struct {
	Release       jsonText           `json:"release,omitempty"`
	Machine       jsonText           `json:"machine,omitempty"`
	Tracing       bool               `json:"tracing"`
	TracingError  jsonText           `json:"tracing_error,omitempty"`
	Evidence      string             `json:"evidence,omitempty"`
	Counting      bool               `json:"counting"`
	CountingError jsonText           `json:"counting_error,omitempty"`
	BTF           bool               `json:"btf"`
	BTFBytes      int64              `json:"btf_bytes,omitempty"`
	SocketCookie  *bool              `json:"socket_cookie,omitempty"`
	Lockdown      jsonText           `json:"lockdown,omitempty"`
	KptrRestrict  *int               `json:"kptr_restrict,omitempty"`
	SymbolsShown  *bool              `json:"symbols_shown,omitempty"`
	InitialUserNS *bool              `json:"initial_user_ns,omitempty"`
	Capabilities  []capabilityRecord `json:"capabilities"`
	Tiers         []tierRecord       `json:"tiers"`
}

type capabilityRecord struct {
	Name      string `json:"name"`
	Effective bool   `json:"effective"`
	Purpose   string `json:"purpose"`
}

type tierRecord struct {
	Evidence  string          `json:"evidence"`
	Usable    bool            `json:"usable"`
	Error     jsonText        `json:"error,omitempty"`
	Chosen    bool            `json:"chosen"`
	StartNS   int64           `json:"start_ns,omitempty"`
	Missing   []missingRecord `json:"missing,omitempty"`
	Cost      *costRecord     `json:"cost,omitempty"`
	CostError jsonText        `json:"cost_error,omitempty"`
}

type missingRecord struct {
	Name     string `json:"name"`
	Function string `json:"function"`
}

type costRecord struct {
	Programs        int         `json:"programs"`
	MapBytes        *uint64     `json:"map_bytes,omitempty"`
	RunError        jsonText    `json:"run_error,omitempty"`
	Connections     int         `json:"connections,omitempty"`
	Transitions     uint64      `json:"transitions,omitempty"`
	RunTimeNS       int64       `json:"run_time_ns,omitempty"`
	NSPerTransition int64       `json:"ns_per_transition,omitempty"`
	ProgramRuns     []runRecord `json:"program_runs,omitempty"`
}

type runRecord struct {
	Name            string `json:"name"`
	AttachedTo      string `json:"attached_to"`
	Runs            uint64 `json:"runs"`
	RunTimeNS       int64  `json:"run_time_ns"`
	RecursionMisses uint64 `json:"recursion_misses"`
}

func newFeaturesRecord(f *Features) *featuresRecord {
	host := f.Host
	r := &featuresRecord{
		Release:       jsonText(host.Release),
		Machine:       jsonText(host.Machine),
		Tracing:       host.TracingErr == nil,
		TracingError:  errorText(host.TracingErr),
		Counting:      host.CensusErr == nil,
		CountingError: errorText(host.CensusErr),
		BTF:           host.BTF,
		BTFBytes:      host.BTFSize,
		SocketCookie:  known(host.SocketCookie),
		Lockdown:      jsonText(host.Lockdown),
		SymbolsShown:  known(host.Symbols),
		InitialUserNS: known(host.InitialUserNS),
		Capabilities:  []capabilityRecord{},
		Tiers:         []tierRecord{},
	}
	if chosen := host.Chosen(); chosen != nil {
		r.Evidence = chosen.Evidence.String()
	}
	if host.KptrRestrictKnown {
		r.KptrRestrict = &host.KptrRestrict
	}
	for _, c := range host.Capabilities {
		r.Capabilities = append(r.Capabilities, capabilityRecord(c))
	}
	for i := range host.Tiers {
		r.Tiers = append(r.Tiers, newTierRecord(f, &host.Tiers[i]))
	}
	return r
}

func newTierRecord(f *Features, tier *tracer.TierFeatures) tierRecord {
	r := tierRecord{
		Evidence: tier.Evidence.String(),
		Usable:   tier.Err == nil,
		Error:    errorText(tier.Err),
		Chosen:   tier == f.Host.Chosen(),
		StartNS:  tier.Start.Nanoseconds(),
	}
	for _, m := range tier.Missing {
		r.Missing = append(r.Missing, missingRecord(m))
	}
	if cost := f.cost(tier.Evidence); cost != nil {
		r.Cost, r.CostError = newCostRecord(cost.Cost), errorText(cost.Err)
	}
	return r
}

func newCostRecord(c *measure.Cost) *costRecord {
	if c == nil {
		return nil
	}
	r := &costRecord{Programs: c.Programs, RunError: errorText(c.RunErr)}
	if c.MapMemoryKnown {
		r.MapBytes = &c.MapMemory
	}
	if c.RunErr != nil {
		return r
	}
	r.Connections, r.Transitions, r.RunTimeNS = c.Connections, c.Transitions, c.RunTime().Nanoseconds()
	if each, known := c.PerTransition(); known {
		r.NSPerTransition = each.Nanoseconds()
	}
	for _, p := range c.Runs {
		r.ProgramRuns = append(r.ProgramRuns, runRecord{p.Name, p.AttachedTo, p.Runs, p.RunTime.Nanoseconds(), p.RecursionMisses})
	}
	return r
}

// known returns nil for an answer that is not.
func known(a tracer.Answer) *bool {
	if a == tracer.AnswerUnknown {
		return nil
	}
	yes := a == tracer.AnswerYes
	return &yes
}

// memlockHint is what cilium/ebpf adds when a program is refused. From Linux
// 5.11 on, which is before finwait's first, no such limit is there.
const memlockHint = " (MEMLOCK may be too low, consider rlimit.RemoveMemlock)"

// errorText returns what err says, in one line.
func errorText(err error) jsonText {
	if err == nil {
		return ""
	}
	text := strings.ReplaceAll(err.Error(), memlockHint, "")
	return jsonText(strings.ReplaceAll(text, "\n", "; "))
}

// size returns a number of bytes as people read it.
func size(bytes uint64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }
