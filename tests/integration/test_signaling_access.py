"""What ends access ends introductions too: the session with its reason, and the way back for direct answers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509

from intermediate_server.pki import keys
from intermediate_server.pki.authority import Authority
from intermediate_server.wire.signaling import (
    CandidateAnswer,
    CandidateOffer,
    ErrorCode,
    SignalingError,
    StartPunching,
    decode,
)
from tests.integration.aioquic_peer import AioquicPeer
from tests.integration.packets import read_icmp, read_udp, udp_packet
from tests.integration.peers import AGENT, CONNECTOR, ack
from tests.integration.signals import framed, offer
from tests.integration.site import APPLICATION, INNER, Site, allow, issue, until
from tests.unit.signaling import host

AGENT_RULE = allow("agent", dns=["agent.x.ztna"], agent=["web", "db"])
CONNECTOR_RULE = allow("connector", dns=["connector.x.ztna"], connector=["web", "db"])
OTHER_RULE = allow("other", dns=["agent.y.ztna"], agent=["web"])
RULES = AGENT_RULE + CONNECTOR_RULE + OTHER_RULE
PUBLIC = host("198.51.100.7", 50_000)
ANSWER = udp_packet(APPLICATION, INNER, b"an answer to what came directly")
OTHERS = ("100.64.0.2", 5_000)
SECONDS = 12
"""Time that a certificate is good for, in which two have to be introduced."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An agent and a connector that are introduced, and another agent that is not."""

    site: Site
    cert: tuple[Path, Path]
    """The agent's."""
    agent: AioquicPeer
    connector: AioquicPeer
    other: AioquicPeer

    async def post(self, path: str) -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.site.port}") as http:
            assert (await http.post(path, headers=self.site.proof)).status_code == 200

    def rewrite(self, rule: str, changed: str) -> None:
        assert RULES.replace(rule, changed) != RULES
        self.site.write(RULES.replace(rule, changed))

    async def conn(self, peer: AioquicPeer) -> int:
        clients = (await self.site.get("/status")).json()["clients"]["clients"]
        [conn] = [client["conn"] for client in clients if client["address"].endswith(f":{peer.local[1]}")]
        return int(conn)


async def revoke(pair: Pair) -> None:
    Authority(pair.site.state).revoke(pair.cert[0].stem)


async def deny(pair: Pair) -> None:
    certificate = x509.load_pem_x509_certificate(pair.cert[0].read_bytes())
    (pair.site.config.parent / "denied.txt").write_text(certificate.fingerprint(keys.SHA256).hex() + "\n")
    await pair.site.reload()


async def change_rule(pair: Pair) -> None:
    pair.rewrite(AGENT_RULE, allow("agent", dns=["agent.x.ztna"], agent=["db"]))
    await pair.site.reload()


async def end_direct(pair: Pair) -> None:
    pair.rewrite(AGENT_RULE, AGENT_RULE + "direct = false\n")
    await pair.site.reload()


async def end_of_rule(pair: Pair) -> None:
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2)
    only_db = allow("db", dns=["agent.x.ztna"], agent=["db"])
    pair.rewrite(AGENT_RULE, only_db + AGENT_RULE + f"not-after = {end.isoformat()}\n")


async def change_connectors_rule(pair: Pair) -> None:
    pair.rewrite(CONNECTOR_RULE, allow("connector", dns=["connector.x.ztna"], connector=["db"]))
    await pair.site.reload()


async def disconnect(pair: Pair) -> None:
    await pair.post(f"/clients/{await pair.conn(pair.agent)}/disconnect")


async def wait(pair: Pair) -> None:
    """The end of the agent's certificate."""


@contextlib.asynccontextmanager
async def introduced(site: Site, *, lasts: timedelta) -> AsyncIterator[Pair]:
    denied = site.config.parent / "denied.txt"
    denied.touch()
    server = await site.start(RULES, "--deny-list", str(denied))
    certs = [server.certificate([name]) for name in ("agent.x.ztna", "connector.x.ztna", "agent.y.ztna")]
    if lasts < timedelta(hours=1):
        certs[0] = issue(site, "agent.x.ztna", end=lasts)
    async with contextlib.AsyncExitStack() as stack:
        peers = []
        for cert in certs:
            starting = AioquicPeer.start(server.address, ca_file=server.ca_file, certificate=cert)
            peers.append(await stack.enter_async_context(starting))
        agent, connector, other = peers
        for peer, kind, services in ((connector, CONNECTOR, "web db"), (agent, AGENT, "web db"), (other, AGENT, "web")):
            for service in services.split():
                assert await peer.register(kind, service.encode()) == ack(service.encode())
        agent.write(offer("web", PUBLIC, session=42))
        forwarded = await message(connector)
        assert isinstance(forwarded, CandidateOffer)
        connector.write(framed(CandidateAnswer(forwarded.session, (PUBLIC,))))
        for peer in (agent, connector):
            assert isinstance(await message(peer), StartPunching)
        await connector.send(ANSWER)
        assert await agent.packet() == ANSWER
        yield Pair(site, certs[0], agent, connector, other)


