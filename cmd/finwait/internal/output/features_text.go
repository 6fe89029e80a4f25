package output

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/finwait/finwait/cmd/finwait/internal/measure"
	"github.com/finwait/finwait/cmd/finwait/internal/prose"
	"github.com/finwait/finwait/tracer"
)

// featuresStop is the column where what is said of a thing begins.
const featuresStop = 18

// AppendFeaturesText appends f for people: lines of less than 80 columns, what
// is missing together with what to do about it.
func AppendFeaturesText(dst []byte, f *Features) []byte {
	t := &featuresText{dst}
	t.verdict(f.Host)
	t.kernel(f.Host)
	t.capabilities(f.Host)
	t.heading("What shows TIME_WAIT and half-open connections, the best first")
	for i := range f.Host.Tiers {
		t.tier(&f.Host.Tiers[i], f.Host.Chosen())
	}
	for i := range f.Costs {
		t.cost(f.Host, &f.Costs[i])
	}
	if f.NotMeasured != "" {
		t.heading("What tracing costs")
		t.row("", "not measured: "+f.NotMeasured)
	}
	return t.buf
}

type featuresText struct{ buf []byte }

func (t *featuresText) heading(text string) { t.buf = append(t.buf, "\n"+text+"\n"...) }

// row appends a name, and what is said of it, in as many lines as that takes.
func (t *featuresText) row(name, text string) {
	if strings.TrimSpace(text) == "" {
		text = "not known"
	}
	t.buf = fmt.Appendf(t.buf, "  %-*s", featuresStop-2, name)
	t.wrapped(featuresStop, featuresStop, text)
}

// wrapped appends text at that column, and its other lines at indent. It is
// safe on a terminal.
func (t *featuresText) wrapped(column, indent int, text string) {
	t.buf = prose.Wrap(t.buf, column, indent, string(Quote(nil, []byte(text))))
}

func (t *featuresText) verdict(host *tracer.Features) {
	if chosen := host.Chosen(); chosen != nil {
		t.wrapped(0, 0, fmt.Sprintf("finwait trace works here, by %s.", tierName(chosen.Evidence)))
	} else {
		t.wrapped(0, 0, fmt.Sprintf("finwait trace does not work here: %s.", errorText(host.TracingErr)))
	}
	if host.CensusErr == nil {
		t.wrapped(0, 0, "finwait count works here.")
	} else {
		t.wrapped(0, 0, fmt.Sprintf("finwait count does not work here: %s.", errorText(host.CensusErr)))
	}
}

func tierName(evidence tracer.Evidence) string {
	if evidence == tracer.EvidenceProbe {
		return "probes at kernel functions"
	}
	return "the timer tracepoints"
}

func (t *featuresText) kernel(host *tracer.Features) {
	t.heading("Kernel")
	t.row("release", cmp.Or(strings.TrimSpace(host.Release+" "+host.Machine), "not known"))
	t.row("BTF", btfText(host))
	t.row("socket cookie", map[tracer.Answer]string{
		tracer.AnswerYes:     "yes, programs may ask for it",
		tracer.AnswerNo:      "no: programs may not ask for it; needs Linux 5.12 or later",
		tracer.AnswerUnknown: "not known: only programs that are loaded tell",
	}[host.SocketCookie])
	t.row("lockdown", lockdownText(host.Lockdown))
	t.row("kptr_restrict", kptrText(host))
	t.row("symbols", map[tracer.Answer]string{
		tracer.AnswerYes:     "/proc/kallsyms shows where functions lie",
		tracer.AnswerNo:      "hidden: needs CAP_SYSLOG, and kptr_restrict 0 or 1; without them only probes work, and some reasons are not known",
		tracer.AnswerUnknown: "not known: /proc/kallsyms cannot be read, or is empty",
	}[host.Symbols])
	t.row("tcp_diag", countText(host.CensusErr))
	t.row("user namespace", map[tracer.Answer]string{
		tracer.AnswerYes:     "the initial one",
		tracer.AnswerNo:      "not the initial one: capabilities do not count for BPF here; run finwait on the host itself",
		tracer.AnswerUnknown: "not known",
	}[host.InitialUserNS])
}

