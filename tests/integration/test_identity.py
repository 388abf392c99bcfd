"""Who a peer is taken for, by real handshakes: each certificate against what it may then register."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from intermediate_server.client import ClientEngine, Connection
from intermediate_server.errors import ConnectError, ConnectionClosed, RegistrationError
from intermediate_server.types import Role
from tests.integration.client_ca import DAY, NOW, Ca, Key
from tests.integration.conftest import Server, SharedServers

WEB = "agent.web.ztna"


@pytest.fixture(scope="module")
def ca() -> Ca:
    return Ca("clients")


class Door:
    """A server that requires certificates of one CA, and a way to show it one."""

    def __init__(self, server: Server, engine: ClientEngine, directory: Path) -> None:
        self.server = server
        self._engine = engine
        self._directory = directory

    async def show(self, pem: bytes, key: bytes) -> Connection:
        certificate_file, key_file = self._directory / "peer.pem", self._directory / "peer.key"
        certificate_file.write_bytes(pem)
        key_file.touch(mode=0o600)
        key_file.write_bytes(key)
        return await self._engine.connect(
            self.server.address,
            ca_file=self.server.ca_file,
            server_name="ztna-server",
            cert_file=certificate_file,
            key_file=key_file,
        )

    async def granted(self, made: tuple[bytes, bytes], role: Role = Role.AGENT, service: str = "web") -> bool:
        """Whether a certificate gets in and is registered; refusals of both kinds are False."""
        connection = await self.show(*made)
        try:
            await connection.register(role, service)
        except RegistrationError as error:
            assert "refused with status 2" in str(error)
            return False
        return True

    async def shut(self, made: tuple[bytes, bytes]) -> bool:
        """Whether the handshake itself is refused."""
        try:
            connection = await self.show(*made)
            # The client of TLS 1.3 is done before the server has looked at its certificate.
            await connection.register(Role.AGENT, "web")
        except (ConnectError, ConnectionClosed):
            return True
        return False


@pytest.fixture(scope="module")
def trusting(share_server: SharedServers, ca: Ca, tmp_path_factory: pytest.TempPathFactory) -> Server:
    trusted = tmp_path_factory.mktemp("ca") / "clients.pem"
    trusted.write_bytes(ca.certificate.public_bytes(Encoding.PEM))
    return share_server("--ca-cert", str(trusted))


@pytest.fixture
def door(trusting: Server, engine: ClientEngine, tmp_path: Path) -> Door:
    return Door(trusting, engine, tmp_path)


async def test_the_right_certificate(door: Door, ca: Ca) -> None:
    assert await door.granted(ca.issue(WEB))


async def test_no_certificate(door: Door, engine: ClientEngine) -> None:
    with pytest.raises((ConnectError, ConnectionClosed)):
        connection = await engine.connect(door.server.address, ca_file=door.server.ca_file, server_name="ztna-server")
        await connection.register(Role.AGENT, "web")


async def test_another_ca(door: Door) -> None:
    assert await door.shut(Ca("clients").issue(WEB)), "the same name, and another key"


@pytest.mark.parametrize(
    "valid", [(NOW - 3 * DAY, NOW - DAY), (NOW + DAY, NOW + 2 * DAY)], ids=["expired", "not yet valid"]
)
async def test_outside_its_time(door: Door, ca: Ca, valid: tuple[datetime, datetime]) -> None:
    assert await door.shut(ca.issue(WEB, valid=valid))


async def test_role_and_service_are_those_of_the_names(door: Door, ca: Ca) -> None:
    made = ca.issue(WEB, "connector.db.ztna")
    assert await door.granted(made)
    assert await door.granted(made, Role.CONNECTOR, "db")
    assert not await door.granted(made, Role.CONNECTOR, "web"), "the wrong role"
    assert not await door.granted(made, Role.AGENT, "db"), "the wrong service"


async def test_a_wildcard_is_every_service_of_its_role(door: Door, ca: Ca) -> None:
    made = ca.issue("agent.*.ztna")
    assert await door.granted(made, Role.AGENT, "anything")
    assert not await door.granted(made, Role.CONNECTOR, "anything")


@pytest.mark.parametrize(
    "names",
    [(), ("host.example.com",), ("web",), ("agent.ztna",), ("agent..ztna",), ("agent.web.ztna.example.com",)],
    ids=["none", "another", "bare", "no service", "empty service", "a longer name"],
)
async def test_no_usable_name_is_granted_nothing(door: Door, ca: Ca, names: tuple[str, ...]) -> None:
    """Fault 12: no name, or only misspelt ones, meant everything."""
    assert not await door.granted(ca.issue(*names))


async def test_a_common_name_grants_nothing(door: Door, ca: Ca) -> None:
    assert not await door.granted(ca.issue(common_name=WEB))
    assert not await door.granted(ca.issue("host.example.com", common_name=WEB))


async def test_the_names_of_an_intermediate_grant_nothing(door: Door, ca: Ca) -> None:
    intermediate = Ca("intermediate", parent=ca, names=[WEB, "agent.*.ztna"])
    assert not await door.granted(intermediate.issue("host.example.com"))
    assert await door.granted(intermediate.issue(WEB)), "the chain itself is good"


@pytest.mark.parametrize("name", ["AGENT.Web.ZTNA", "agent.web.ztna."], ids=["upper case", "a trailing dot"])
async def test_names_compare_as_dns_names_do(door: Door, ca: Ca, name: str) -> None:
    assert await door.granted(ca.issue(name))


@pytest.mark.parametrize("name", ["agent.web.ztna\0.example.com", "agent.web\0.ztna", "agent.web.ztna\0"])
async def test_an_embedded_nul_grants_nothing(door: Door, ca: Ca, name: str) -> None:
    made = ca.issue(name)
    assert not await door.granted(made)


async def test_three_hundred_names(door: Door, ca: Ca) -> None:
    made = ca.issue(*(f"agent.service-{number}.ztna" for number in range(300)))
    assert await door.granted(made, Role.AGENT, "service-299")
    assert not await door.granted(made)


async def test_a_spiffe_id_alone_grants_nothing_without_a_rule(door: Door, ca: Ca) -> None:
    assert not await door.granted(ca.issue(uris=["spiffe://example.org/agent/web"]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate,
        lambda: rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-384", "Ed25519", "RSA"],
)
async def test_every_usual_kind_of_key(door: Door, ca: Ca, make: Callable[[], Key]) -> None:
    assert await door.granted(ca.issue(WEB, key=make()))
