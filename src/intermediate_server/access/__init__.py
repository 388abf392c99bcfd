"""Access: who may be connected, what is loaded to decide it, and what identities hold and may use."""
