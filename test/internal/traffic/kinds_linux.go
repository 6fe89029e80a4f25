package traffic

// Kinds returns every kind of connection.
func Kinds() []Kind {
	return []Kind{
		ActiveClose, PassiveClose, HalfClose, HalfCloseThenClose,
		Orphan, OrphanTimeout,
		SimultaneousClose, CrossedClose,
		ResetByLinger, ResetByUnreadData, Refused, ConnectTimeout, ListenerClosed,
		Reconnect, ListenFails, SelfConnect, FastOpen, MPTCP,
	}
}
