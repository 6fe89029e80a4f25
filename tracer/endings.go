package tracer

import "iter"

// Ending is one way for a socket to end.
type Ending struct {
	// Old is the state that it was in: StateNewSynRecv for a half-open
	// connection that was given up, StateTimeWait for a TIME_WAIT that is over.
	Old    State
	Reason Reason
	Side   Side
}

func (e Ending) valid() bool {
	return e.Old.valid() && int(e.Reason) < len(reasonNames) && int(e.Side) < len(sideNames)
}

// Endings counts the sockets that have ended, by how they did. The zero value
// is empty. There is one for each transition to CLOSE of Counters.
type Endings struct {
	cells [numStates][len(reasonNames)][len(sideNames)]uint64
}

// Count returns how many have ended that way.
func (e *Endings) Count(way Ending) uint64 {
	if !way.valid() {
		return 0
	}
	return e.cells[way.Old][way.Reason][way.Side]
}

// Add counts n more that have ended that way. One that cannot be is not counted.
func (e *Endings) Add(way Ending, n uint64) {
	if way.valid() {
		e.cells[way.Old][way.Reason][way.Side] += n
	}
}

// All yields every way in which at least one socket has ended, with their number.
func (e *Endings) All() iter.Seq2[Ending, uint64] {
	return func(yield func(Ending, uint64) bool) {
		for _, old := range States() {
			for reason := range reasonNames {
				for side := range sideNames {
					way := Ending{old, Reason(reason), Side(side)}
					if n := e.Count(way); n > 0 && !yield(way, n) {
						return
					}
				}
			}
		}
	}
}
