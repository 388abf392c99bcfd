"""Joining: tokens, the messages of ``ztna-join/1`` and the issuer that answers them; no asyncio, no sockets."""
