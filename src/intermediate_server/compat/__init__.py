"""Compatibility with the older Rust server, in one room so that one commit can delete it.

The room lies below ``config``, which reads the older files through it; so a file can be read without a registration,
and the room knows nothing of the server. With it go the lines that import it, its tests, docs/migration.md and the
layer in pyproject.toml.
"""
