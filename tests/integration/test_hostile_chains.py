"""Certificates that are dear to verify must not hold up anybody else."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from intermediate_server.client import ClientEngine
from intermediate_server.pki import keys
from intermediate_server.types import Role
from tests.integration.conftest import Server, StartServer
from tests.integration.hostile import (
    Issuer,
    attack,
    authority,
    chains,
    cost,
    legitimate,
    one_name,
    rsa_key,
    trust_anchors,
)
from tests.integration.packets import udp_packet
from tests.integration.relaying import APPLICATION, INNER, free_port, join, received

MOST = 0.05
"""Seconds of the engine's thread that a handshake may cost."""

P256, P384 = ec.SECP256R1(), ec.SECP384R1()


async def server_of(start_server: StartServer, ca: Issuer, directory: Path) -> Server:
    """A server whose clients have certificates of that CA."""
    ca_file = directory / "client-ca.pem"
    ca_file.write_bytes(keys.certificate_pem(ca.sign(ca.name, ca.key, is_ca=True)))
    return await start_server("--ca-cert", str(ca_file), "--metrics-port", str(free_port()))


@pytest.mark.parametrize("kind", ["P-256", "RSA 4096", "P-521"])
async def test_the_dearest_chains_cost_little(
    start_server: StartServer, engine: ClientEngine, tmp_path: Path, kind: str
) -> None:
    ca = trust_anchors()[kind]
    server = await server_of(start_server, ca, tmp_path)
    # The first handshake of a process costs more than any other.
    good = legitimate(ca, [], keys.new_key()).write(tmp_path, "good")
    await join(engine, server, Role.AGENT, cert=good)
    dear = {}
    for number, (name, chain) in enumerate(chains(ca).items()):
        seconds, end = await cost(engine, server, chain.write(tmp_path, str(number)), 3)
        assert end, f"{name} was let in"
        if seconds > MOST:
            dear[name] = seconds
    assert dear == {}
    assert await server.metric('ztna_handshakes_total{outcome="refused_chain"}') > 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nine of one name, 40 unrelated", "sent 49 certificates beside its own; at most 4"),
        ("four of the CA's name", "lead to no client CA within 12 signature checks"),
        ("a large leaf", "at most 8192 are verified"),
        ("a leaf of RSA 5120", "another key than EC P-256"),
    ],
)
async def test_the_log_says_what_a_chain_was_refused_for(
    start_server: StartServer, engine: ClientEngine, tmp_path: Path, name: str, reason: str
) -> None:
    server = await start_server("--log-level", "debug", "--metrics-port", str(free_port()))
    assert await attack(engine, server, chains(authority(server))[name].write(tmp_path, "hostile"))
    line = await server.wait_log("Handshake failed")
    assert reason in line["reason"]
    assert await server.metric('ztna_handshakes_total{outcome="refused_chain"}') == 1
    assert await server.metric('ztna_handshakes_total{outcome="failed"}') == 0


@pytest.mark.parametrize(
    ("ca", "intermediates", "leaf"),
    [
        ("P-256", [P256, P256, P256, P256], P256),
        ("P-384", [P384, P256, P384, P256], P384),
        ("P-521", [P256], "ed25519"),
        ("RSA 4096", ["rsa", "rsa", P256, "ed25519"], "rsa"),
        ("Ed25519", ["ed25519", "ed25519", "ed25519", "ed25519"], "ed25519"),
    ],
)
async def test_chains_as_clients_have_them_are_verified(
    start_server: StartServer,
    engine: ClientEngine,
    tmp_path: Path,
    ca: str,
    intermediates: list[ec.EllipticCurve | str],
    leaf: ec.EllipticCurve | str,
) -> None:
    def key(kind: ec.EllipticCurve | str) -> keys.PrivateKey:
        if kind == "rsa":
            return rsa_key(4096)
        return keys.new_key("ed25519") if isinstance(kind, str) else ec.generate_private_key(kind)

    anchor = trust_anchors()[ca]
    server = await server_of(start_server, anchor, tmp_path)
    chain = legitimate(anchor, [key(kind) for kind in intermediates], key(leaf))
    # The order of those behind the leaf is the sender's choice (RFC 8446 section 4.4.2).
    for number, turned in enumerate((chain.certificates[1:], chain.certificates[:0:-1])):
        chain.certificates[1:] = turned
        await join(engine, server, Role.AGENT, cert=chain.write(tmp_path, f"good-{number}"))


async def test_good_clients_beside_hostile_chains_are_served(
    start_server: StartServer, engine: ClientEngine, tmp_path: Path
) -> None:
    server = await start_server("--metrics-port", str(free_port()))
    connector = await join(engine, server, Role.CONNECTOR, cert=server.certificate(["connector.web.ztna"]))
    certificate = server.certificate(["agent.web.ztna"])
    agent = await join(engine, server, Role.AGENT, cert=certificate)
    hostile = one_name(authority(server).name, 4).write(tmp_path, "hostile")
    done = asyncio.Event()

    async def flood() -> None:
        while not done.is_set():
            assert await attack(engine, server, hostile)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(16):
            tasks.create_task(flood())
        for number in range(20):
            packet = udp_packet(INNER, APPLICATION, b"%d" % number)
            agent.send(packet)
            assert (await received(connector))[28:] == packet[28:]
            newcomer = await join(engine, server, Role.AGENT, cert=certificate)
            await newcomer.close()
        done.set()
    assert await server.metric('ztna_handshakes_total{outcome="refused_chain"}') >= 16
    assert (agent.closed, connector.closed) == (None, None)


async def test_a_server_key_that_is_rsa_is_warned_of(start_server: StartServer, tmp_path: Path) -> None:
    key, name = rsa_key(4096), keys.common_name("ztna-server")
    own = Issuer(name, key).sign(name, key, is_ca=False)
    certificate, key_file = tmp_path / "server.pem", tmp_path / "server.key"
    certificate.write_bytes(keys.certificate_pem(own))
    key_file.write_bytes(keys.key_pem(key))
    key_file.chmod(0o600)
    server = await start_server("--cert", str(certificate), "--key", str(key_file), "--client-auth", "off")
    warning = await server.wait_log("the server's key is RSA")
    assert warning["level"] == "warning"
