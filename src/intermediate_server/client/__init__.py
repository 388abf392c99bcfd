"""Clients of a relay: agents and connectors in asyncio, on the same engine as the server.

::

    async with connect(profile="agent.ztna") as connection:
        print("seen at", await connection.wait_observed())
        await connection.register(Role.AGENT, "web")
        connection.send(packet)
        reply = await connection.receive()
"""

from intermediate_server.client.connection import Closed, Connection
from intermediate_server.client.engine import ClientEngine, connect
from intermediate_server.client.profile import default_profile

__all__ = ["ClientEngine", "Closed", "Connection", "connect", "default_profile"]
