package metrics

import (
	"context"
	"slices"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/finwait/finwait/tracer"
)

// other is the label of all that has no series of its own.
const other = "other"

// service is the breakdown by local port of services.
type service struct {
	ports  []uint16          // sorted, each once
	labels map[uint16]string // of each of them
	census census
}

func newService(ports []uint16) *service {
	s := &service{labels: map[uint16]string{}, census: newCensus(tracer.ByListener)}
	s.ports = slices.Clone(ports)
	slices.Sort(s.ports)
	s.ports = slices.Compact(s.ports)
	for _, p := range s.ports {
		s.labels[p] = strconv.Itoa(int(p))
	}
	return s
}

// label returns the label of a port that may be among the services.
func (s *service) label(port uint64) string {
	if port <= 0xffff {
		if label, ok := s.labels[uint16(port)]; ok {
			return label
		}
	}
	return other
}

// all returns all labels.
func (s *service) all() (labels []string) {
	for _, p := range s.ports {
		labels = append(labels, s.labels[p])
	}
	return append(labels, other)
}

// collectSockets emits the sockets of each service. A socket without a listener
// has the zero address for it, and no service has port 0.
func (s *service) collectSockets(ctx context.Context, ch chan<- prometheus.Metric) error {
	census, _, err := s.census.read(ctx)
	if err != nil {
		return err
	}
	sums := map[string]*tracer.StateCounts{}
	for _, label := range s.all() {
		sums[label] = &tracer.StateCounts{}
	}
	for i := range census.Groups {
		g := &census.Groups[i]
		addCounts(sums[s.label(uint64(g.Listener.Port()))], &g.States)
	}
	for _, label := range s.all() {
		collectStates(ch, serviceSocketsDesc, sums[label], label)
	}
	s.census.collect(ch)
	return nil
}

// collectDwell emits the times of each service, of a profile by service.
func (s *service) collectDwell(ch chan<- prometheus.Metric, p *tracer.Profile) {
	sums := map[string]dwells{}
	for _, label := range s.all() {
		sums[label] = newDwells()
	}
	for i := range p.Rows {
		row, label := &p.Rows[i], other
		if row.Key.Group == tracer.GroupOne {
			label = s.label(row.Key.Value)
		}
		sums[label].add(row.Key.State, &row.Histogram)
	}
	for _, label := range s.all() {
		sums[label].collect(ch, serviceDwellDesc, label)
	}
}
