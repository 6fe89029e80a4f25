package demo

import (
	"context"
	"runtime"
)

// Connect makes n connections, one after the other, on the loopback of a network
// namespace that exists for them alone. The client closes first. It returns
// early, with the error of ctx, when that is done. It needs CAP_SYS_ADMIN and
// CAP_NET_ADMIN.
func Connect(ctx context.Context, n int) error {
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // as in Start: thread and namespace end together
		failed <- connectAll(ctx, n)
	}()
	return <-failed
}

func connectAll(ctx context.Context, n int) error {
	l, err := enter()
	if err != nil {
		return err
	}
	defer l.Close()
	for range n {
		if err := ctx.Err(); err != nil {
			return err
		}
		client, server, err := connect(l)
		if err != nil {
			return err
		}
		client.Close()
		server.Close()
	}
	return nil
}
