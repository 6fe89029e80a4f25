//go:build !linux

package lifecycle

import (
	"errors"
	"fmt"
)

// Drop is not supported.
func Drop() (kept []string, err error) {
	return nil, fmt.Errorf("drop privileges: %w", errors.ErrUnsupported)
}
