"""All that exists only for those who come from the older Rust server, so that one commit can delete it.

The room lies below ``config``, which reads the older files through it; so nothing has to be registered before a file
can be read, and the room knows nothing of the server. With it go the lines that import it, its tests,
docs/migration.md and the layer in pyproject.toml.
"""
