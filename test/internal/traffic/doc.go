// Package traffic makes real TCP connections of every kind on the loopback
// device of the current network namespace, and says exactly which transitions
// each socket goes through.
//
// All of it is raw system calls on one thread: sockets of package net would be
// MPTCP listeners and would leave the namespace with their goroutines. No step
// sleeps blindly: each waits until the kernel says that the sockets are where
// the next step needs them.
//
// Every run has a loopback address that no other run on the host is likely to
// have, so its events can be told from the noise of other namespaces.
package traffic
