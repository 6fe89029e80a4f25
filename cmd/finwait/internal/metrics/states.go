package metrics

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/finwait/finwait/tracer"
)

// stateLabels are the names of node_exporter's tcpstat collector, and
// new_syn_recv, which it does not have.
var stateLabels = func() (labels [tracer.StateNewSynRecv + 1]string) {
	for _, s := range tracer.States() {
		labels[s] = strings.ToLower(s.String())
	}
	return labels
}()

func stateLabel(s tracer.State) string {
	if int(s) < len(stateLabels) && stateLabels[s] != "" {
		return stateLabels[s]
	}
	return strings.ToLower(s.String())
}

// foldedStates are those of ss and netstat.
var foldedStates = without(tracer.StateNewSynRecv)

// dwellStates are those in which a time can be spent. Half-open connections have
// their own: theirs is the time that a handshake takes, while SYN_RECV is over at
// once.
var dwellStates = without(tracer.StateClose)

func without(not tracer.State) (states []tracer.State) {
	for _, s := range tracer.States() {
		if s != not {
			states = append(states, s)
		}
	}
	return states
}

// collectStates emits one gauge for each state, of counts that are folded.
func collectStates(ch chan<- prometheus.Metric, d *prometheus.Desc, counts *tracer.StateCounts, labels ...string) {
	for _, s := range foldedStates {
		ch <- gauge(d, float64(counts[s]), append(labels, stateLabel(s))...)
	}
}
