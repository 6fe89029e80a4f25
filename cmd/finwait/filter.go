package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/finwait/finwait/tracer"
)

// filterFlags are the flags that choose transitions, as the user wrote them.
type filterFlags struct {
	states, transitions   []string
	ports, lports, rports []string
	addrs, netns, cgroups []string
	pids, uids, comms     []string
	onlyIPv4, onlyIPv6    bool
}

// add adds all of them.
func (f *filterFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringSliceVar(&f.states, "state", nil, "only transitions out of or into these `states`")
	flags.StringSliceVar(&f.transitions, "transition", nil, "only these `transitions`, such as FIN_WAIT2:TIME_WAIT")
	f.addSockets(cmd)
}

// complete has the shell know the words of those of add.
func (*filterFlags) complete(cmd *cobra.Command) {
	completeWords(cmd, "state", stateWords())
	completeWords(cmd, "transition", transitionWords())
}

// addSockets adds the flags that choose sockets, whatever they do.
func (f *filterFlags) addSockets(cmd *cobra.Command) {
	flags := cmd.Flags()
	list := func(into *[]string, name, usage string) { flags.StringSliceVar(into, name, nil, usage) }
	list(&f.ports, "port", "only these local or remote `ports`, such as 80,8000-8999")
	list(&f.lports, "lport", "only these local `ports`")
	list(&f.rports, "rport", "only these remote `ports`")
	list(&f.addrs, "addr", "only these local or remote `addresses` or networks, such as 10.0.0.0/8")
	list(&f.netns, "netns", "only these network `namespaces`: inode number, name, path or self")
	list(&f.pids, "pid", "only sockets of these `processes`")
	list(&f.uids, "uid", "only sockets of these `users`, by number or name")
	list(&f.comms, "comm", "only sockets of processes with these `names`")
	list(&f.cgroups, "cgroup", "only sockets of these `cgroups` or below: path or id")
	flags.BoolVarP(&f.onlyIPv4, "ipv4", "4", false, "only IPv4 sockets")
	flags.BoolVarP(&f.onlyIPv6, "ipv6", "6", false, "only IPv6 sockets")
}

// explainReplay says what a filter of a log cannot do.
func explainReplay(cmd *cobra.Command) {
	cmd.Flags().Lookup("cgroup").Usage = "only sockets of these `cgroups` or below: path or id; with --replay not below, for a log has no more than the owner's own"
}

func completeWords(cmd *cobra.Command, flag string, words []string) {
	err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	if err != nil { // the flag does not exist
		panic(err)
	}
}

func stateWords() []string {
	var words []string
	for _, s := range tracer.States() {
		words = append(words, s.String())
	}
	return words
}

func transitionWords() []string {
	var words []string
	for _, t := range tracer.LegalTransitions() {
		words = append(words, t.Old.String()+":"+t.New.String())
	}
	return words
}

// parse returns the filter that the flags describe.
func (f *filterFlags) parse(flags *pflag.FlagSet) (tracer.Filter, error) {
	var filter tracer.Filter
	p := flagParser{flags: flags}
	parseList(&p, "state", f.states, &filter.States, tracer.ParseState)
	parseList(&p, "transition", f.transitions, &filter.Transitions, tracer.ParseTransition)
	parseList(&p, "port", f.ports, &filter.Ports, parsePorts)
	parseList(&p, "lport", f.lports, &filter.LocalPorts, parsePorts)
	parseList(&p, "rport", f.rports, &filter.RemotePorts, parsePorts)
	parseList(&p, "addr", f.addrs, &filter.Addrs, parsePrefix)
	parseList(&p, "netns", f.netns, &filter.Netns, parseNetns)
	parseList(&p, "pid", f.pids, &filter.PIDs, parsePID)
	parseList(&p, "uid", f.uids, &filter.UIDs, parseUID)
	parseList(&p, "comm", f.comms, &filter.Comms, parseComm)
	parseList(&p, "cgroup", f.cgroups, &filter.Cgroups, parseCgroup)
	switch {
	case f.onlyIPv4 && f.onlyIPv6:
		return filter, usagef("--ipv4 and --ipv6 contradict each other; leave both out for both families")
	case f.onlyIPv4:
		filter.Family = tracer.FamilyIPv4
	case f.onlyIPv6:
		filter.Family = tracer.FamilyIPv6
	}
	return filter, p.err
}

