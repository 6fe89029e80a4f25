package tracer

import "errors"

// ErrNotSupported is returned, wrapped in what is missing, where the system
// cannot do what was asked: it is not Linux, the kernel is too old or has no
// BTF, or it hides what the tracer must know.
var ErrNotSupported = errors.New("not supported")

// errCountersOnly is returned where more is asked for than counters.
var errCountersOnly = errors.New("the tracer keeps counters only (Options.CountersOnly)")
