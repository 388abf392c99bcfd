"""The NATs that other tests have are what their names say."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from tests.e2e.field import RELAY_V4
from tests.e2e.homes import Internet
from tests.e2e.netns import Nat
from tests.integration.peers import PATIENCE

ANOTHER, A_THIRD = "10.9.0.2", "10.9.0.3"


@pytest.mark.parametrize(
    ("kind", "let_in", "one_port"),
    [
        (Nat.PUBLIC, {b"known", b"other port", b"other address"}, True),
        (Nat.FULL_CONE, {b"known", b"other port", b"other address"}, True),
        (Nat.ADDRESS_RESTRICTED, {b"known", b"other port"}, True),
        (Nat.PORT_RESTRICTED, {b"known"}, True),
        (Nat.SYMMETRIC, {b"known"}, False),
    ],
)
async def test_kinds(internet: Internet, kind: Nat, let_in: set[bytes], one_port: bool) -> None:
    home = internet.home(kind)
    for address in (ANOTHER, A_THIRD):
        internet.middle.ip(f"addr add {address}/32 dev lo")
    with ExitStack() as opened:
        hosts = [home.host.udp(), *map(internet.middle.udp, (RELAY_V4, RELAY_V4, ANOTHER, A_THIRD))]
        host, known, *strangers, third = map(opened.enter_context, hosts)
        for sock in hosts:
            sock.settimeout(PATIENCE)
        host.sendto(b"first", known.getsockname())
        _, seen = known.recvfrom(64)
        assert seen[0] == home.address
        for sock, name in ((known, b"known"), (strangers[0], b"other port"), (strangers[1], b"other address")):
            sock.sendto(name, seen)
        assert {host.recv(64) for _ in let_in} == let_in
        kept_out = 3 - len(let_in)
        async with asyncio.timeout(PATIENCE):
            while kept_out and home.router.strangers() < kept_out:  # noqa: ASYNC110 - the kernel decides when
                await asyncio.sleep(0.02)
        host.sendto(b"second", third.getsockname())
        assert (third.recvfrom(64)[1] == seen) is one_port
        host.setblocking(False)
        with pytest.raises(BlockingIOError):
            host.recv(64)
