//go:build !linux

package otlp

// kernelVersion is not known.
func kernelVersion() (version, description string) { return "", "" }
