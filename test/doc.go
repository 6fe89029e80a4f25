// Package test holds finwait to the kernel: real connections of every kind, in
// network namespaces that the tests make, against tracefs, ss and the kernel's
// own totals. It tests the package tracer and the built command from outside.
//
// Almost all of it needs root; without, it is skipped, and with CI_PRIVILEGED=1
// it fails instead.
package test
