"""Commands beside a running server: tokens, the end of an identity, a new CA, and a damaged index."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from time import monotonic

import pytest
from cryptography import x509

from intermediate_server.cli import main
from intermediate_server.errors import ConnectionClosed
from intermediate_server.join.tokens import Token
from intermediate_server.pki import development, keys
from intermediate_server.pki.authority import Authority
from intermediate_server.pki.joins import Joins
from intermediate_server.pki.store import Store
from intermediate_server.types import Role
from tests.integration.commands import run, serving
from tests.integration.joining import Device, asking
from tests.integration.packets import read_udp
from tests.integration.site import ALL_BY_CERTIFICATE, PACKET, Site, closed, received
from tests.unit.issuing import Relays

REVOKED = (4, "client certificate revoked")


def ask(site: Site, *arguments: str, code: int = 0) -> None:
    """A command on the state directory of a server that runs."""
    assert main([*arguments, "--state-dir", str(site.state)]) == code


def test_a_token_is_made_beside_a_server_without_its_flags(tmp_path: Path) -> None:
    """The two commands of the relay, as docs/join.md has them, on another port."""
    flags = ("--public-address", "relay.example.com", "--bind", "127.0.0.1", "--port", "0", "--metrics-port", "0")
    with serving(tmp_path, *flags) as (_, lines):
        made = run(tmp_path, "token", "create", "web")
    assert (made.returncode, made.stderr) == (0, "")
    connector, agent = (Token.parse(line.split(" join ")[1].split()[0]) for line in made.stdout.splitlines())
    port = next(line for line in lines if "Listening" in line or "listening" in line)
    [server] = connector.servers
    assert server.startswith("relay.example.com:")
    assert server.partition(":")[2] in port
    assert agent.servers == connector.servers
    [ca] = keys.load_certificates(tmp_path / "state" / "ca.pem")
    assert connector.pin == ca.fingerprint(keys.SHA256)
    assert not [line for line in lines if "ztj1_" in line]


def test_commands_at_once_on_a_new_directory_do_not_disturb_each_other(tmp_path: Path) -> None:
    arguments = ("token", "create", "web", "--address", "relay.example.com")
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: run(tmp_path, *arguments), range(4)))
    assert [each.returncode for each in done] == [0] * 4, [each.stderr for each in done]
    tokens = [Token.parse(text.split()[0]) for each in done for text in each.stdout.split(" join ")[1:]]
    assert {row.id for row in Joins(Authority(tmp_path / "state")).tokens()} == {token.id for token in tokens}
    assert (len(tokens), len({token.pin for token in tokens})) == (8, 1)


async def test_revoke_cuts_within_a_second(site: Site) -> None:
    server = await site.start(ALL_BY_CERTIFICATE)
    cert = server.certificate(["agent.web.ztna"])
    agent = await site.join(Role.AGENT, "web", cert=cert)
    begun = monotonic()
    ask(site, "revoke", cert[0].stem)
    assert await closed(agent) == REVOKED
    print(f"cut after {monotonic() - begun:.2f} s")
    assert monotonic() - begun < 10, "the figure is the benchmark's"


async def test_revoke_cuts_whoever_issued(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Authority(tmp_path / "other")
    other.init()
    other.issue(Role.AGENT, "theirs", services=["web"])
    other.issue(Role.CONNECTOR, "office", services=["web"])
    await site.start(f'ca-cert = "{other.certificate_path}"\n{ALL_BY_CERTIFICATE}')
    connector = await site.join(
        Role.CONNECTOR, "web", cert=(other.certificate_file("office"), other.key_path("office"))
    )
    cert = other.certificate_file("theirs"), other.key_path("theirs")
    agent = await site.join(Role.AGENT, "web", cert=cert)
    agent.send(PACKET)
    assert read_udp(await received(connector)).payload == b"x"
    ask(site, "revoke", "nobody", code=2)
    assert "give the SHA-256 fingerprint" in capsys.readouterr().err
    fingerprint = x509.load_pem_x509_certificate(cert[0].read_bytes()).fingerprint(keys.SHA256).hex()
    # By its name while it is connected, and by its file at any time.
    ask(site, "revoke", "theirs")
    assert f"denied {fingerprint}" in capsys.readouterr().out
    assert await closed(agent) == REVOKED
    denied = (site.state / "denied.txt").read_text()
    ask(site, "revoke", str(cert[0]))
    assert (site.state / "denied.txt").read_text() == denied
    disconnected = await site.wait_decision("disconnected", cause="revoked")
    assert "is on the deny list" in disconnected["reason"]
    again = await site.dial(cert=cert)
    with pytest.raises(ConnectionClosed):
        await again.register(Role.AGENT, "web")
    assert connector.closed is None


async def test_a_new_ca_takes_over_while_packets_flow(site: Site) -> None:
    server = await site.start(ALL_BY_CERTIFICATE)
    authority = Authority(site.state)
    connector = await site.join(Role.CONNECTOR, "web", "connector.web.ztna")
    agent = await site.join(Role.AGENT, "web", "agent.web.ztna")
    for reloads, step in enumerate(("start", "switch"), start=1):
        ask(site, "pki", "rollover", step)
        await server.wait_log("Reloaded", count=reloads)
    cert = server.certificate(["agent.web.ztna"])
    [leaf] = keys.load_certificates(cert[0])
    new, old = keys.load_certificates(authority.certificate_path)
    assert keys.is_signed_by(leaf, new)
    late = await site.join(Role.AGENT, "web", cert=cert)
    for each in (agent, late):
        each.send(PACKET)
        assert read_udp(await received(connector)).payload == b"x"
    ask(site, "pki", "rollover", "finish", code=2)
    for name in ("peer-1", "peer-2"):
        authority.renew(name)
    ask(site, "pki", "rollover", "finish")
    # The old CA has gone, and whoever came by it with it.
    assert await closed(agent) == (7, "client certificate of a CA that is not trusted any more")
    served = development.load_authority(site.state, now=keys.utc_now())[0]
    assert served == new != old
    assert late.closed is None


async def test_devices_follow_a_new_ca_by_renewing(site: Site, tmp_path: Path) -> None:
    server = await site.start(ALL_BY_CERTIFICATE)
    device = Device()
    past = Relays(site.state, now=keys.utc_now() - timedelta(days=1))
    device.take(past.join(past.token(), device.key, host=device.host))
    past.store.close()
    [old] = keys.load_certificates(site.state / "ca.pem")

    async def renew() -> tuple[list[x509.Certificate], x509.Certificate]:
        """The CAs and the certificate that a renewal hands out."""
        with Store(site.state) as store, store.transaction() as db:
            # A certificate that was issued a moment ago is given again; one of a longer life seems to be older.
            db.execute("UPDATE identities SET lifetime = 2 * lifetime")
        async with asking() as asker:
            issued = device.take(await asker.ask(server.address, device.renew(), by=device))
        return keys.parse_certificates(issued.ca.encode(), ""), keys.parse_certificates(issued.chain.encode(), "")[0]

    ask(site, "pki", "rollover", "start")
    await server.wait_log("Reloaded", count=1)
    trusted, leaf = await renew()
    new = next(item for item in trusted if item != old)
    assert set(trusted) == {old, new}
    assert keys.is_signed_by(leaf, old)
    ask(site, "pki", "rollover", "switch")
    await server.wait_log("Reloaded", count=2)
    ask(site, "pki", "rollover", "finish", code=2)
    assert keys.is_signed_by((await renew())[1], new)
    ask(site, "pki", "rollover", "finish")
    await server.wait_log("Reloaded", count=3)
    assert (await renew())[0] == [new], "the relay is known by the new CA alone"
    connection = await site.dial(cert=device.files(tmp_path))
    await connection.register(Role.CONNECTOR, "web")


async def test_a_damaged_index_stops_no_packet(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    server = await site.start(ALL_BY_CERTIFICATE)
    connector = await site.join(Role.CONNECTOR, "web", "connector.web.ztna")
    agent = await site.join(Role.AGENT, "web", "agent.web.ztna")
    cert = server.certificate(["agent.web.ztna"])
    Authority(site.state).init()
    for name in ("identity.db", "identity.db-wal", "identity.db-shm"):
        (site.state / name).unlink(missing_ok=True)
    (site.state / "identity.db").write_bytes(b"damaged" * 1000)
    ask(site, "token", "create", "web", code=2)
    assert "is damaged" in capsys.readouterr().err
    for each in (agent, await site.join(Role.AGENT, "web", cert=cert)):
        each.send(PACKET)
        assert read_udp(await received(connector)).payload == b"x"
    assert (await site.reload()).status_code == 200
    assert await server.terminate() == 0
    site.server = await site.restart()
    await site.join(Role.AGENT, "web", cert=cert)
