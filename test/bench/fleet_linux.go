package main

import (
	"fmt"
	"strconv"
	"strings"
)

// fleet is what docs/fleet.md reckons: what was measured, times hosts.
type fleet struct {
	records    *recordsReport
	events     *report
	transition recordReport
	connection recordReport
}

// newFleet takes what was measured of records, and of the pattern close.
func newFleet(records *recordsReport, events *report) (*fleet, error) {
	f := &fleet{records: records, events: events}
	var err error
	if f.transition, err = records.of("transition"); err != nil {
		return nil, err
	}
	f.connection, err = records.of("connection")
	return f, err
}

// mode is what an agent records.
type mode struct {
	name string
	// tool is the measured command that costs what the mode does, but for what is
	// written: for each end of a connection in the kernel.
	tool string
	// records and bytes are of each end of a connection.
	records, raw, packed float64
	// process is the CPU time of the process for each end, in microseconds.
	process float64
}

// The shares that the tables are reckoned with. They are assumptions: your own are
// in finwait_endings_total and finwait_dwell_seconds.
const (
	abnormalShare = 0.01 // of the connections, with the reasons and times of deploy/finwait.yaml
	sampledShare  = 0.01 // --sample 0.01
)

func (f *fleet) modes() ([]mode, error) {
	trace, err := f.tool("finwait trace")
	if err != nil {
		return nil, err
	}
	conns, err := f.tool("finwait conns")
	if err != nil {
		return nil, err
	}
	of := func(name, tool string, r recordReport, share, cpu float64) mode {
		n := r.PerEnd * share
		return mode{name: name, tool: tool, records: n, raw: n * r.Bytes, packed: n * r.ZstdBytes, process: n * (cpu + r.ZstdNanoseconds/1000)}
	}
	traceCPU, connsCPU := trace.CPUMicroseconds.Median, conns.CPUMicroseconds.Median
	return []mode{
		of("transitions", "finwait trace", f.transition, 1, traceCPU),
		of("connections", "finwait conns", f.connection, 1, connsCPU),
		of("connections, 1 in 100 sampled", "finwait conns", f.connection, sampledShare, connsCPU),
		of("slow or abnormal connections", "finwait conns", f.connection, abnormalShare, connsCPU),
		{name: "metrics only", tool: "finwait profile"},
	}, nil
}

// tool returns what was measured of it while connections are made and closed.
func (f *fleet) tool(name string) (*toolReport, error) {
	for i := range f.events.Patterns {
		p := &f.events.Patterns[i]
		for j := range p.Tools {
			if p.Pattern == "close" && p.Tools[j].Tool == name {
				return &p.Tools[j], nil
			}
		}
	}
	return nil, fmt.Errorf("%s was not measured", name)
}

// kernel returns the time in the programs for each end of a connection, in
// microseconds.
func (f *fleet) kernel(m *mode) (float64, error) {
	t, err := f.tool(m.tool)
	if err != nil {
		return 0, err
	}
	for _, p := range f.events.Patterns {
		if p.Pattern == "close" {
			return t.BPFNanoseconds.Median * p.EventsPerConnection / 2 / 1000, nil
		}
	}
	return 0, fmt.Errorf("the pattern close was not measured")
}

const (
	day      = 86400.0
	kept     = 7    // days
	perHost  = 1000 // ends of connections a second
	internet = 5000 // the same, of a host that the internet talks to
	logTotal = 1 << 30
)

// scale is how many hosts there are, and what each has.
type scale struct {
	hosts, rate float64
	// advice is the mode that is recommended, by its name.
	advice string
}

var scales = []scale{
	{1, perHost, "transitions"},
	{100, perHost, "connections"},
	{10_000, perHost, "slow or abnormal connections"},
	{1_000_000, internet, "slow or abnormal connections"},
}

