"""All that exists only for those who come from the older Rust server; to end the migration, delete this room.

It lies below ``config``, whose reader of files, command line and metrics each call it in one place: what is here knows
nothing of the server, and nothing has to be registered before a file can be read. Remove the room, the lines that fail
to import it, the tests that name the older server, docs/migration.md and the layer in pyproject.toml.
"""
