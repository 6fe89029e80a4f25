package main

// row is panels under a headline that can be folded.
type row struct {
	title  string
	panels []panel
}

// panel is a chart, or a number. All have a third of the width but for wide ones.
type panel struct {
	title   string
	about   string // what it says to whoever looks at it
	unit    string
	stat    bool // a number in place of a chart
	stack   bool
	wide    bool
	queries []query
}

// query is what a panel asks Prometheus. $S is the selector of the hosts that are
// looked at, to which a query adds its own labels, and $R the time of a rate.
type query struct{ expr, legend string }

var rows = []row{
	{"Now", []panel{
		{title: "Hosts", about: "Agents that answer.", unit: "none", stat: true,
			queries: []query{{`count(finwait_build_info{$S})`, ""}}},
		{title: "Sockets", about: "Sockets in all states but CLOSE, over all network namespaces.", unit: "short", stat: true,
			queries: []query{{`sum(finwait_sockets{$S,state!="close"})`, ""}}},
		{title: "TIME_WAIT", unit: "short", stat: true,
			about:   "Costs about 250 bytes each and no port of a server. It matters where one host calls one address and port over and over.",
			queries: []query{{`sum(finwait_sockets{$S,state="time_wait"})`, ""}}},
		{title: "Connections/s", about: "Connections that were established, at either end.", unit: "cps", stat: true,
			queries: []query{{`sum(rate(finwait_transitions_total{$S,new_state="established"}[$R]))`, ""}}},
		{title: "Lost records/s", about: "Records that no sink has kept, and events that never reached one. The counters do not lose these.", unit: "none", stat: true,
			queries: []query{{`sum(rate(finwait_sink_records_total{$S,outcome!="kept"}[$R])) + sum(rate(finwait_ledger_total{$S}[$R]))`, ""}}},
		{title: "Largest drift", about: "By how many sockets a gauge was off the kernel's own count, at the last audit.", unit: "none", stat: true,
			queries: []query{{`max(abs(finwait_drift_sockets{$S}))`, ""}}},
	}},
	{"States", []panel{
		{title: "Sockets by state", about: "Equal to ss. SYN_RECV has the half-open connections, as there.", unit: "short", stack: true, wide: true,
			queries: []query{{`sum by (state) (finwait_sockets{$S,state!="close"})`, "{{state}}"}}},
		{title: "Half-open connections", about: "SYNs that were answered and not acknowledged.", unit: "short",
			queries: []query{{`sum by (instance) (finwait_half_open_sockets{$S})`, "{{instance}}"}}},
		{title: "Sockets in CLOSE_WAIT", about: "The peer has closed and the process has not. What grows here and does not fall is a leak: finwait stuck names the process.", unit: "short",
			queries: []query{{`topk(10, sum by (instance) (finwait_sockets{$S,state="close_wait"}))`, "{{instance}}"}}},
		{title: "TIME_WAIT, begun and over", about: "Where what is over stays behind what begins, TIME_WAIT grows; it lasts 60 seconds.", unit: "cps",
			queries: []query{
				{`sum(rate(finwait_transitions_total{$S,new_state="time_wait"}[$R]))`, "begun"},
				{`sum(rate(finwait_transitions_total{$S,old_state="time_wait"}[$R]))`, "over"},
			}},
	}},
	{"Transitions", []panel{
		{title: "Transitions/s", unit: "cps", wide: true, about: "Those that have happened, of all that can.",
			queries: []query{{`sum by (old_state, new_state) (rate(finwait_transitions_total{$S}[$R])) > 0`, "{{old_state}} → {{new_state}}"}}},
		{title: "Connections established/s", unit: "cps", about: "From syn_sent by a client's connect, from syn_recv at a server.",
			queries: []query{{`sum by (old_state) (rate(finwait_transitions_total{$S,new_state="established"}[$R]))`, "from {{old_state}}"}}},
		{title: "Who closes first", unit: "cps", about: "FIN_WAIT1: this host does, and is left with TIME_WAIT. CLOSE_WAIT: the peer does. CLOSE: a reset.",
			queries: []query{{`sum by (new_state) (rate(finwait_transitions_total{$S,old_state="established"}[$R]))`, "to {{new_state}}"}}},
		{title: "Connects that failed/s", unit: "cps", about: "SYN_SENT → CLOSE: refused, timed out, unreachable, given up.",
			queries: []query{{`sum by (instance) (rate(finwait_transitions_total{$S,old_state="syn_sent",new_state="close"}[$R]))`, "{{instance}}"}}},
	}},
	{"Time in a state", []panel{
		{title: "99th percentile", unit: "s", about: "From the classic buckets.",
			queries: []query{{`histogram_quantile(0.99, sum by (le, state) (rate(finwait_dwell_seconds_bucket{$S}[$R])))`, "{{state}}"}}},
		{title: "Median", unit: "s", about: "From the classic buckets.",
			queries: []query{{`histogram_quantile(0.5, sum by (le, state) (rate(finwait_dwell_seconds_bucket{$S}[$R])))`, "{{state}}"}}},
		{title: "99th percentile, native", unit: "s", about: "From native histograms, where Prometheus ingests them: finer, and fewer series.",
			queries: []query{{`histogram_quantile(0.99, sum by (state) (rate(finwait_dwell_seconds{$S}[$R])))`, "{{state}}"}}},
		{title: "Not known/s", unit: "none", about: "Sockets that were in the state before finwait was there, or for which memory was refused: in no histogram.",
			queries: []query{{`sum by (state) (rate(finwait_dwell_unknown_total{$S}[$R]))`, "{{state}}"}}},
	}},
	{"Endings", []panel{
		{title: "Endings by reason", unit: "cps", wide: true, about: "Why sockets ended. fin is the orderly end.",
			queries: []query{{`sum by (reason) (rate(finwait_endings_total{$S}[$R])) > 0`, "{{reason}}"}}},
		{title: "Who closed first", unit: "cps", about: "By the side that ended it.",
			queries: []query{{`sum by (side) (rate(finwait_endings_total{$S}[$R])) > 0`, "{{side}}"}}},
		{title: "Abnormal, share of all", unit: "percentunit", about: "Timeouts and resets that were received.",
			queries: []query{{`sum by (instance) (rate(finwait_endings_total{$S,reason=~"timeout.*|rst_received"}[$R])) / sum by (instance) (rate(finwait_endings_total{$S}[$R]))`, "{{instance}}"}}},
		{title: "Half-open connections given up/s", unit: "cps", about: "Before the handshake was complete: a full queue, a SYN flood, a client that is gone.",
			queries: []query{{`sum by (reason) (rate(finwait_half_open_dropped_total{$S}[$R]))`, "{{reason}}"}}},
	}},
	{"Services", []panel{
		{title: "Sockets by service port", unit: "short", stack: true, about: "Of the ports that --service-ports names; the others are in other.",
			queries: []query{{`sum by (port) (finwait_service_sockets{$S})`, "{{port}}"}}},
		{title: "99th percentile in ESTABLISHED", unit: "s", about: "How long connections last, by service port.",
			queries: []query{{`histogram_quantile(0.99, sum by (le, port) (rate(finwait_service_dwell_seconds_bucket{$S,state="established"}[$R])))`, "{{port}}"}}},
		{title: "Sockets by cgroup", unit: "short", stack: true, about: "Services, containers and pods, with --by-cgroup.",
			queries: []query{{`topk(20, sum by (cgroup) (finwait_cgroup_sockets{$S}))`, "{{cgroup}}"}}},
	}},
	{"Can it be trusted", []panel{
		{title: "Ledger", unit: "none", about: "What went wrong, each second. Zero is what it should be; docs tell what each entry means.",
			queries: []query{{`sum by (entry) (rate(finwait_ledger_total{$S}[$R]))`, "{{entry}}"}}},
		{title: "Drift", unit: "none", about: "The gauge less the kernel's own count, at the last audit.",
			queries: []query{{`sum by (instance, state) (finwait_drift_sockets{$S}) != 0 or sum by (instance) (finwait_drift_sockets{$S})`, "{{instance}} {{state}}"}}},
		{title: "Age of the last audit", unit: "s", about: "An audit that does not come is as bad as one that fails.",
			queries: []query{{`time() - finwait_audit_timestamp_seconds{$S}`, "{{instance}}"}}},
		{title: "Records by sink", unit: "none", about: "What was given to each sink, and what became of it.",
			queries: []query{{`sum by (sink, record, outcome) (rate(finwait_sink_records_total{$S}[$R]))`, "{{sink}} {{record}} {{outcome}}"}}},
		{title: "Records that wait", unit: "none", about: "In the queue before each sink. A queue that stays full loses.",
			queries: []query{{`sum by (sink, record) (finwait_sink_queue_records{$S})`, "{{sink}} {{record}}"}}},
		{title: "Sampling and evidence", unit: "none", about: "The share of the connections that are recorded, and by what TIME_WAIT is known.",
			queries: []query{
				{`finwait_sampling_ratio{$S}`, "{{instance}} sampled"},
				{`count by (evidence) (finwait_evidence_info{$S})`, "hosts by {{evidence}}"},
			}},
	}},
	{"What it costs", []panel{
		{title: "CPU of the process", unit: "percentunit", about: "1 is a whole CPU.",
			queries: []query{{`rate(process_cpu_seconds_total{$S}[$R])`, "{{instance}}"}}},
		{title: "CPU of the programs", unit: "percentunit", about: "Time in the kernel, where it is measured (kernel.bpf_stats_enabled).",
			queries: []query{{`sum by (program) (rate(finwait_bpf_program_run_seconds_total{$S}[$R]))`, "{{program}}"}}},
		{title: "Time per run", unit: "s", about: "Of each program, where it is measured.",
			queries: []query{{`sum by (program) (rate(finwait_bpf_program_run_seconds_total{$S}[$R])) / sum by (program) (rate(finwait_bpf_program_runs_total{$S}[$R]))`, "{{program}}"}}},
		{title: "Memory", unit: "bytes", about: "Of the process, and of the maps in the kernel.",
			queries: []query{
				{`process_resident_memory_bytes{$S}`, "{{instance}} process"},
				{`sum by (instance) (finwait_bpf_map_memory_bytes{$S})`, "{{instance}} maps"},
			}},
		{title: "How full the rings have been", unit: "percentunit", about: "At 1, events are lost; --buffer makes the ring larger.",
			queries: []query{{`finwait_ring_high_water_bytes{$S} / finwait_ring_size_bytes{$S}`, "{{instance}} {{ring}}"}}},
		{title: "Runs that the kernel skipped", unit: "none", about: "A program that would interrupt itself on one CPU is not run.",
			queries: []query{{`sum by (program) (rate(finwait_bpf_program_recursion_misses_total{$S}[$R]))`, "{{program}}"}}},
	}},
}
