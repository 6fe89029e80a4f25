package test

import (
	"fmt"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// actorPort makes this binary another process with connections of its own: it
// makes one to itself on that port and ends. actorUID is who it does that as.
const (
	actorPort = "FINWAIT_TEST_ACTOR_PORT"
	actorUID  = "FINWAIT_TEST_ACTOR_UID"
)

// others are what this binary is, instead of tests, when the variable is set.
var others = []struct {
	variable string
	be       func(value string) error
}{
	{actorPort, func(port string) error { return act(port, os.Getenv(actorUID)) }},
	{strangerCall, func(call string) error { return beStranger(call, os.Getenv(strangerAddr)) }},
	{swarmAddr, func(addr string) error { return beSwarm(addr, os.Getenv(swarmCount)) }},
	{bystanderAddr, beBystander},
	{httpRole, beHTTP},
}

func TestMain(m *testing.M) {
	for _, o := range others {
		value := os.Getenv(o.variable)
		if value == "" {
			continue
		}
		if err := o.be(value); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if what := os.Getenv(holderDo); what != "" {
		if err := beHolder(what, os.Getenv(holderAddr)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	closeShared()
	os.RemoveAll(binaryDir())
	os.Exit(code)
}

func act(portWord, uidWord string) error {
	port, err := strconv.ParseUint(portWord, 10, 16)
	if err != nil {
		return err
	}
	if uidWord != "" {
		uid, err := strconv.Atoi(uidWord)
		if err != nil {
			return err
		}
		if err := unix.Setuid(uid); err != nil {
			return fmt.Errorf("setuid: %w", err)
		}
	}
	_, err = connectTo(uint16(port), 1, unix.AF_INET, clientFirst)
	return err
}
