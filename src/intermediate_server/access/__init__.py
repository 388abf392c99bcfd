"""Access: admission of connections, the files that it is decided by, and quotas of identities."""