// flagParser keeps the first mistake.
type flagParser struct {
	flags *pflag.FlagSet
	err   error
}

func parseList[T any](p *flagParser, name string, words []string, into *[]T, parse func(string) (T, error)) {
	if p.err == nil && p.flags.Changed(name) && len(words) == 0 {
		p.err = usagef("--%s is empty; name at least one value or leave it out", name)
	}
	for _, word := range words {
		v, err := parse(word)
		if err != nil && p.err == nil {
			p.err = usagef("--%s: %w", name, err)
		}
		*into = append(*into, v)
	}
}

// stateTime is a time in a state.
type stateTime struct {
	state tracer.State
	time  time.Duration
}

func parseStateTime(s string) (stateTime, error) {
	name, text, named := strings.Cut(s, ":")
	if !named {
		return stateTime{}, fmt.Errorf("%q is not a state and a time, such as CLOSE_WAIT:5m", s)
	}
	state, err := tracer.ParseState(name)
	if err != nil {
		return stateTime{}, err
	}
	if state == tracer.StateClose || state == tracer.StateListen {
		return stateTime{}, fmt.Errorf("no connection is in %v", state)
	}
	d, err := parseTime(text)
	return stateTime{state, d}, err
}

func parseTime(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%q is not a time, such as 90s", s)
	}
	return d, nil
}

func parsePorts(s string) (tracer.PortRange, error) {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	from, errFrom := strconv.ParseUint(first, 10, 16)
	to, errTo := strconv.ParseUint(last, 10, 16)
	if errFrom != nil || errTo != nil || from == 0 || from > to {
		return tracer.PortRange{}, fmt.Errorf("%q is not a port (1 to 65535) or a range such as 8000-8999", s)
	}
	return tracer.PortRange{First: uint16(from), Last: uint16(to)}, nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(s)
	if err != nil {
		return prefix, fmt.Errorf("%q is not an address or a network such as 10.0.0.0/8 or 2001:db8::/32", s)
	}
	return prefix, nil
}

func parseNumber(s string, bits int, what string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, bits)
	if err != nil {
		return 0, fmt.Errorf("%q is not %s", s, what)
	}
	return n, nil
}

func parsePID(s string) (uint32, error) {
	n, err := parseNumber(s, 31, "a process id")
	return uint32(n), err
}

func parseComm(s string) (string, error) {
	if s == "" || len(s) > 15 {
		return "", fmt.Errorf("%q is not a process name (1 to 15 bytes, as in /proc/PID/comm)", s)
	}
	return s, nil
}

func parseUID(s string) (uint32, error) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		return uint32(n), nil
	}
	u, err := user.Lookup(s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a user id or the name of a user", s)
	}
	n, err := parseNumber(u.Uid, 32, "a user id")
	return uint32(n), err
}

// parseNetns takes an inode number, a path, self, or a name as ip netns has it.
func parseNetns(s string) (uint32, error) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil && n > 0 {
		return uint32(n), nil
	}
	path := s
	switch {
	case s == "self":
		path = "/proc/self/ns/net"
	case !strings.Contains(s, "/"):
		path = filepath.Join("/run/netns", s)
	}
	inode, err := inodeOf(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return 0, fmt.Errorf("network namespace %q: %w; to look there takes root, or CAP_SYS_PTRACE for what is another process's", s, err)
	case err != nil:
		return 0, fmt.Errorf("network namespace %q: %w", s, err)
	}
	return uint32(inode), nil
}

// parseCgroup takes an id or a path, below the cgroup file system or in full.
func parseCgroup(s string) (uint64, error) {
	if n, err := strconv.ParseUint(s, 10, 64); err == nil && n > 0 {
		return n, nil
	}
	candidates := []string{s, filepath.Join("/sys/fs/cgroup", s), filepath.Join("/sys/fs/cgroup/unified", s)}
	for _, path := range candidates {
		if _, err := os.Stat(filepath.Join(path, "cgroup.controllers")); err == nil {
			return inodeOf(path)
		}
	}
	return 0, fmt.Errorf("%q is not the id or the path of a version 2 cgroup", s)
}
