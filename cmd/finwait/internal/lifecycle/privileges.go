package lifecycle

import "strings"

// Capability is one that the agent uses.
type Capability struct {
	Name string // CAP_BPF
	Use  string // what it is for
	// Without is what becomes of an agent that was started without it.
	Without string
	// Kept tells whether the agent keeps it when it has started.
	Kept bool
}

// Capabilities are those that the agent uses. It needs the first three to start;
// without the others it runs and sees less. What is lost without each was
// measured: the tests say how.
var Capabilities = []Capability{
	{
		Name:    "CAP_BPF",
		Use:     "load programs and maps; before Linux 5.19 also read maps",
		Without: "does not start, unless it has CAP_SYS_ADMIN",
		Kept:    true,
	},
	{
		Name:    "CAP_PERFMON",
		Use:     "let programs read kernel memory",
		Without: "does not start, unless it has CAP_SYS_ADMIN",
	},
	{
		Name:    "CAP_SYSLOG",
		Use:     "read where the kernel's functions lie",
		Without: "does not start where the kernel takes no probes, and does not know some reasons where it does; unless `/proc/kallsyms` is shown to everybody",
	},
	{
		Name:    "CAP_SYS_ADMIN",
		Use:     "enter network namespaces (`setns`), to count what is older than the agent and to audit",
		Without: "counts older sockets and audits in its own network namespace alone; transitions are seen in all",
		Kept:    true,
	},
	{
		Name:    "CAP_SYS_PTRACE",
		Use:     "open the network namespaces of other processes (`/proc/PID/ns/net`)",
		Without: "finds no network namespaces but its own and those that are mounted, as by `ip netns`",
		Kept:    true,
	},
	{
		Name:    "CAP_DAC_READ_SEARCH",
		Use:     "open a cgroup by its id (`open_by_handle_at`), and look into `/proc/PID/fd` of other users",
		Without: "finds cgroups by walking over them once a second; finds no network namespace that only an open file of another user keeps",
		Kept:    true,
	},
	{
		Name:    "CAP_NET_ADMIN",
		Use:     "open the network namespace of a socket (`SIOCGSKNS`)",
		Without: "finds no network namespace that only a socket keeps",
		Kept:    true,
	},
	{
		Name:    "CAP_SETPCAP",
		Use:     "empty the bounding set and lock the secure bits when the others are dropped",
		Without: "leaves both as they were",
	},
}

// kernelName is how the libraries of capabilities spell it.
func (c Capability) kernelName() string { return strings.ToLower(c.Name) }
