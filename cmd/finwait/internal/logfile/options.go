package logfile

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/finwait/finwait/cmd/finwait/internal/output"
)

// Options are those of a log.
type Options struct {
	// Path is the file, or "-" for standard output, which /dev/stdout means too.
	// A symbolic link there is followed once, by Open. It may be a FIFO. What is
	// said below of rotation is for files: others have none.
	Path string
	// MaxSize is how many bytes a file may have before it is rotated, MinSize at
	// least. 0 means any.
	MaxSize int64
	// MaxAge is how long after its first record a file is rotated, whether or not
	// another record comes. 0 means never.
	MaxAge time.Duration
	// MaxTotal bounds the bytes of the file and the rotated ones together, and of
	// what is being compressed. The oldest are removed for it. It must be twice
	// MaxSize at least, which is half of it if it is 0. 0 means no bound.
	MaxTotal int64
	// Compress is how rotated files are compressed, one of Compressions. ""
	// means none.
	Compress string
	// Sync is when the records are made to outlive a power cut.
	Sync Sync
	// Output is for the encoder of the records.
	Output output.Options
	// Log is told of what goes wrong in the background.
	Log *slog.Logger
}

// MinSize is the smallest MaxSize. It holds any record.
const MinSize = 64 << 10

// Compressions are what Options.Compress may be.
var Compressions = []string{"none", "gzip", "zstd"}

// extensions are what the names of compressed files end with.
var extensions = map[string]string{"": "", "none": "", "gzip": ".gz", "zstd": ".zst"}

// Sync is when a file is written through to the disk (fsync): never, which leaves
// it to the kernel; when it is rotated, moved away or closed; or then and also so
// long after a record, if it is a time.
type Sync time.Duration

// The values of Sync that are not a time.
const (
	SyncNever  Sync = 0
	SyncRotate Sync = -1
)

// ParseSync returns the Sync of "never", "rotate" or a duration such as 5s.
func ParseSync(text string) (Sync, error) {
	switch text {
	case "never":
		return SyncNever, nil
	case "rotate":
		return SyncRotate, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%q is not when to sync (want never, rotate or a time such as 5s)", text)
	}
	return Sync(d), nil
}

// String returns what ParseSync takes.
func (s Sync) String() string {
	switch {
	case s == SyncNever:
		return "never"
	case s < 0:
		return "rotate"
	}
	return time.Duration(s).String()
}

// Check returns what is wrong with the options, whatever there is on disk.
func (o Options) Check() error {
	_, err := o.validate()
	return err
}

// CheckPlace returns an error if there is no folder for the file.
func (o Options) CheckPlace() error {
	if o.Path == "-" || o.Path == "/dev/stdout" {
		return nil
	}
	dir := filepath.Dir(o.Path)
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is not a folder", dir)
	}
	if err != nil {
		return fmt.Errorf("log to %s: %w", o.Path, err)
	}
	return nil
}

// validate returns the options with MaxSize as it must be for MaxTotal.
func (o Options) validate() (Options, error) {
	_, known := extensions[o.Compress]
	switch {
	case o.Path == "":
		return o, fmt.Errorf("the log has no path (want a file, or - for standard output)")
	case o.MaxSize < 0 || o.MaxSize > 0 && o.MaxSize < MinSize:
		return o, fmt.Errorf("a log of %d bytes is too small to be rotated (want %d at least, or 0)", o.MaxSize, MinSize)
	case o.MaxAge < 0:
		return o, fmt.Errorf("%v is not an age to rotate a log at", o.MaxAge)
	case o.MaxTotal < 0 || o.MaxTotal > 0 && o.MaxTotal < 2*max(o.MaxSize, MinSize):
		return o, fmt.Errorf("%d bytes are too few for all logs: one alone may have %d (want twice as much at least, or 0)", o.MaxTotal, max(o.MaxSize, MinSize))
	case !known:
		return o, fmt.Errorf("unknown compression %q (want none, gzip or zstd)", o.Compress)
	case o.Sync < SyncRotate:
		return o, fmt.Errorf("%v is not a time to sync after", time.Duration(o.Sync))
	}
	if o.MaxTotal > 0 && o.MaxSize == 0 {
		o.MaxSize = o.MaxTotal / 2
	}
	return o, nil
}
