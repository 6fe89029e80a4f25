// Package oracle asks the kernel, by ways that finwait does not use, what
// finwait has to say: tracefs for the transitions, ss for the sockets in each
// state, /proc/net for the counters.
package oracle
