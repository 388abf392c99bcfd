"""TUN interfaces in namespaces of their own, joined by a real relay process: the TUN tunnels of agent and connector."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import subprocess
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from intermediate_server.client.service_address import service_addresses
from intermediate_server.engine import Command, TunMap
from intermediate_server.types import Role
from tests.integration.conftest import PATIENCE, Server, StartServer
from tests.integration.packets import read_udp, udp_packet
from tests.integration.tunnels import TunnelEngine, connected, until

T = TypeVar("T")

pytestmark = pytest.mark.netns

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
MTU = 1280
PRIVATE, FORGED = "10.77.0.1", "10.100.0.4"
AGENT, APPLICATION, VIRTUAL = "100.64.0.1", str(service_addresses("web")[0]), "10.100.0.2"


def inside(namespace: str, make: Callable[[], T]) -> T:
    """``make()`` on a thread in the namespace; what it opens stays there."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with Path(f"/run/netns/{namespace}").open() as handle:
                if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            results.append(make())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass
class Host:
    """A namespace with a TUN interface."""

    namespace: str
    device: int

    def socket(self, kind: int, address: str | None = None) -> socket.socket:
        made = inside(self.namespace, lambda: socket.socket(socket.AF_INET, kind))
        made.setblocking(False)
        if address is not None:
            made.bind((address, 0))
        return made


def open_tun() -> int:
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))
    return device


@pytest.fixture
async def hosts() -> AsyncIterator[tuple[Host, Host]]:
    if os.geteuid() != 0 or not os.access("/dev/net/tun", os.W_OK):
        pytest.skip("needs root and /dev/net/tun")
    names = [f"tunnel{os.getpid()}{side}" for side in "ac"]
    made = []
    try:
        for name, address, route in (
            (names[0], AGENT, "10.100.0.0/24"),
            (names[1], APPLICATION, "100.64.0.0/10"),
        ):
            try:
                ip("netns", "add", name)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"no network namespaces: {error}")
            host = Host(name, inside(name, open_tun))
            made.append(host)
            ip("-n", name, "addr", "add", f"{address}/32", "dev", "tun0")
            ip("-n", name, "link", "set", "tun0", "mtu", str(MTU), "up")
            ip("-n", name, "route", "add", route, "dev", "tun0")
        yield made[0], made[1]
    finally:
        for host in made:
            os.close(host.device)
        for name in names:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)


async def joined(tunnels: TunnelEngine, server: Server, hosts: tuple[Host, Host], *others: TunMap) -> None:
    """Tunnel 101 is the agent's, with one mapped address and ``others``; 102 the connector's."""
    agent, connector = hosts
    web = TunMap(address=VIRTUAL, service=b"web", destination=APPLICATION)
    await tunnels.open_tun(Command.OpenTun(101, agent.device, [web, *others]))
    await tunnels.open_tun(Command.OpenTun(102, connector.device, own=[APPLICATION]))
    await tunnels.attach(102, await connected(tunnels, server, Role.CONNECTOR, "web"))
    await tunnels.attach(101, await connected(tunnels, server, Role.AGENT, "web"), ["web"])


async def test_tcp_through_a_mapped_address_survives_a_new_relay(
    start_server: StartServer, tunnels: TunnelEngine, hosts: tuple[Host, Host]
) -> None:
    server = await start_server("--client-auth", "off")
    await joined(tunnels, server, hosts)
    loop = asyncio.get_running_loop()
    listener = hosts[1].socket(socket.SOCK_STREAM, APPLICATION)
    listener.listen()
    client = hosts[0].socket(socket.SOCK_STREAM)
    body = os.urandom(1 << 22)
    async with asyncio.timeout(PATIENCE):
        _, (served, peer) = await asyncio.gather(
            loop.sock_connect(client, (VIRTUAL, listener.getsockname()[1])), loop.sock_accept(listener)
        )
        assert peer[0] == AGENT
        assert client.getpeername()[0] == VIRTUAL
        sending = asyncio.create_task(loop.sock_sendall(served, body))
        received = b""
        while len(received) < len(body) // 4:
            received += await loop.sock_recv(client, 65_536)
        server.process.kill()
        await server.process.wait()
        again = await start_server("--client-auth", "off", state_dir=server.state_dir)
        await tunnels.attach(102, await connected(tunnels, again, Role.CONNECTOR, "web"))
        await tunnels.attach(101, await connected(tunnels, again, Role.AGENT, "web"), ["web"])
        while len(received) < len(body):
            received += await loop.sock_recv(client, 65_536)
        await sending
    assert received == body
    for opened in (listener, client, served):
        opened.close()


