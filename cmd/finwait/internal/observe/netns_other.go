//go:build !linux

package observe

func netnsCookie() uint64 { return 0 }

func namedPath(string, uint32) string { return "" }
