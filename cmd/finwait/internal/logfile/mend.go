package logfile

import (
	"bytes"
	"io"
)

// mend cuts the file back to its last whole line, if its last line is the beginning
// of a record: of a process that was killed while it wrote, or of one before a power
// cut, after which a file may also end with zeros. Half a record is of no use,
// and whoever reads the file would have to tell it from damage.
//
// If the last line is something else, or cannot be cut off, it stays, and is ended
// before the next record: the path may have been a mistake, and the file dear to
// somebody.
func (l *Log) mend() {
	end, ok := lastRecord(l.file, l.size)
	if ok && end == l.size {
		return
	}
	if ok && l.file.Truncate(end) == nil {
		l.counters.torn.Add(1)
		l.size = end
		return
	}
	l.first = append(l.first[:0], '\n')
}

// lastRecord returns where the last whole line of a file of that size ends. It is
// not ok if what comes after it does not look like a record.
func lastRecord(f io.ReaderAt, size int64) (end int64, ok bool) {
	size, zeros := trimZeros(f, size)
	var tail [pieceSize]byte // longer than any record
	part := tail[:min(size, int64(len(tail)))]
	if _, err := f.ReadAt(part, size-int64(len(part))); err != nil && err != io.EOF {
		return 0, false
	}
	last := part[bytes.LastIndexByte(part, '\n')+1:]
	if len(last) == len(part) && size > int64(len(part)) {
		return 0, false
	}
	if len(last) == 0 && size == 0 && zeros > 0 {
		return 0, false // nothing but zeros: no log
	}
	known := min(len(last), len(recordStart))
	return size - int64(len(last)), string(last[:known]) == recordStart[:known]
}

// trimZeros returns the size of the file without the zero bytes at its end, and how
// many these are.
func trimZeros(f io.ReaderAt, size int64) (rest, zeros int64) {
	var block [4096]byte
	for rest = size; rest > 0; {
		part := block[:min(rest, int64(len(block)))]
		if _, err := f.ReadAt(part, rest-int64(len(part))); err != nil && err != io.EOF {
			break
		}
		kept := bytes.TrimRight(part, "\x00")
		rest -= int64(len(part) - len(kept))
		if len(kept) > 0 {
			break
		}
	}
	return rest, size - rest
}
