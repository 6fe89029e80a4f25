package lifecycle

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// What these tell the service manager goes to the socket that NOTIFY_SOCKET names.
// Without one nobody is told, which is no error.

// Ready says that the agent has started, or is done with reloading.
func Ready(status string) error { return notify(daemon.SdNotifyReady, statusLine(status)) }

// Reloading says that the agent reads its configuration again. Ready follows.
func Reloading() error {
	return notify(daemon.SdNotifyReloading, strings.TrimSuffix(daemon.SdNotifyMonotonicUsec(), "\n"))
}

// Stopping says that the agent is about to end.
func Stopping(status string) error { return notify(daemon.SdNotifyStopping, statusLine(status)) }

func statusLine(status string) string {
	return "STATUS=" + strings.Join(strings.FieldsFunc(status, func(r rune) bool { return r == '\n' || r == '\r' }), " ")
}

func notify(lines ...string) error {
	if _, err := daemon.SdNotify(false, strings.Join(lines, "\n")); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}

// Watch tells the service manager that the agent is well, twice as often as it
// wants to hear it, as long as check returns no error. It returns when ctx is done,
// or at once if the service manager does not want to hear it.
func Watch(ctx context.Context, log *slog.Logger, check func() error) {
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("the service manager's watchdog is not fed", "error", err)
	}
	if err != nil || limit <= 0 {
		return
	}
	tick := time.NewTicker(max(limit/2, time.Millisecond))
	defer tick.Stop()
	w := watch{log: log}
	for {
		w.tell(check())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// watch is what was told last.
type watch struct {
	log          *slog.Logger
	ill, unheard bool
}

func (w *watch) tell(illness error) {
	var err error
	switch {
	case illness == nil && w.ill:
		w.log.Info("works again")
		err = notify(daemon.SdNotifyWatchdog, statusLine("works again"))
	case illness == nil:
		err = notify(daemon.SdNotifyWatchdog)
	case !w.ill:
		w.log.Error("hangs; the service manager is not told that all is well", "error", illness)
		err = notify(statusLine("hangs: " + illness.Error()))
	}
	w.ill = illness != nil
	if err != nil && !w.unheard {
		w.log.Warn("the service manager does not hear", "error", err)
	}
	w.unheard = err != nil
}