async def test_a_connection_fails_at_once_while_there_is_no_relay(
    tunnels: TunnelEngine, hosts: tuple[Host, Host]
) -> None:
    web = TunMap(address=VIRTUAL, service=b"web", destination=APPLICATION)
    await tunnels.open_tun(Command.OpenTun(101, hosts[0].device, [web]))
    client = hosts[0].socket(socket.SOCK_STREAM)
    with pytest.raises(OSError, match="Connect call failed") as refused:
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_connect(client, (VIRTUAL, 80))
    client.close()
    assert refused.value.errno == errno.EHOSTUNREACH
    assert tunnels.counters(101)["drop_detached"] >= 1


async def test_what_has_no_way_is_refused_at_once(
    start_server: StartServer, tunnels: TunnelEngine, hosts: tuple[Host, Host]
) -> None:
    server = await start_server("--client-auth", "off")
    await joined(tunnels, server, hosts)
    loop = asyncio.get_running_loop()
    client = hosts[0].socket(socket.SOCK_STREAM)
    with pytest.raises(OSError, match="Connect call failed") as refused:
        async with asyncio.timeout(PATIENCE):
            await loop.sock_connect(client, ("10.100.0.3", 80))
    client.close()
    assert refused.value.errno == errno.EHOSTUNREACH
    assert tunnels.counters(101)["drop_no_service"] >= 1


async def test_a_connector_opens_nothing_but_its_services(
    start_server: StartServer, tunnels: TunnelEngine, hosts: tuple[Host, Host]
) -> None:
    server = await start_server("--client-auth", "off")
    await joined(tunnels, server, hosts, TunMap(address=FORGED, service=b"web", destination=PRIVATE))
    # An address of the host that has nothing to do with the service.
    ip("-n", hosts[1].namespace, "addr", "add", f"{PRIVATE}/32", "dev", "lo")
    loop = asyncio.get_running_loop()
    application = hosts[1].socket(socket.SOCK_DGRAM, "0.0.0.0")
    port = application.getsockname()[1]
    client = hosts[0].socket(socket.SOCK_DGRAM)
    client.sendto(b"private", (FORGED, port))
    await tunnels.wait_counter(102, "drop_no_service", 1)
    client.sendto(b"served", (VIRTUAL, port))
    async with asyncio.timeout(PATIENCE):
        assert await loop.sock_recv(application, 100) == b"served"
    application.close()
    client.close()


async def test_an_agent_takes_nothing_but_from_its_services(
    start_server: StartServer, tunnels: TunnelEngine, hosts: tuple[Host, Host]
) -> None:
    server = await start_server("--client-auth", "off")
    await joined(tunnels, server, hosts)
    ip("-n", hosts[0].namespace, "route", "add", PRIVATE, "dev", "tun0")
    ip("-n", hosts[1].namespace, "addr", "add", f"{PRIVATE}/32", "dev", "lo")
    loop = asyncio.get_running_loop()
    client = hosts[0].socket(socket.SOCK_DGRAM, AGENT)
    application, intruder = (hosts[1].socket(socket.SOCK_DGRAM, address) for address in (APPLICATION, PRIVATE))
    async with asyncio.timeout(PATIENCE):
        # The relay learns whom the address of the agent belongs to.
        client.sendto(b"question", (VIRTUAL, application.getsockname()[1]))
        assert await loop.sock_recv(application, 100) == b"question"
        intruder.sendto(b"intrusion", client.getsockname())
        await tunnels.wait_counter(101, "drop_no_service", 1)
        application.sendto(b"answer", client.getsockname())
        assert await loop.sock_recv(client, 100) == b"answer"
    for opened in (client, application, intruder):
        opened.close()


