// Package netns gives a test a network namespace of its own.
//
// Traffic made there disturbs nothing on the host and is not disturbed by it:
// ports, sysctls and counters are the test's alone.
package netns
