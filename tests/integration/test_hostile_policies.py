"""Python policies that hang, with the real server: they hold up nobody but those who ask them."""

from __future__ import annotations

import asyncio
import itertools
import signal
from functools import partial
from pathlib import Path
from time import monotonic

import pytest
from cryptography import x509

from intermediate_server.client import ClientEngine
from intermediate_server.errors import ConnectionClosed, RegistrationError
from intermediate_server.pki import keys
from intermediate_server.types import Role
from tests.integration.conftest import PATIENCE, StartServer
from tests.integration.packets import read_udp, udp_packet
from tests.integration.site import APPLICATION, INNER, Site, closed, received, until

POLICIES = """
import asyncio
from pathlib import Path
from intermediate_server.policy import Allow, Deny, Policy

class Open(Policy):
    async def authorize(self, registration):
        if registration.service == "hang":
            await asyncio.Event().wait()
        return Allow("open")

class Hanging(Policy):
    async def authorize(self, registration):
        await asyncio.Event().wait()

class Slow(Policy):
    async def authorize(self, registration):
        answer = Deny("has left") if Path("LEFT").exists() else Allow("staff")
        Path("ASKED").touch()
        while not Path("ANSWER").exists():
            await asyncio.sleep(0.01)
        return answer
"""


@pytest.fixture
def site(tmp_path: Path, start_server: StartServer, engine: ClientEngine, monkeypatch: pytest.MonkeyPatch) -> Site:
    texts = POLICIES
    for name in ("ASKED", "LEFT", "ANSWER"):
        texts = texts.replace(f'"{name}"', repr(str(tmp_path / name)))
    (tmp_path / "hostile.py").write_text(texts)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    return Site(tmp_path, start_server, engine)


async def test_an_edited_policy_goes_on_deciding_and_the_log_says_so(site: Site, tmp_path: Path) -> None:
    server = await site.start('policy = "hostile:Open"\n')
    server.signal(signal.SIGHUP)
    await server.wait_log("Reloaded", why="SIGHUP")
    source = tmp_path / "hostile.py"
    source.write_text(source.read_text().replace('Allow("open")', 'Deny("closed")'))
    # Nobody sends a signal: the file is watched.
    line = await server.wait_log(f"{source} has changed, and its old code goes on deciding: restart the server")
    assert line["level"] == "warning"
    await site.join(Role.AGENT, "web", cert=server.certificate(["agent.web.ztna"]))
    assert len([each for each in server.lines if "goes on deciding" in str(each["event"])]) == 1


async def test_a_policy_that_hangs_holds_up_no_revocation(site: Site, tmp_path: Path) -> None:
    listed = tmp_path / "denied.txt"
    listed.touch()
    server = await site.start('policy = "hostile:Open"\n', "--deny-list", str(listed))
    shared = server.certificate(["agent.web.ztna"])
    await asyncio.gather(*(site.join(Role.AGENT, "web", cert=shared) for _ in range(200)))
    lost = server.certificate(["agent.web.ztna"])
    agent = await site.join(Role.AGENT, "web", cert=lost)
    site.write('policy = "hostile:Hanging"\n')
    server.signal(signal.SIGHUP)
    await server.wait_log("Reloaded", why="SIGHUP")
    listed.write_text(x509.load_pem_x509_certificate(lost[0].read_bytes()).fingerprint(keys.SHA256).hex())
    begun = monotonic()
    server.signal(signal.SIGHUP)
    assert await closed(agent) == (4, "client certificate revoked")
    # The policy is late 201 times, for 2 s each, 32 at a time; a second is what the benchmark measures.
    assert monotonic() - begun < 5


async def test_an_answer_on_its_way_at_a_reload_is_not_accepted_after_it(site: Site, tmp_path: Path) -> None:
    await site.start('policy = "hostile:Slow"\n')
    agent = await site.dial("agent.web.ztna")
    registering = asyncio.ensure_future(agent.register(Role.AGENT, "web"))
    await until(partial(asyncio.to_thread, (tmp_path / "ASKED").exists), "the question")
    (tmp_path / "LEFT").touch()
    assert (await site.reload()).status_code == 200
    (tmp_path / "ANSWER").touch()
    async with asyncio.timeout(PATIENCE):
        with pytest.raises((RegistrationError, ConnectionClosed)):
            await registering
    assert site.decisions("allowed") == []
    assert (await site.wait_decision("denied"))["reason"] == "has left"


async def test_packets_flow_while_registrations_hang(site: Site) -> None:
    server = await site.start('policy = "hostile:Open"\n', "--registration-timeout", "120")
    connector = await site.join(Role.CONNECTOR, "web", "connector.web.ztna")
    agent = await site.join(Role.AGENT, "web", "agent.web.ztna")
    shared = server.certificate(["agent.hang.ztna"])
    waiting = [await site.dial(cert=shared) for _ in range(200)]
    numbers = itertools.count()

    async def passes() -> None:
        payload = str(next(numbers)).encode()
        agent.send(udp_packet(INNER, APPLICATION, payload))
        assert read_udp(await received(connector)).payload == payload

    registering = [asyncio.ensure_future(each.register(Role.AGENT, "hang")) for each in waiting]
    try:
        # Until the first are denied for being late: then others have taken their places, and wait.
        while not site.decisions("denied"):
            await passes()
        late = site.decisions("denied")[0]
        assert late["reason"].startswith("the policy did not answer within")
        for _ in range(100):
            await passes()
        assert not any(each.done() for each in registering)
    finally:
        for each in registering:
            each.cancel()
        await asyncio.gather(*registering, return_exceptions=True)
