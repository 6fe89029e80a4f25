package measure

import "time"

// Process is what the calling process has cost since it began. It is a plain
// value.
type Process struct {
	// User and System are the CPU time of all its threads. Valid only if
	// CPUKnown.
	User, System time.Duration
	CPUKnown     bool
	// Resident is how many bytes of its memory are in RAM now, and Peak how
	// many were at the most: VmRSS and VmHWM of /proc/self/status, which the
	// kernel adds up from what each thread and CPU counts, and only nearly.
	// What is mapped twice, as the data of a ring buffer is, counts twice.
	// Valid only if MemoryKnown.
	Resident, Peak uint64
	MemoryKnown    bool
}
