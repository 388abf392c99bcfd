"""Sessions: a connection from its handshake to its end, and its registrations."""
