"""Files of certificates and keys as people bring them, by real handshakes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from intermediate_server.client import ClientEngine
from intermediate_server.errors import ConnectError
from intermediate_server.pki import Authority, keys
from intermediate_server.types import Role
from tests.integration.conftest import StartServer

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)


def self_signed(
    path: Path, *names: str, ca: bool, until: datetime = NOW + DAY, usage: x509.ObjectIdentifier | None = None
) -> tuple[Path, Path]:
    """A certificate as ``openssl req -x509`` makes it, and its key."""
    key = keys.new_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(keys.common_name(path.name))
        .issuer_name(keys.common_name(path.name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(until - 2 * DAY)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
    )
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    files = path.with_suffix(".pem"), path.with_suffix(".key")
    files[0].write_bytes(keys.certificate_pem(builder.sign(key, keys.SHA256)))
    files[1].write_bytes(keys.key_pem(key))
    files[1].chmod(0o600)
    return files


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda one, two: one.rstrip() + two, id="no newline between"),
        pytest.param(lambda one, two: b"\xef\xbb\xbf" + one + b"\xef\xbb\xbf" + two, id="byte-order marks"),
        pytest.param(lambda one, two: (one.rstrip() + two).replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(lambda one, two: (one + two).decode().encode("utf-16"), id="UTF-16"),
    ],
)
async def test_every_ca_of_a_bundle_counts_at_both_ends(
    start_server: StartServer, engine: ClientEngine, tmp_path: Path, spoil: Callable[[bytes, bytes], bytes]
) -> None:
    authorities = [Authority(tmp_path / name) for name in ("one", "two")]
    for authority in authorities:
        authority.init()
        authority.issue(Role.AGENT, "laptop", services=["web"])
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(spoil(*(authority.certificate_path.read_bytes() for authority in authorities)))
    server = await start_server("--ca-cert", str(bundle))
    client_bundle = tmp_path / "client.pem"
    client_bundle.write_bytes(spoil(authorities[0].certificate_path.read_bytes(), server.ca_file.read_bytes()))
    for authority in authorities:
        connection = await engine.connect(
            server.address,
            ca_file=client_bundle,
            cert_file=authority.certificate_file("laptop"),
            key_file=authority.key_path("laptop"),
            server_name="ztna-server",
        )
        await connection.register(Role.AGENT, "web")


async def test_a_certificate_that_says_it_is_a_ca_works_where_it_is_pinned(
    start_server: StartServer, engine: ClientEngine, tmp_path: Path
) -> None:
    """``openssl req -x509`` writes CA:TRUE into what it makes."""
    server_files = self_signed(tmp_path / "server", "relay.test", ca=True)
    client_files = self_signed(tmp_path / "client", "agent.web.ztna", ca=True)
    server = await start_server(
        "--cert", str(server_files[0]), "--key", str(server_files[1]), "--ca-cert", str(client_files[0])
    )
    await server.wait_log("says that it is a CA")

    async def connect(ca: Path, name: str = "relay.test", files: tuple[Path, Path] = client_files) -> None:
        connection = await engine.connect(
            server.address, ca_file=ca, cert_file=files[0], key_file=files[1], server_name=name
        )
        await connection.register(Role.AGENT, "web")
        await connection.close()

    await connect(server_files[0])
    with pytest.raises(ConnectError):
        await connect(server_files[0], "another.test")
    with pytest.raises(ConnectError):
        await connect(self_signed(tmp_path / "server-too", "relay.test", ca=True)[0])


@pytest.mark.parametrize("ca", [True, False])
async def test_a_pinned_certificate_still_ends(
    start_server: StartServer, engine: ClientEngine, tmp_path: Path, ca: bool
) -> None:
    files = self_signed(tmp_path / "server", "relay.test", ca=ca, until=NOW - timedelta(minutes=1))
    server = await start_server("--cert", str(files[0]), "--key", str(files[1]), "--client-auth", "off")
    with pytest.raises(ConnectError, match=r"(?i)expired"):
        await engine.connect(server.address, ca_file=files[0], server_name="relay.test")


async def test_a_certificate_that_a_pinned_ca_signed_is_no_pinned_one(
    start_server: StartServer, engine: ClientEngine, tmp_path: Path
) -> None:
    """Another certificate of the same name and key is not the one that was pinned."""
    files = self_signed(tmp_path / "server", "relay.test", ca=True, usage=ExtendedKeyUsageOID.SERVER_AUTH)
    key = keys.load_key(files[1])
    other = keys.sign_itself("server", key, not_before=NOW - DAY, not_after=NOW + DAY)
    pinned = tmp_path / "other.pem"
    pinned.write_bytes(keys.certificate_pem(other))
    server = await start_server("--cert", str(files[0]), "--key", str(files[1]), "--client-auth", "off")
    with pytest.raises(ConnectError):
        await engine.connect(server.address, ca_file=pinned, server_name="relay.test")


async def test_a_key_that_everyone_may_read_is_refused_at_both_ends_unless_it_is_allowed(
    start_server: StartServer, engine: ClientEngine, tmp_path: Path
) -> None:
    files = self_signed(tmp_path / "server", "relay.test", ca=False)
    files[1].chmod(0o644)
    server = await start_server("--cert", str(files[0]), "--key", str(files[1]), "--readable-keys")
    await server.wait_log("as readable-keys allows")
    cert, key = server.certificate(["agent.web.ztna"])
    key.chmod(0o644)
    given = {"ca_file": files[0], "cert_file": cert, "key_file": key, "server_name": "relay.test"}
    with pytest.raises(ConnectError, match="can be read by everyone; run: chmod 600"):
        await engine.connect(server.address, **given)  # type: ignore[arg-type]
    connection = await engine.connect(server.address, readable_keys=True, **given)  # type: ignore[arg-type]
    await connection.register(Role.AGENT, "web")
