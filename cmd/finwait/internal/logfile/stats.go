package logfile

import "sync/atomic"

// Stats says what a log has done so far, but for the records, which the queue
// counts.
type Stats struct {
	// Rotated is how often the file was renamed, because of its size or age.
	Rotated uint64
	// RotateFailures is how often that did not work.
	RotateFailures uint64
	// Removed is how many rotated files were removed for the bound.
	Removed uint64
	// Torn is how many ends of a file that were not whole lines were cut off.
	Torn uint64
	// Patched is how many could not be cut off. The line was ended later: whole
	// if this process had begun it, so that there is one line more than kept
	// records; and damaged if another process had.
	Patched uint64
	// CompressFailures is how often a rotated file could not be compressed.
	CompressFailures uint64
	// SyncFailures is how often a file could not be written through to the disk:
	// records that count as kept may be lost.
	SyncFailures uint64
	// Bytes is what the file and the rotated ones have in all, and Files how
	// many they are. Both are 0 for what is not a file.
	Bytes int64
	Files int
}

// counters are the counters of Stats, which several goroutines add to.
type counters struct {
	rotated, rotateFailures, removed, torn, patched, compressFailures, syncFailures atomic.Uint64
}

// Stats returns what the log has done so far. It may be called from any goroutine,
// and waits for no disk.
func (l *Log) Stats() Stats {
	c := &l.counters
	bytes, files := l.archive.usage()
	return Stats{
		Rotated:          c.rotated.Load(),
		RotateFailures:   c.rotateFailures.Load(),
		Removed:          c.removed.Load(),
		Torn:             c.torn.Load(),
		Patched:          c.patched.Load(),
		CompressFailures: c.compressFailures.Load(),
		SyncFailures:     c.syncFailures.Load(),
		Bytes:            bytes,
		Files:            files,
	}
}