@pytest.mark.parametrize(
    ("event", "reason", "stays"),
    [
        (revoke, "agent_gone", False),
        (deny, "agent_gone", False),
        (disconnect, "agent_gone", False),
        (wait, "agent_gone", False),
        (change_rule, "revoked", True),
        (end_direct, "revoked", True),
        (end_of_rule, "revoked", True),
        (change_connectors_rule, "revoked", True),
    ],
)
async def test_the_end_of_access_ends_an_introduction(
    site: Site, event: Callable[[Pair], Awaitable[None]], reason: str, stays: bool
) -> None:
    lasts = timedelta(seconds=SECONDS) if event is wait else timedelta(hours=1)
    async with introduced(site, lasts=lasts) as pair:
        await event(pair)
        record = await ended(site)
        assert (record["reason"], record["service"], record["session"]) == (reason, "web", "42")
        line = await site.server.wait_log("Introduction ended", reason=reason)
        assert (line["service"], line["outcome"]) == ("web", record["outcome"])

        # Nobody gets what is late, and the connector hears of it.
        for _ in range(2):
            await pair.connector.send(ANSWER)
            assert read_icmp(await pair.connector.packet()).kind == 3
        if stays:
            await pair.agent.ping()
            pair.agent.write(offer("web", PUBLIC, session=43))
            refused = await message(pair.agent)
            assert isinstance(refused, SignalingError)
            assert refused.code == (ErrorCode.REJECTED if event is end_direct else ErrorCode.NO_CONNECTOR)
        else:
            await pair.agent.ended()
        assert pair.agent.inbox.packets.empty()
        if event is not change_connectors_rule:
            await relays(pair.other, pair.connector)
        assert pair.other.inbox.packets.empty()


async def test_the_list_of_introductions(site: Site) -> None:
    """The keys of ``GET /direct``, which are for programs."""
    async with introduced(site, lasts=timedelta(hours=1)) as pair:
        listed = (await site.get("/direct")).json()
        assert listed == {"open": {"routing": 0, "offered": 0, "started": 1, "introduced": 1}, "ended": []}
        await disconnect(pair)
        record = await ended(site)
    address = f"127.0.0.1:{pair.agent.local[1]}"
    assert record.pop("began") == pytest.approx(datetime.now(UTC).timestamp(), abs=120)
    answered = record.pop("answered_ms")
    assert 0 <= answered == record.pop("started_ms") <= record.pop("ended_ms")
    told = {"given": {"host": 1}, "passed": {"host": 1}, "replaced": {}, "removed": {}, "added": 0}
    side = {"kind": "v1", "candidates": told, "report": None}
    for name, peer in (("agent", pair.agent), ("connector", pair.connector)):
        one = record.pop(name)
        assert one.pop("identity").startswith("CN=")
        assert one == side | {"address": f"127.0.0.1:{peer.local[1]}"}
    assert record == {
        "session": "42",
        "service": "web",
        "working_address": None,
        "working_kind": None,
        "outcome": "unreported",
        "reason": "agent_gone",
        "sentence": "The agent's connection closed",
    }
    assert (await site.server.wait_log("Introduction ended"))["peer"] == address
    assert (await site.get("/direct")).json()["open"]["introduced"] == 0
    assert (await site.server.wait_log("were introduced; nobody but the connector can end"))["level"] == "warning"


async def message(peer: AioquicPeer) -> object:
    return decode((await peer.signal())[1])


async def ended(site: Site) -> dict[str, Any]:
    """The record of the one session, once it has ended."""

    async def records() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await site.get("/direct")).json()["ended"]
        return found

    await until(records, "end of the session")
    [record] = await records()
    return record


async def relays(agent: AioquicPeer, connector: AioquicPeer) -> None:
    """The agent's packets arrive, and its answers come back."""
    await agent.send(udp_packet(OTHERS, APPLICATION, b"by the relay"))
    there = read_udp(await connector.packet())
    await connector.send(udp_packet(there.destination, there.source, b"back"))
    back = read_udp(await agent.packet())
    assert (back.destination, back.payload) == (OTHERS, b"back")
