// Package tracer traces TCP state transitions on a Linux host with eBPF, and
// counts the sockets in each state.
//
// A [Tracer] attaches to the kernel's state changes, counts every one of them
// in a kernel map ([Tracer.Counters]) and streams them ([Tracer.Events]). A
// [Census] is a count of the sockets that exist now; it needs no tracer.
//
// # What it sees that the tracepoint does not say
//
// The tracepoint sock:inet_sock_set_state never reports TIME_WAIT: when a
// connection enters it, the kernel swaps the socket for a mini-socket and says
// FIN_WAIT2→CLOSE, and it says the same when the connection is still in
// FIN_WAIT2 without an owner. Nor does it know of half-open connections, which
// are request sockets. The tracer watches both: by probes at the kernel functions
// that make and end them, or where the kernel takes none, by the tracepoints of
// their timers. [Event.Evidence] says what has shown a transition.
//
// # Gauges
//
// [Tracer.Gauges] is how many sockets are in each state, in every network
// namespace of the host. The tracer counts those that were there when it began
// and all that have come since, and [Tracer.Audit] compares with the kernel.
//
// # Sockets, one by one
//
// [VisitNetns] goes through the network namespaces, and [Netns.ListSockets] lists
// what is in one: each socket with its queues and its timer. [FindOwners] finds the
// processes that hold them. Neither needs a tracer.
//
// # Containers
//
// [Cgroups] finds the path of the cgroup that an owner was in, and in it the
// container and the pod ([ParseCgroupPath]).
//
// # What is stuck
//
// [Tracer.Stuck] is the sockets that have been in their state for too long, with
// the process that owns them.
//
// # Requirements
//
// Linux 5.12 with BTF (/sys/kernel/btf/vmlinux), little-endian, and root or
// CAP_BPF, CAP_PERFMON and CAP_SYSLOG; a census of other network namespaces
// needs CAP_SYS_ADMIN. On other systems the package compiles and its entry
// points return [ErrNotSupported].
//
// The package reads; it changes no socket, packet or setting.
package tracer
