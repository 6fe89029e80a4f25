package metrics

import "github.com/prometheus/client_golang/prometheus"

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("finwait_"+name, help, labels, nil)
}

var (
	socketsDesc = newDesc("sockets",
		"TCP sockets in each state now, over all network namespaces, as ss and netstat count them: half-open connections are in syn_recv. Always 0 for close: a socket there has no connection and is not counted.", "state")
	halfOpenDesc = newDesc("half_open_sockets",
		"Half-open connections now: a SYN has come, the handshake is not complete (NEW_SYN_RECV). They are in finwait_sockets{state=\"syn_recv\"} too.")
	transitionsDesc = newDesc("transitions_total",
		"TCP state transitions of all sockets of the host. A socket that comes into being leaves close, one that is gone enters it. Exact also where events are lost.", "old_state", "new_state")
	dwellDesc = newDesc("dwell_seconds",
		"Time that sockets have stayed in a state, counted when they leave it, whatever the filters. A time that is just on the bound of a bucket is in the one above.", "state")
	dwellUnknownDesc = newDesc("dwell_unknown_total",
		"Times that a socket has left a state of which it is not known since when it was in it, whatever the filters. They are not in finwait_dwell_seconds.", "state")
	endingsDesc = newDesc("endings_total",
		"Sockets that are gone, by why and by which side closed first. Half-open connections that were given up and ends of TIME_WAIT are among them.", "reason", "side")
	halfOpenDroppedDesc = newDesc("half_open_dropped_total",
		"Half-open connections that were given up, by why. They are in finwait_endings_total too.", "reason")
	ledgerDesc = newDesc("ledger_total",
		"What became of transitions and connections, and all that went wrong, by entry of the tracer's ledger.", "entry")
	driftDesc = newDesc("drift_sockets",
		"Sockets by which finwait's count in each state differed from the kernel's at the last audit, which has put it right; summed over network namespaces without regard to sign.", "state")
	auditDesc = newDesc("audit_timestamp_seconds",
		"Unix time of the last audit of finwait's counts against the kernel's.")
	auditMissedDesc = newDesc("audit_missed_namespaces",
		"Network namespaces that the last audit has found and could not compare, as a rule for want of CAP_SYS_ADMIN.")

	sinkRecordsDesc = newDesc("sink_records_total",
		"Records that were given to a sink, by what became of them: kept for certain, lost since its queue was full, or lost since it failed.", "sink", "record", "outcome")
	sinkQueueDesc = newDesc("sink_queue_records",
		"Records that wait in a sink's queue, or are being sent, now.", "sink", "record")

	programRunsDesc = newDesc("bpf_program_runs_total",
		"Runs of a BPF program while the kernel measured them (kernel.bpf_stats_enabled). Absent if it has not.", "program")
	programTimeDesc = newDesc("bpf_program_run_seconds_total",
		"Time that the counted runs of a BPF program have taken on all CPUs, as the kernel measured it. Absent if it has not.", "program")
	recursionDesc = newDesc("bpf_program_recursion_misses_total",
		"Times that the kernel skipped a BPF program because it had interrupted itself.", "program")
	mapMemoryDesc = newDesc("bpf_map_memory_bytes",
		"Kernel memory of a BPF map. Absent where the kernel does not tell it.", "map")
	ringSizeDesc = newDesc("ring_size_bytes",
		"Room in a ring buffer between the kernel and finwait.", "ring")
	ringHighWaterDesc = newDesc("ring_high_water_bytes",
		"The most that has waited to be read in a ring buffer at a time.", "ring")

	samplingDesc = newDesc("sampling_ratio",
		"Share of connections that are recorded in the log and by OTLP. All are counted here, whatever it is.")
	evidenceDesc = newDesc("evidence_info",
		"What shows TIME_WAIT and half-open connections: probe (probes at kernel functions) or timer (timer tracepoints). Always 1.", "evidence")
	buildDesc = newDesc("build_info",
		"The version of finwait, its revision and Go's version. Always 1.", "version", "revision", "goversion")
	scrapeErrorsDesc = newDesc("scrape_errors_total",
		"Scrapes in which a part of the metrics could not be read and was left out.", "part")

	serviceSocketsDesc = newDesc("service_sockets",
		"Sockets that belong to a listener on a port of --service-ports, the listener among them, at the last census. All others, outgoing connections too, are in port=\"other\".", "port", "state")
	serviceDwellDesc = newDesc("service_dwell_seconds",
		"Time that sockets that came out of a listener on a port of --service-ports have stayed in a state, whatever the filters. All others, outgoing connections and those older than finwait too, are in port=\"other\".", "port", "state")
	cgroupSocketsDesc = newDesc("cgroup_sockets",
		"Sockets of processes in a version 2 cgroup at the last census. Those of cgroups beyond the largest are in cgroup=\"other\", those that no process is known to hold (half-open, TIME_WAIT, not accepted, orphaned) in cgroup=\"unknown\".", "cgroup", "state")
	cgroupInfoDesc = newDesc("cgroup_info",
		"The container and the pod of a cgroup of finwait_cgroup_sockets, as its path says. Always 1.", "cgroup", "container_id", "pod_uid")
	censusTimeDesc = newDesc("census_timestamp_seconds",
		"Unix time of the last census of sockets, by what it was taken by.", "by")
	censusTookDesc = newDesc("census_duration_seconds",
		"Time that the last census of sockets took.", "by")
	censusMissedDesc = newDesc("census_missed_namespaces",
		"Network namespaces that the last census of sockets could not read: their sockets are not in it.", "by")
)

// descs are all of them.
var descs = []*prometheus.Desc{
	socketsDesc, halfOpenDesc, transitionsDesc, dwellDesc, dwellUnknownDesc, endingsDesc, halfOpenDroppedDesc,
	ledgerDesc, driftDesc, auditDesc, auditMissedDesc,
	sinkRecordsDesc, sinkQueueDesc,
	programRunsDesc, programTimeDesc, recursionDesc, mapMemoryDesc, ringSizeDesc, ringHighWaterDesc,
	samplingDesc, evidenceDesc, buildDesc, scrapeErrorsDesc,
	serviceSocketsDesc, serviceDwellDesc, cgroupSocketsDesc, cgroupInfoDesc, censusTimeDesc, censusTookDesc, censusMissedDesc,
}