// host writes what a mode costs one host.
func (f *fleet) host() (section, error) {
	s := section{title: fmt.Sprintf("One host, %s ends of connections a second", grouped(perHost)), rows: [][]string{{
		"what is recorded", "records/s", "CPU in the kernel", "CPU of the process", "log a day, zstd", "days in 1 GiB",
	}}}
	modes, err := f.modes()
	if err != nil {
		return s, err
	}
	for _, m := range modes {
		kernel, err := f.kernel(&m)
		if err != nil {
			return s, err
		}
		daily, days := "-", "-"
		if m.packed > 0 {
			daily, days = size(m.packed*perHost*day), fmt.Sprintf("%.1f", logTotal/(m.packed*perHost*day))
		}
		s.rows = append(s.rows, []string{
			m.name, count(m.records * perHost), percent(kernel * perHost), percent(m.process * perHost), daily, days,
		})
	}
	return s, nil
}

// fleetSections writes a table for each scale.
func (f *fleet) fleetSections() (all []section, err error) {
	modes, err := f.modes()
	if err != nil {
		return nil, err
	}
	for _, sc := range scales {
		s := section{title: fmt.Sprintf("%s × %s ends of connections a second", plural(sc.hosts, "host"), grouped(sc.rate)), rows: [][]string{{
			"what is recorded", "records/s", "as JSON", "compressed", "a day, zstd", fmt.Sprintf("%d days", kept),
		}}}
		for _, m := range modes {
			n := sc.hosts * sc.rate
			name := m.name
			if name == sc.advice {
				name = "**" + name + "**"
			}
			if m.records == 0 {
				s.rows = append(s.rows, []string{name, "0", "-", "-", "-", "-"})
				continue
			}
			s.rows = append(s.rows, []string{
				name, count(m.records * n), bits(m.raw * n), bits(m.packed * n), size(m.packed * n * day), size(m.packed * n * day * kept),
			})
		}
		all = append(all, s)
	}
	return all, nil
}

// What Prometheus is reckoned with: its own documentation has 1 to 2 bytes for a
// sample on disk.
const (
	scrapeSeconds  = 30
	bytesPerSample = 2
)

func (f *fleet) series() section {
	s := section{title: fmt.Sprintf("Prometheus, a scrape each %d s", scrapeSeconds), rows: [][]string{{
		"hosts", "series at the start", "with all breakdowns", "samples/s, with all", "a day on disk, with all", "15 days",
	}}}
	for _, sc := range scales {
		most := sc.hosts * float64(f.records.MostSeries)
		daily := most / scrapeSeconds * day * bytesPerSample
		s.rows = append(s.rows, []string{
			grouped(sc.hosts), count(sc.hosts * float64(f.records.Series)), count(most), count(most / scrapeSeconds), size(daily), size(15 * daily),
		})
	}
	return s
}

// percent is of one CPU, from microseconds of each second.
func percent(microseconds float64) string { return fmt.Sprintf("%.2f %%", microseconds/1e6*100) }

// size is a number of bytes.
func size(bytes float64) string {
	return scaled(bytes, 1024, " B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB")
}

// bits is a number of bytes a second, as networks have it.
func bits(bytes float64) string {
	return scaled(bytes*8, 1000, " bit/s", " kbit/s", " Mbit/s", " Gbit/s", " Tbit/s", " Pbit/s")
}

// count is a number of things.
func count(n float64) string { return scaled(n, 1000, "", " k", " M", " G", " T") }

// scaled writes n with three digits, in the largest unit of which there is one.
func scaled(n, step float64, units ...string) string {
	i := 0
	for ; n >= step && i < len(units)-1; i++ {
		n /= step
	}
	digits := 2
	switch {
	case n >= 100 || i == 0 && n == float64(int(n)):
		digits = 0
	case n >= 10:
		digits = 1
	}
	return strconv.FormatFloat(n, 'f', digits, 64) + units[i]
}

// grouped writes a whole number with commas.
func grouped(n float64) string {
	text := strconv.FormatFloat(n, 'f', 0, 64)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func plural(n float64, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return strings.TrimSpace(grouped(n) + " " + noun)
}
