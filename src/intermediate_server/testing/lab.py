"""A whole network in processes on this host: CA, relay, applications, connector and agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TypeVar

from intermediate_server.client import ClientEngine, Connection
from intermediate_server.client.join import join
from intermediate_server.client.service_address import service_addresses
from intermediate_server.errors import ConnectError, IntermediateServerError
from intermediate_server.join.tokens import Token
from intermediate_server.testing.applications import PAGE
from intermediate_server.testing.ping import ping
from intermediate_server.testing.programs import Agent, Application, Client, Connector, Program, ProgramError, Relay
from intermediate_server.types import Role

P = TypeVar("P", bound=Program)

PINGER = IPv4Address("100.64.0.1")
"""Inner source of the pings; the relay translates it."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step, and its outcome."""

    name: str
    seconds: float
    result: str = ""
    error: str | None = None


class Lab:
    """Everything that runs. Made by :meth:`running`; :meth:`steps` brings it up one by one."""

    relay: Relay
    connector: Connector
    agent: Agent
    http: Application
    tcp_echo: Application
    udp_echo: Application

    def __init__(self, directory: Path, stack: AsyncExitStack) -> None:
        self.directory = directory
        self.doing = ""
        """The step under way."""
        self._stack = stack
        self._pinger: Connection | None = None

    @classmethod
    @asynccontextmanager
    async def running(cls, directory: Path) -> AsyncIterator[Lab]:
        """A lab with its files in ``directory``; all processes end with the block."""
        async with AsyncExitStack() as stack:
            yield cls(directory, stack)

    async def steps(self) -> AsyncIterator[Step]:
        """Bring it up and try it, step by step; ends after the first step that fails."""
        todo: list[tuple[str, Callable[[], Awaitable[str]]]] = [
            ("start the relay with a CA of its own", self._start_relay),
            ("start an HTTP and two echo applications", self._start_applications),
            ("join as a connector for them", self._start_connector),
            ("join as an agent with a local port for each", self._start_agent),
            ("fetch a page through the relay", self.fetch),
            ("echo over TCP and UDP", self.echo),
            ("ping through the relay", self._ping),
        ]
        loop = asyncio.get_running_loop()
        for name, work in todo:
            begun, self.doing = loop.time(), name
            try:
                result = await work()
            except (IntermediateServerError, OSError, TimeoutError) as error:
                yield Step(name, loop.time() - begun, error=str(error) or type(error).__name__)
                return
            yield Step(name, loop.time() - begun, result)

    @property
    def urls(self) -> dict[str, str]:
        """Addresses to try while it runs, by service."""
        web, tcp, udp = self.agent.addresses
        return {"web": f"http://{web}/", "tcp-echo": f"tcp://{tcp}", "udp-echo": f"udp://{udp}"}

    async def fetch(self) -> str:
        """Fetch the page as a browser would. Raises ``ProgramError`` when it is not the right one."""
        body = await _exchange(self.agent.addresses[0], b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n", PAGE)
        return f"{len(body)} bytes"

    async def echo(self) -> str:
        """Send a line to both echo applications. Raises ``ProgramError`` when another comes back."""
        await _exchange(self.agent.addresses[1], b"hello over TCP\n", b"hello over TCP\n")
        await _exchange_udp(self.agent.addresses[2], b"hello over UDP")
        return "both came back"

    async def round_trip(self) -> float:
        """Seconds that one ICMP echo takes from agent to connector and back.

        Raises ``TimeoutError`` when it is lost, and the errors of connecting.
        """
        if self._pinger is None or self._pinger.closed is not None:
            engine = await self._stack.enter_async_context(ClientEngine())
            profile = self._profile("pinger")
            token = await self.relay.token(Role.AGENT, "pinger", ["web"])
            await join(engine, Token.parse(token), profile, tell=lambda _: None)
            self._pinger = await engine.connect(profile=profile)
            await self._pinger.register(Role.AGENT, "web")
        return await ping(self._pinger, "web", PINGER, service_addresses("web")[0])

    async def peers(self) -> list[dict[str, Any]]:
        """The status of agent and connector; without an answer, its role and ``error``."""
        return [await _told("agent", self.agent), await _told("connector", self.connector)]

    def ended(self) -> Program | None:
        """A program that ended unasked."""
        programs = (self.relay, self.connector, self.agent, self.http, self.tcp_echo, self.udp_echo)
        return next((program for program in programs if program.process.returncode is not None), None)

    async def _start_relay(self) -> str:
        self.relay = await self._keep(Relay.begin(self.directory / "relay"))
        host, port = self.relay.address
        return f"{host}:{port}"

    async def _start_applications(self) -> str:
        self.http = await self._keep(Application.begin("http"))
        self.tcp_echo = await self._keep(Application.begin("tcp-echo"))
        self.udp_echo = await self._keep(Application.begin("udp-echo"))
        return ", ".join("{}:{}".format(*each.address) for each in (self.http, self.tcp_echo, self.udp_echo))

    async def _start_connector(self) -> str:
        backends = {
            "web": "tcp://{}:{}".format(*self.http.address),
            "tcp-echo": "tcp://{}:{}".format(*self.tcp_echo.address),
            "udp-echo": "udp://{}:{}".format(*self.udp_echo.address),
        }
        profile = self._profile("connector")
        self.connector = await self._keep(Connector.begin(self.relay, backends, profile=profile))
        return f"seen at {(await self.connector.status())['observed_address']}"

    async def _start_agent(self) -> str:
        forwards = [("tcp", "web"), ("tcp", "tcp-echo"), ("udp", "udp-echo")]
        self.agent = await self._keep(Agent.begin(self.relay, forwards, profile=self._profile("agent")))
        return f"seen at {(await self.agent.status())['observed_address']}"

    def _profile(self, name: str) -> Path:
        """A place for a new profile; the one of an earlier lab names a relay that is gone."""
        path = self.directory / f"{name}.ztna"
        path.unlink(missing_ok=True)
        return path

    async def _ping(self) -> str:
        return f"{1000 * await self.round_trip():.1f} ms"

    async def _keep(self, starting: Awaitable[P]) -> P:
        program = await starting
        self._stack.push_async_callback(program.terminate)
        return program


async def _told(role: str, client: Client) -> dict[str, Any]:
    try:
        return await client.status()
    except ConnectError as error:
        return {"role": role, "error": str(error)}


async def _exchange(address: str, request: bytes, wanted: bytes) -> bytes:
    """Send, and read until the expected end has come."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(request)
            answer = b""
            while not answer.endswith(wanted):
                more = await reader.read(65_536)
                if not more:
                    raise ProgramError(f"{address} ended after {len(answer)} bytes: {answer[:80]!r}")
                answer += more
            return answer
        finally:
            writer.close()


async def _exchange_udp(address: str, payload: bytes) -> None:
    """Send until it comes back: UDP may lose it."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    class Arrived(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: object) -> None:
            arrived.put_nowait(data)

    transport, _ = await loop.create_datagram_endpoint(Arrived, remote_addr=(host, int(port)))
    try:
        for _ in range(10):
            transport.sendto(payload)
            try:
                async with asyncio.timeout(1):
                    while await arrived.get() != payload:
                        pass
            except TimeoutError:
                continue
            return
        raise ProgramError(f"{address} did not answer over UDP")
    finally:
        transport.close()
