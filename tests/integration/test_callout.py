"""The callout policy against real web servers, and the relay that uses it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from intermediate_server.client import ClientEngine
from intermediate_server.config.callout import CalloutSettings
from intermediate_server.errors import ConnectionClosed, RegistrationError
from intermediate_server.pki.authority import Authority
from intermediate_server.policy import Allow, Decision, Deny, Guard, Limits
from intermediate_server.policy.callout import CalloutPolicy
from intermediate_server.types import Address, ConnectionId, Peer, Registration, Role
from intermediate_server.wire.datagrams import Register, encode
from tests.integration.conftest import PATIENCE, StartServer
from tests.integration.decision_service import Service, running
from tests.integration.packets import read_udp, udp_packet
from tests.integration.site import Site, closed, until

TOKEN = "tok-3n-th4t-nobody-may-see"
REGISTRATION = Registration(Peer(ConnectionId(1), Address(ip_address("192.0.2.1"), 9), None), Role.AGENT, "web")


@pytest.fixture
def service() -> Iterator[Service]:
    with running(Service()) as service:
        yield service


@contextlib.asynccontextmanager
async def policy(url: str, **settings: Any) -> AsyncIterator[CalloutPolicy]:
    checked = CalloutSettings(url=url, **settings)
    if "deadline" not in settings:
        checked = checked.model_copy(update={"deadline": PATIENCE})
    made = CalloutPolicy(checked)
    try:
        yield made
    finally:
        await made.aclose()


async def ask(url: str, **settings: Any) -> Decision:
    """One answer of a policy made for it."""
    async with policy(url, **settings) as asked:
        return await asked.authorize(REGISTRATION)


def temporary(decision: Decision, text: str) -> bool:
    return isinstance(decision, Deny) and decision.temporary and decision.rule == "callout" and text in decision.reason


async def test_allow_and_deny(service: Service) -> None:
    end = datetime(2999, 1, 1, tzinfo=UTC)
    service.body = json.dumps(
        {"allow": True, "rule": "staff", "limits": {"connections": 2}, "valid_until": end.isoformat()}
    ).encode()
    assert await ask(service.url) == Allow("staff", Limits(connections=2), end)
    service.body = b'{"allow": false, "rule": "hr", "reason": "on leave"}'
    assert await ask(service.url) == Deny("on leave", "hr")
    assert service.questions[0] == {
        "version": 1, "role": "agent", "service": "web", "address": "192.0.2.1", "identity": None,
    }  # fmt: skip
    request = service.requests[0]
    assert (request["method"], request["path"], request["content-type"]) == ("POST", "/decide", "application/json")
    assert "authorization" not in request


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (500, b'{"allow": true}', "status 500"),
        (201, b'{"allow": true}', "status 201"),
        (204, b"", "status 204"),
        (401, b"", "status 401"),
        (200, b"<html>", "not JSON"),
        (200, b"", "not JSON"),
        (200, b'{"allow": "yes"}', "true or false"),
        (200, b'{"allow": true, "limits": {"connections": "2"}}', "connections"),
        (200, b'{"allow": true}' + b" " * 20_000, "longer than 16384 bytes"),
        (200, b" " * (64 << 20), "longer than 16384 bytes"),
    ],
)
async def test_what_is_no_answer_denies_for_now(service: Service, status: int, body: bytes, text: str) -> None:
    service.status, service.body = status, body
    async with policy(service.url) as asked:
        assert temporary(await asked.authorize(REGISTRATION), text)
        service.status, service.body = 200, b'{"allow": true}'
        assert await asked.authorize(REGISTRATION) == Allow(), "a failure is not remembered"


async def test_compressed_answers_are_not_unfolded(service: Service) -> None:
    import gzip

    service.body, service.headers = gzip.compress(b'{"allow": true}'), [(b"content-encoding", b"gzip")]
    assert temporary(await ask(service.url), "not JSON")
    assert service.requests[0]["accept-encoding"] == "identity"


async def test_redirects_are_not_followed_and_cookies_not_kept(service: Service) -> None:
    service.status = 307
    service.headers = [(b"location", service.url.encode()), (b"set-cookie", b"who=me")]
    async with policy(service.url) as asked:
        assert temporary(await asked.authorize(REGISTRATION), "status 307")
        await asked.authorize(REGISTRATION)
    assert len(service.requests) == 2
    assert "cookie" not in service.requests[1]


async def test_proxies_of_the_environment_are_not_used(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert await ask(service.url) == Allow("all")


async def test_a_slow_service_is_left_at_the_deadline(service: Service) -> None:
    service.release.clear()
    async with policy(service.url, deadline=0.2, cache=0) as asked:
        answers = await asyncio.gather(*(asked.authorize(REGISTRATION) for _ in range(5)))
        assert all(temporary(answer, "did not answer within 0.2 s") for answer in answers)
        service.release.set()
        # What was given up has left its place.
        async with asyncio.timeout(PATIENCE):
            while await asked.authorize(REGISTRATION) != Allow("all"):
                pass


async def test_a_service_that_trickles_is_left_too() -> None:
    """Each step is in time, the whole is not."""
    stop = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while not stop.wait(0.02):
                connection.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            answer = await ask(f"http://127.0.0.1:{listener.getsockname()[1]}/", deadline=0.3)
        finally:
            stop.set()
            thread.join(PATIENCE)
    assert temporary(answer, "did not answer within 0.3 s")


async def test_a_dead_service() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert temporary(await ask(f"http://127.0.0.1:{port}/"), "could not be asked (ConnectError)")


async def test_no_more_than_the_allowed_questions_at_once(service: Service) -> None:
    service.release.clear()
    settings = CalloutSettings(url=service.url, concurrency=4, cache=0).model_copy(update={"deadline": PATIENCE})
    guard = Guard(CalloutPolicy(settings), deadline=PATIENCE)
    asking: list[asyncio.Future[Decision | None]] = [
        asyncio.ensure_future(guard.authorize(REGISTRATION)) for _ in range(12)
    ]
    try:
        await together(service, 4)
        # Re-authorizations have places of their own, whatever registrations wait for.
        asking += [asyncio.ensure_future(guard.reauthorize(REGISTRATION)) for _ in range(12)]
        await together(service, 6)
        service.release.set()
        assert set(await asyncio.gather(*asking)) == {Allow("all")}
    finally:
        await guard.aclose()
    assert service.most == 6


async def together(service: Service, number: int) -> None:
    """Wait until so many questions are with the service at once."""
    async with asyncio.timeout(PATIENCE):
        while service.together < number:  # noqa: ASYNC110 - another thread counts
            await asyncio.sleep(0.01)


async def test_a_flood_of_registrations_ends_none(service: Service, site: Site) -> None:
    """The service is stuck over new registrations, and is asked again about what it granted for a while."""
    config = f'registration-timeout = 120\n[callout]\nurl = "{service.url}"\ncache = 0\nconcurrency = 2\n'
    await site.start(config)
    end = datetime.now(UTC) + timedelta(seconds=10)
    service.body = json.dumps({"allow": True, "rule": "for now", "valid_until": end.isoformat()}).encode()
    connector = await site.join(Role.CONNECTOR, "web", "connector.web.ztna")
    agent, *_ = [await site.join(Role.AGENT, "web", "agent.web.ztna") for _ in range(6)]
    service.body, service.held = b'{"allow": true, "rule": "still"}', {"flood"}
    service.release.clear()
    cert = site.server.certificate(["agent.flood.ztna"])
    for peer in await asyncio.gather(*(site.dial(cert=cert) for _ in range(10))):
        for _ in range(50):
            peer.send_raw(encode(Register(Role.AGENT, "flood")))

    async def reauthorized() -> bool:
        assert site.decisions("revoked") == []
        return len([line for line in site.decisions("allowed") if line["cause"] == "reauthorization"]) == 7

    await until(reauthorized, "all that was granted is granted again")
    assert service.together >= 2, "the flood is on"
    agent.send(udp_packet(("100.64.0.1", 5), ("10.0.0.5", 53), b"through"))
    async with asyncio.timeout(PATIENCE):
        assert read_udp(await connector.receive()).payload == b"through"


async def test_answers_are_remembered_for_their_time_and_number(service: Service) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    made = CalloutPolicy(CalloutSettings(url=service.url, cache=60, cache_size=3), clock=lambda: now)
    guard = Guard(made)
    try:
        for _ in range(3):
            assert await guard.authorize(REGISTRATION) == Allow("all")
        assert len(service.questions) == 1
        now += timedelta(seconds=60)
        assert await guard.authorize(REGISTRATION) == Allow("all")
        assert len(service.questions) == 2
        for number in range(50):
            await guard.authorize(replace(REGISTRATION, service=f"s{number}"))
        assert len(made._cache) == 3
        await guard.authorize(REGISTRATION)
        assert len(service.questions) == 53
    finally:
        await guard.aclose()
    assert not made._idle, "the guard closes its policy"


async def test_a_new_token_is_used_at_once(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text("first\n")
    async with policy(service.url, token_file=file, cache=0) as asked:
        await asked.authorize(REGISTRATION)
        file.write_text("second\n")
        await asked.authorize(REGISTRATION)
        file.unlink()
        assert temporary(await asked.authorize(REGISTRATION), "cannot be read")
    assert [request["authorization"] for request in service.requests] == ["Bearer first", "Bearer second"]


async def test_tls_is_verified(tmp_path: Path) -> None:
    from intermediate_server.pki import ensure_development

    files = ensure_development(tmp_path / "state")
    with running(Service(), ssl_certfile=str(files.cert), ssl_keyfile=str(files.key)) as service:
        url = service.url.replace("http://127.0.0.1", "https://localhost")
        ours = tmp_path / "state" / "ca.pem"
        assert await ask(url, ca_cert=ours) == Allow("all")
        assert temporary(await ask(url), "could not be asked (ConnectError)"), "not signed by a CA of the system"
        Authority(tmp_path / "other").init()
        other = tmp_path / "other" / "ca.pem"
        assert temporary(await ask(url, ca_cert=other), "could not be asked (ConnectError)")
        with pytest.raises(ssl.SSLError):
            ssl.create_default_context(cafile=files.key)


async def test_the_token_is_in_no_log(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CALLOUT_TOKEN", TOKEN)
    with caplog.at_level(logging.DEBUG):
        answers = [await ask(service.url, token_env="CALLOUT_TOKEN")]
        service.body = b"garbage"
        answers.append(await ask(service.url, token_env="CALLOUT_TOKEN"))
    assert service.requests[0]["authorization"] == f"Bearer {TOKEN}"
    assert caplog.records, "the HTTP library has logged something"
    assert TOKEN not in caplog.text + repr(answers)


async def test_the_server_asks_it(
    service: Service, start_server: StartServer, engine: ClientEngine, tmp_path: Path
) -> None:
    """Allow with relay traffic, denial, failure and recovery, with the server's own process."""
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text(TOKEN)
    config = tmp_path / "config.toml"
    config.write_text(f'[callout]\nurl = "{service.url}"\ntoken-file = "{token}"\ncache = 0\n')
    server = await start_server("--config", str(config), "--log-level", "debug")
    await server.wait_log("Access is decided by", policy=f"callout to {service.url}")

    async def dial(name: str) -> Any:
        cert, key = server.certificate([name])
        return await engine.connect(
            server.address, ca_file=server.ca_file, server_name="ztna-server", cert_file=cert, key_file=key
        )

    connector, agent, refused = [await dial(f"{name}.web.ztna") for name in ("connector", "agent", "agent")]
    await connector.register(Role.CONNECTOR, "web")
    await agent.register(Role.AGENT, "web")
    agent.send(udp_packet(("100.64.0.1", 5), ("10.0.0.5", 53), b"through"))
    async with asyncio.timeout(PATIENCE):
        assert read_udp(await connector.receive()).payload == b"through"
    assert {name for asked in service.questions for name in asked["identity"]["dns_names"]} == {
        "connector.web.ztna", "agent.web.ztna",
    }  # fmt: skip

    service.body = b'{"allow": false, "reason": "on leave"}'
    with pytest.raises((RegistrationError, ConnectionClosed)):
        await refused.register(Role.AGENT, "web")
    await server.wait_log("Registration denied", reason="on leave")

    # While the service is broken the peer hears nothing, tries again as all clients do, and gets in.
    service.status = 500
    late = await dial("agent.web.ztna")
    registering = asyncio.ensure_future(late.register(Role.AGENT, "web"))
    await server.wait_log("Registration denied", reason="the callout gave an answer that has status 500")
    service.status, service.body = 200, b'{"allow": true}'
    async with asyncio.timeout(PATIENCE):
        await registering
    assert service.requests[0]["authorization"] == f"Bearer {TOKEN}"
    assert await server.terminate() == 0
    assert TOKEN not in json.dumps(server.lines)
    assert not any("HTTP Request" in str(line["event"]) for line in server.lines), "a line for each request"


async def test_a_reload_asks_the_service_anew(service: Service, site: Site) -> None:
    """And not what it is remembered to have said, for however long that may be used."""
    await site.start(f'[callout]\nurl = "{service.url}"\ncache = 3600\n')
    agent = await site.join(Role.AGENT, "web", "agent.web.ztna")
    service.body = b'{"allow": false, "rule": "hr", "reason": "has left"}'
    assert (await site.reload_ends())[0] == 1
    assert await closed(agent) == (3, "access revoked")
    revoked = await site.wait_decision("revoked")
    assert (revoked["rule"], revoked["reason"]) == ("hr", "has left")
