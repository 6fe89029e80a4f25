package lifecycle

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// Drop gives up every capability but those of [Capabilities] that are kept, for good and in all
// threads, and returns the names of those that are left. The process stays who
// it is; no program that it might run would get anything back.
//
// It is called when the tracer is attached and everything is open that needs more.
func Drop() (kept []string, err error) {
	var values []cap.Value
	for _, c := range Capabilities {
		if !c.Kept {
			continue
		}
		value, err := cap.FromName(c.kernelName())
		if err != nil { // a name that is none
			panic(err)
		}
		values = append(values, value)
	}
	left, err := dropTo(values)
	if err != nil {
		return nil, fmt.Errorf("drop privileges: %w", err)
	}
	return left, nil
}

func dropTo(keep []cap.Value) (left []string, err error) {
	have := cap.GetProc()
	if may, err := have.GetFlag(cap.Effective, cap.SETPCAP); err != nil {
		return nil, err
	} else if may {
		if err := dropForPrograms(); err != nil {
			return nil, err
		}
	}
	if _, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return nil, fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := cap.ResetAmbient(); err != nil {
		return nil, fmt.Errorf("clear the ambient set: %w", err)
	}
	want := cap.NewSet()
	for _, value := range keep {
		permitted, err := have.GetFlag(cap.Permitted, value)
		if err != nil || !permitted {
			continue // a kernel that does not know it, or a start without it
		}
		if err := want.SetFlag(cap.Permitted, true, value); err != nil {
			return nil, err
		}
		if err := want.SetFlag(cap.Effective, true, value); err != nil {
			return nil, err
		}
		left = append(left, strings.ToUpper(value.String()))
	}
	if err := want.SetProc(); err != nil {
		return nil, fmt.Errorf("set capabilities: %w", err)
	}
	return left, nil
}

// dropForPrograms has no program that the process might run get a capability,
// from its file or for being root. Where the process may not do that, those who
// started it without CAP_SETPCAP have.
func dropForPrograms() error {
	for value := range cap.MaxBits() {
		if err := cap.DropBound(value); err != nil {
			return fmt.Errorf("drop %v from the bounding set: %w", value, err)
		}
	}
	const locked = cap.SecbitNoRoot | cap.SecbitNoRootLocked | cap.SecbitNoSetUIDFixup | cap.SecbitNoSetUIDFixupLocked |
		cap.SecbitKeepCapsLocked | cap.SecbitNoCapAmbientRaise | cap.SecbitNoCapAmbientRaiseLocked
	if _, err := cap.Prctlw(unix.PR_SET_SECUREBITS, uintptr(locked)); err != nil {
		return fmt.Errorf("set secure bits: %w", os.NewSyscallError("prctl", err))
	}
	return nil
}
