"""Sessions: what happens to one connection from its handshake to its end, and to what it registers."""
