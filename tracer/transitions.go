package tracer

// LegalTransitions returns every transition that a TCP socket makes on Linux,
// in the order of a connection's life. There are no others: the diagram of RFC
// 9293 has arrows that Linux has not (FIN_WAIT1→TIME_WAIT, LISTEN→SYN_SENT),
// and Linux has some that the diagram has not (SYN_RECV→CLOSE_WAIT).
//
// They are given as a [Tracer] reports them, which differs from the words of
// the tracepoint sock:inet_sock_set_state in two places: a socket that comes
// out of a listener leaves StateClose (the tracepoint says LISTEN, where its
// listener still is), and the states of mini-sockets and of half-open
// connections, which are request sockets, are their own.
func LegalTransitions() []Transition {
	return []Transition{
		// Listeners.
		{StateClose, StateListen}, // inet_csk_listen_start
		{StateListen, StateClose}, // __tcp_close; inet_csk_listen_start if the port is taken; tcp_disconnect; tcp_abort

		// Opening by connect.
		{StateClose, StateSynSent},       // tcp_v4_connect, tcp_v6_connect
		{StateSynSent, StateEstablished}, // tcp_finish_connect
		{StateSynSent, StateSynRecv},     // tcp_rcv_synsent_state_process: SYNs that crossed
		{StateSynSent, StateClose},       // tcp_done; tcp_v4_connect and tcp_v6_connect that fail; tcp_close_state; tcp_disconnect

		// Opening through a listener. The request socket comes first, except
		// with SYN cookies and Fast Open.
		{StateClose, StateNewSynRecv},    // inet_csk_reqsk_queue_hash_add
		{StateNewSynRecv, StateSynRecv},  // inet_csk_complete_hashdance
		{StateNewSynRecv, StateClose},    // inet_csk_reqsk_queue_drop
		{StateClose, StateSynRecv},       // inet_csk_clone_lock after a SYN cookie, or for Fast Open
		{StateSynRecv, StateEstablished}, // tcp_rcv_state_process
		{StateSynRecv, StateFinWait1},    // tcp_close_state: Fast Open, closed before the handshake ended
		{StateSynRecv, StateCloseWait},   // tcp_fin: Fast Open, FIN along with the SYN
		{StateSynRecv, StateClose},       // tcp_done; inet_ehash_nolisten; tcp_disconnect by a closing listener

		// Open.
		{StateEstablished, StateFinWait1},  // tcp_close_state
		{StateEstablished, StateCloseWait}, // tcp_fin
		{StateEstablished, StateClose},     // tcp_done; __tcp_close with unread data; tcp_disconnect

		// Closing first.
		{StateFinWait1, StateFinWait2}, // tcp_rcv_state_process
		{StateFinWait1, StateClosing},  // tcp_fin: FINs that crossed
		{StateFinWait1, StateClose},    // tcp_done; __tcp_close with unread data
		{StateFinWait2, StateTimeWait}, // tcp_fin by tcp_time_wait; tcp_timewait_state_process for an orphan
		{StateFinWait2, StateClose},    // inet_twsk_kill of an orphan; tcp_done; __tcp_close with TCP_LINGER2 < 0
		{StateClosing, StateTimeWait},  // tcp_rcv_state_process by tcp_time_wait
		{StateClosing, StateClose},     // tcp_done
		{StateTimeWait, StateClose},    // inet_twsk_kill: tw_timer_handler, inet_twsk_deschedule_put

		// Closing second.
		{StateCloseWait, StateLastAck}, // tcp_close_state
		{StateCloseWait, StateClose},   // tcp_done; __tcp_close with unread data; tcp_disconnect
		{StateLastAck, StateClose},     // tcp_done
	}
}
