"""Joining as people and units do it: every program a process, killed where that hurts most."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from intermediate_server.client.profile import Profile
from intermediate_server.join.tokens import Token
from intermediate_server.pki import keys
from intermediate_server.pki.authority import Authority
from intermediate_server.pki.joins import Joins
from intermediate_server.testing import Agent, Connector, Program, Relay
from intermediate_server.testing.applications import PAGE
from intermediate_server.testing.plugin import Programs, StartApplication, StartRelay
from intermediate_server.testing.programs import PATIENCE
from intermediate_server.types import Role
from tests.integration.join_relay import run, start
from tests.integration.site import until

STEPS = (0.0, 0.01, 0.02, 0.04, 0.08, 0.16)
"""Seconds from the moment at which the key is kept; a join takes about 0.1 s from there."""


@pytest.fixture
async def relay(start_relay: StartRelay, tmp_path: Path) -> Relay:
    return await start_relay("--audit-log", str(tmp_path / "audit"))


def there(path: Path) -> bool:
    return path.exists()


def check_one_join(authority: Authority, token: str, name: str, profile: Path) -> None:
    """One identity, one use, and one certificate in force, which the device has."""
    found = Joins(authority).token(Token.parse(token).id)
    assert found is not None and found.used == 1
    (entry,) = [entry for entry in authority.entries() if entry.name == name]
    assert entry.is_live(keys.utc_now())
    assert entry.fingerprint == Profile.load(profile).leaf.fingerprint(keys.SHA256).hex()


async def test_a_join_that_is_killed_at_any_step_is_one_join(relay: Relay, tmp_path: Path) -> None:
    authority = Authority(relay.state_dir)
    for number, step in enumerate(STEPS):
        name, profile = f"host-{number}", tmp_path / f"{number}.ztna"
        token = await relay.token(Role.AGENT, name, ["web"])
        process = await start(tmp_path, "join", token, "--profile", str(profile))

        async def kept(profile: Path = profile) -> bool:
            return there(profile)

        await until(kept, "a key")
        await asyncio.sleep(step)
        if process.returncode is None:
            process.kill()
        await process.communicate()
        done = await run(tmp_path, "join", token, "--profile", str(profile))
        assert done.code == 0, done.err
        check_one_join(authority, token, name, profile)


async def test_a_relay_that_is_killed_at_any_step_has_one_join(programs: Programs, tmp_path: Path) -> None:
    state = tmp_path / "relay"
    authority, port = Authority(state), 0
    for number, step in enumerate(STEPS):
        relay = await programs.keep(Relay.begin(state, port=port))
        port = relay.address[1]
        name, profile = f"host-{number}", tmp_path / f"{number}.ztna"
        token = await relay.token(Role.AGENT, name, ["web"])
        process = await start(tmp_path, "join", token, "--profile", str(profile))

        async def kept(profile: Path = profile) -> bool:
            return there(profile)

        await until(kept, "a key")
        await asyncio.sleep(step)
        await relay.kill()
        if process.returncode is None:
            process.kill()
        await process.communicate()
        relay = await programs.keep(Relay.begin(state, port=port))
        done = await run(tmp_path, "join", token, "--profile", str(profile))
        assert done.code == 0, done.err
        check_one_join(authority, token, name, profile)
        await relay.terminate()


async def test_a_token_is_for_one_device(relay: Relay, tmp_path: Path) -> None:
    token = await relay.token(Role.CONNECTOR, "office", ["web"])
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    assert (await run(tmp_path / "first", "join", token)).code == 0
    done = await run(tmp_path / "second", "join", token)
    assert (done.code, done.out) == (1, "")
    assert re.search(r'token was used by "office" at .*\d\d:\d\d', done.err)

    async def told() -> bool:
        lines = await asyncio.to_thread((tmp_path / "audit").read_text)
        return any('"used"' in line and "join" in line for line in lines.splitlines())

    await until(told, "an audit line")
    for line in (await asyncio.to_thread((tmp_path / "audit").read_text)).splitlines():
        json.loads(line)
        assert token[10:40] not in line


async def test_programs_that_join_by_themselves(
    relay: Relay, programs: Programs, start_application: StartApplication, tmp_path: Path
) -> None:
    page = await start_application("http")
    backends = {"web": "tcp://{}:{}".format(*page.address)}
    place = tmp_path / "connector.ztna"
    connector = await programs.keep(Connector.begin(relay, backends, profile=place))
    await connector.terminate()
    # The second time it has a profile, and the token that it names is of no use any more.
    first = Profile.load(place)
    await programs.keep(Connector.begin(relay, backends, profile=place))
    assert Profile.load(place) == first
    token = await relay.token(Role.AGENT, "laptop", ["web"])
    arguments = ["agent", "--join", token, "--profile", str(tmp_path / "agent.ztna"), "--log-format", "json"]
    agent = await programs.keep(Program.start(*arguments, "--status-socket", str(tmp_path / "s")))
    await agent.wait_log("Registered as agent for service 'web'")
    printed = await agent.wait_log("web  tcp 127.0.0.1:")
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(printed["event"].rpartition(":")[2]))
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(len(PAGE)) == PAGE
        writer.close()


async def test_who_leaves_is_cut_off(relay: Relay, programs: Programs, tmp_path: Path) -> None:
    place = tmp_path / "agent.ztna"
    agent = await programs.keep(Agent.begin(relay, [("tcp", "web")], name="laptop", profile=place))
    done = await run(tmp_path, "leave", "--profile", str(place))
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith('agent "laptop" has left')
    assert not there(place)
    await agent.wait_log("Connection lost")
    (entry,) = [entry for entry in Authority(relay.state_dir).entries() if entry.name == "laptop"]
    assert entry.revoked_at is not None


async def test_a_join_without_a_network_between(relay: Relay, programs: Programs, tmp_path: Path) -> None:
    (tmp_path / "request").write_text((await run(tmp_path, "join", "--offline")).out)
    signed = await run(
        tmp_path,
        *("pki", "sign", "request", "--role", "agent", "--service", "web", "--name", "laptop"),
        *("--state-dir", str(relay.state_dir)),
    )
    assert signed.code == 0, signed.err
    (tmp_path / "bundle").write_text(signed.out)
    done = await run(tmp_path, "join", "--complete", "bundle")
    assert done.code == 0, done.err
    assert done.out.startswith('joined as agent "laptop" for web; ')
    profile = Profile.load(tmp_path / "state" / "agent.ztna")
    assert (profile.role, profile.services) == (Role.AGENT, ("web",))