func (t *featuresText) capabilities(host *tracer.Features) {
	t.heading("Capabilities in effect")
	for _, c := range host.Capabilities {
		word := "no   "
		if c.Effective {
			word = "yes  "
		}
		t.buf = fmt.Appendf(t.buf, "  %-*s%s", featuresStop-2, c.Name, word)
		t.wrapped(featuresStop+len(word), featuresStop+len(word), c.Purpose)
	}
}

func (t *featuresText) tier(tier, chosen *tracer.TierFeatures) {
	var text string
	switch {
	case tier.Err != nil:
		text = "cannot be used: " + string(errorText(tier.Err))
	case tier == chosen:
		text = "can be used, and is chosen"
	default:
		text = "can be used, with --evidence " + tier.Evidence.String()
	}
	if tier.Err == nil && tier.Evidence == tracer.EvidenceTimer {
		text += fmt.Sprintf("; when nobody owns the socket, FIN_WAIT2→TIME_WAIT may come up to %v late, and CLOSE→NEW_SYN_RECV up to a second, with their true times", tracer.SweepInterval)
	}
	t.row(tier.Evidence.String(), text)
	for _, m := range tier.Missing {
		t.row("", fmt.Sprintf("does without %s: this kernel has no %s", m.Name, m.Function))
	}
}

func (t *featuresText) cost(host *tracer.Features, c *TierCost) {
	t.heading("What tracing by " + tierName(c.Evidence) + " costs")
	if c.Err != nil {
		t.row("", "not measured: "+string(errorText(c.Err)))
		return
	}
	for _, tier := range host.Tiers {
		if tier.Evidence == c.Evidence {
			t.row("start", string(AppendDuration(nil, tier.Start)))
		}
	}
	t.row("programs", fmt.Sprint(c.Cost.Programs))
	memory := "not known: kernels before Linux 6.4 do not tell it of all maps"
	if c.Cost.MapMemoryKnown {
		memory = size(c.Cost.MapMemory) + " in maps, set aside at the start"
	}
	t.row("kernel memory", memory)
	if c.Cost.RunErr != nil {
		why := string(errorText(c.Cost.RunErr))
		if errors.Is(c.Cost.RunErr, os.ErrPermission) {
			why += " (needs CAP_SYS_ADMIN and CAP_NET_ADMIN)"
		}
		t.row("per transition", "not measured: "+why)
		return
	}
	t.runs(c.Cost)
}

// runs says what the programs did. The numbers are of this run: on a busy host
// they vary.
func (t *featuresText) runs(c *measure.Cost) {
	each := "not known: no transition was seen"
	if d, known := c.PerTransition(); known {
		each = fmt.Sprintf("%s in all programs together, the clock that measures it included; a mean of %d transitions, most of them of %d connections made to measure it",
			AppendDuration(nil, d), c.Transitions, c.Connections)
	}
	t.row("per transition", each)
	t.buf = fmt.Appendf(t.buf, "\n  %-23s %-35s %7s %7s\n", "PROGRAM", "ATTACHED TO", "RUNS", "EACH")
	for _, p := range c.Runs {
		mean := "-"
		if p.Runs > 0 {
			mean = string(AppendDuration(nil, p.RunTime/time.Duration(p.Runs)))
		}
		t.buf = fmt.Appendf(t.buf, "  %-23s %-35s %7d %7s\n", p.Name, p.AttachedTo, p.Runs, mean)
	}
}

func btfText(host *tracer.Features) string {
	if !host.BTF {
		return "no: /sys/kernel/btf/vmlinux is missing; needs a kernel with CONFIG_DEBUG_INFO_BTF"
	}
	if host.BTFSize == 0 {
		return "yes"
	}
	return "yes, " + size(uint64(host.BTFSize))
}

func lockdownText(mode string) string {
	switch mode {
	case "":
		return "none that the kernel tells of"
	case "confidentiality":
		return "confidentiality, which forbids programs to read kernel memory: boot with lockdown=integrity"
	}
	return mode
}

func kptrText(host *tracer.Features) string {
	switch {
	case !host.KptrRestrictKnown:
		return "not known"
	case host.KptrRestrict >= 2: // kernel/kallsyms.c, kallsyms_show_value
		return fmt.Sprintf("%d, which hides symbols from all: sysctl kernel.kptr_restrict=1", host.KptrRestrict)
	}
	return fmt.Sprint(host.KptrRestrict)
}

func countText(err error) string {
	if err != nil {
		return "no: " + string(errorText(err))
	}
	return "yes"
}