async def test_an_agent_lets_no_address_of_its_own_host_in(
    start_server: StartServer, tunnels: TunnelEngine, hosts: tuple[Host, Host]
) -> None:
    """A connector may answer from any address; with a default service the agent takes packets from any but these."""
    server = await start_server("--client-auth", "off")
    await tunnels.open_tun(Command.OpenTun(101, hosts[0].device, [], b"web"))
    connector = await connected(tunnels, server, Role.CONNECTOR, "web")
    await tunnels.attach(101, await connected(tunnels, server, Role.AGENT, "web"), ["web"])
    client = hosts[0].socket(socket.SOCK_DGRAM, AGENT)
    client.sendto(b"question", (VIRTUAL, 53))
    async with asyncio.timeout(PATIENCE):
        assert read_udp(await connector.receive()).payload == b"question"
        connector.send(udp_packet(("127.0.0.1", 53), client.getsockname(), b"from beside the connector"))
        await tunnels.wait_counter(101, "drop_bad_source", 1)
        connector.send(udp_packet((VIRTUAL, 53), client.getsockname(), b"answer"))
        assert await asyncio.get_running_loop().sock_recv(client, 100) == b"answer"
    client.close()


async def test_a_connector_takes_nothing_but_from_agents(
    start_server: StartServer, tunnels: TunnelEngine, hosts: tuple[Host, Host]
) -> None:
    """A relay that leaves inner addresses as they are lets an agent claim one of the connector's network."""
    server = await start_server("--client-auth", "off", "--inner-addresses", "off")
    await joined(tunnels, server, hosts)
    ip("-n", hosts[0].namespace, "addr", "add", f"{PRIVATE}/32", "dev", "lo")
    application = hosts[1].socket(socket.SOCK_DGRAM, APPLICATION)
    honest, thief = (hosts[0].socket(socket.SOCK_DGRAM, address) for address in (AGENT, PRIVATE))
    thief.sendto(b"as from the network", (VIRTUAL, application.getsockname()[1]))
    await tunnels.wait_counter(102, "drop_bad_source", 1)
    honest.sendto(b"as an agent", (VIRTUAL, application.getsockname()[1]))
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.get_running_loop().sock_recv(application, 100) == b"as an agent"
    for opened in (application, honest, thief):
        opened.close()


async def test_a_packet_too_large_teaches_the_kernel_the_limit(
    start_server: StartServer, tunnels: TunnelEngine, hosts: tuple[Host, Host]
) -> None:
    server = await start_server("--client-auth", "off")
    await joined(tunnels, server, hosts)
    ip("-n", hosts[0].namespace, "link", "set", "tun0", "mtu", "9000")
    client = hosts[0].socket(socket.SOCK_DGRAM)
    client.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
    client.connect((VIRTUAL, 9))
    client.send(b"x" * 5000)
    await tunnels.wait_counter(101, "drop_too_large", 1)

    def told() -> bool:
        return client.getsockopt(socket.IPPROTO_IP, 14) < 1500  # IP_MTU

    await until(told)
    client.close()


async def test_the_limit_of_the_connection_is_reported(start_server: StartServer, tunnels: TunnelEngine) -> None:
    server = await start_server("--client-auth", "off")
    connection = await connected(tunnels, server, Role.AGENT, "web")
    await until(lambda: tunnels.limits.get(connection.conn, 0) >= 1200)


async def test_an_interface_that_goes_fails_its_tunnel(
    start_server: StartServer, tunnels: TunnelEngine, hosts: tuple[Host, Host]
) -> None:
    server = await start_server("--client-auth", "off")
    await joined(tunnels, server, hosts)
    ip("-n", hosts[0].namespace, "link", "del", "tun0")
    await until(lambda: 101 in tunnels.failed)
    assert tunnels.counters(101) == {}
