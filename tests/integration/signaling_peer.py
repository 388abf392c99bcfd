"""Agents and connectors of the field that signal, and take a direct path where they find one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from intermediate_server.wire.signaling import Candidate, Message, decode
from tests.integration.client_ca import Ca
from tests.integration.packets import Address, InnerUdp, read_udp, udp_packet
from tests.integration.peers import PATIENCE, QuichePeer, WirePeer, read_address
from tests.integration.quiche_field import APPLICATION, INNER
from tests.integration.signals import framed

CONNECTOR_NAME = "ztna-connector"
"""What agents send as SNI on a direct path, and expect in the certificate."""


class SignalingPeer(QuichePeer):
    """A quiche peer of profile ``agent-core``, ``connector``, or ``test-client``, which does nothing by itself.

    The connector answers each offer and each probe. The agent begins with :meth:`offer` and goes on by itself.
    """

    async def offer(self, session: int, service: bytes) -> None:
        """Ask for a direct path to the connector of a service, as an agent."""
        await self._done({"offer": {"session": session, "service": service.decode()}})

    async def tell(self, candidates: Sequence[Candidate]) -> None:
        """Tell these candidates in offers and answers from now on."""
        await self._done({"candidates": list(map(_candidate, candidates))})

    async def write(self, data: bytes, *, stream: int = 0, fin: bool = False) -> None:
        """Write bytes to a stream, whatever they are."""
        await self._done({"stream": {"id": stream, "hex": data.hex(), "fin": fin}})

    async def signal(self, message: Message) -> None:
        """Write a message to stream 0."""
        await self.write(framed(message))

    async def read_streams(self, on: bool) -> None:
        """Go on reading streams, or leave them unread."""
        await self._done({"reading": on})

    async def message(self) -> Message:
        """The next message on a stream."""
        return (await self.message_on())[1]

    async def message_on(self) -> tuple[int, Message]:
        """The next message, and the stream it came on."""
        stream, payload = await self.payload_on()
        return stream, decode(payload)

    async def payload_on(self) -> tuple[int, bytes]:
        """The payload of the next frame, and the stream it came on."""
        event = await self._next(self.happenings["frame"], "frame")
        return event["stream"], bytes.fromhex(event["hex"])

    async def stream_end(self) -> tuple[int, str, int | None]:
        """The next stream that ended: its number, ``finished``, ``reset``, ``stopped`` or ``refused``, the code."""
        event = await self._next(self.happenings["stream_ended"], "end of a stream")
        return event["stream"], event["how"], event["code"]

    async def step(self) -> tuple[str, Address | None]:
        """The next thing that happened to a direct path, and the other end where it is known."""
        event = await self._next(self.happenings["direct"], "step of a direct path")
        return event["step"], event["address"] and read_address(event["address"])

    async def until(self, *steps: str) -> tuple[str, Address | None]:
        """The first of these steps, whatever comes before it."""
        while True:
            step, address = await self.step()
            if step in steps:
                return step, address

    async def send_packet(self, service: bytes, packet: bytes) -> bool:
        """Send a packet on the way an agent would choose; returns whether that was the direct one."""
        event = await self._ask({"send_packet": {"service": service.decode(), "hex": packet.hex()}}, "routed")
        assert event["error"] is None, event["error"]
        direct: bool = event["direct"]
        return direct

    async def direct_packet(self) -> bytes:
        """The next packet that came directly."""
        return bytes.fromhex((await self._next(self.happenings["direct_datagram"], "direct packet"))["hex"])

    async def close_direct(self) -> None:
        """Close the direct connections."""
        await self._done({"close_direct": True})


async def exchange(
    agent: SignalingPeer,
    connector: SignalingPeer,
    service: bytes,
    payload: bytes,
    backend: Address,
    *,
    inner: Address = INNER,
) -> bool:
    """A packet to the application and its answer by the relay; returns whether the packet went directly.

    It is sent until the answer has come: the connector takes one of many packets of its direct connections for a probe.
    """
    packet = udp_packet(inner, APPLICATION, payload)
    waiting = asyncio.ensure_future(_arrival(agent, payload))
    direct = False
    try:
        async with asyncio.timeout(PATIENCE):
            while not waiting.done():
                direct = await agent.send_packet(service, packet)
                await asyncio.wait({waiting}, timeout=0.2)
        answer = waiting.result()
    finally:
        waiting.cancel()
    assert (answer.source, answer.destination) == (backend, inner)
    assert agent.happenings["direct_datagram"].empty(), "answers come by the relay"
    if direct:
        while await connector.direct_packet() != packet:
            pass
    else:
        await _arrival(connector, payload)
    return direct


async def _arrival(peer: WirePeer, payload: bytes) -> InnerUdp:
    """Wait for an inner UDP packet with this payload that comes by the relay."""
    while True:
        packet = await peer.packet()
        if packet[9] == 17 and packet.endswith(payload):
            return read_udp(packet)


def connector_certificate(directory: Path) -> Sequence[str]:
    """The flags of a connector that accepts direct connections; its certificate is its own CA."""
    ca = Ca(CONNECTOR_NAME, names=(CONNECTOR_NAME,))
    certificate, key = directory / "direct.pem", directory / "direct.key"
    certificate.write_bytes(ca.certificate.public_bytes(Encoding.PEM))
    key.write_bytes(ca.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return ("--direct-cert", str(certificate), "--direct-key", str(key))


def _candidate(candidate: Candidate) -> Mapping[str, Any]:
    return {
        "kind": candidate.kind.name.lower(),
        "address": str(candidate.address),
        "priority": candidate.priority,
        "foundation": candidate.foundation,
        "related": None if candidate.related is None else str(candidate.related),
    }
