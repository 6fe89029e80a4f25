// Package lifecycle has what a finwait that stays does besides tracing: it is the
// only one on its host, tells the service manager how it is, gives up the
// privileges that it does not need, and notices when it hangs.
package lifecycle
