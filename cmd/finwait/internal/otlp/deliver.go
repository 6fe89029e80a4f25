package otlp

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

const (
	// firstWait is how long to wait before a request is sent a second time;
	// each time it doubles, up to longestBackoff.
	firstWait      = 500 * time.Millisecond
	longestBackoff = 10 * time.Second
	// longestWait is how long the other side may have us wait.
	longestWait = 10 * time.Minute
)

// Stats is what sending has been like. Every number only grows.
type Stats struct {
	// Requests is how often a request was sent, and Retries how often it had
	// been sent before.
	Requests, Retries uint64
	// Unconfirmed is the number of records, or data points, in requests that may
	// have been taken though no answer came. They were sent again, or lost.
	Unconfirmed uint64
	// Rejected is the number of those that the other side has taken out of
	// requests that it took.
	Rejected uint64
}

// client sends requests until they are taken.
type client struct {
	transport transport
	budget    time.Duration
	firstWait time.Duration
	notBefore time.Time // the other side wants no request before that

	requests, retries, unconfirmed, rejected atomic.Uint64
}

func newClient(s Signal, c *Config, version string) (*client, error) {
	e := c.endpoints[s]
	t, err := newTransport(s, &e, version)
	if err != nil {
		return nil, err
	}
	return &client{transport: t, budget: e.budget, firstWait: firstWait}, nil
}

func (c *client) stats() Stats {
	return Stats{
		Requests: c.requests.Load(), Retries: c.retries.Load(),
		Unconfirmed: c.unconfirmed.Load(), Rejected: c.rejected.Load(),
	}
}

// deliver sends a request that has n records until it is taken, refused for
// good, or it is too late. It returns how many of them are taken.
func (c *client) deliver(ctx context.Context, body []byte, n int, tooLate time.Time) (taken int, err error) {
	if body, err = c.transport.encode(body); err != nil {
		return 0, err
	}
	for tries := 0; ; tries++ {
		if waitErr := c.await(ctx, tries, tooLate); waitErr != nil {
			return 0, andLast(waitErr, err)
		}
		c.requests.Add(1)
		if tries > 0 {
			c.retries.Add(1)
		}
		a := c.transport.send(ctx, body)
		if a.unsure {
			c.unconfirmed.Add(uint64(n))
		}
		switch {
		case a.err == nil:
			return c.accept(a, n)
		case !a.retry:
			return 0, a.err
		}
		err = a.err
		if a.after > 0 {
			c.notBefore = time.Now().Add(a.after)
		}
	}
}

// accept counts a request that was taken.
func (c *client) accept(a answer, n int) (taken int, err error) {
	rejected := int(min(max(a.rejected, 0), int64(n)))
	if rejected == 0 {
		return n, nil
	}
	c.rejected.Add(uint64(rejected))
	return n - rejected, fmt.Errorf("%d of %d were rejected: %s", rejected, n, a.message)
}

// await waits until the request may be sent, the first time or again. It returns
// an error if that is not before it is too late.
func (c *client) await(ctx context.Context, tries int, tooLate time.Time) error {
	wait := time.Until(c.notBefore)
	if tries > 0 {
		wait = max(wait, c.backoff(tries))
	}
	late := false
	if left := time.Until(tooLate); wait > 0 && wait > left {
		wait, late = left, true
	}
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if late {
		return fmt.Errorf("given up after %d tries, when it was too late", tries)
	}
	return nil
}

// backoff returns a random time around twice the one before.
func (c *client) backoff(tries int) time.Duration {
	most := min(c.firstWait<<min(tries-1, 16), longestBackoff)
	return most/2 + rand.N(most)
}

// andLast adds what the last try came to.
func andLast(err, last error) error {
	if last == nil {
		return err
	}
	return fmt.Errorf("%w: %w", err, last)
}
