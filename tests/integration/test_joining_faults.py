"""Joins at a server that is killed, at a full disk, a damaged database and a signer: each ends in one identity or in a
refusal that may pass, and relaying goes on."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509

from intermediate_server.join import messages
from intermediate_server.join.messages import Issued, Refused
from intermediate_server.pki import keys
from intermediate_server.pki.authority import Authority
from intermediate_server.pki.joins import Joins
from intermediate_server.pki.store import Store
from intermediate_server.types import Role
from tests.integration.conftest import Server, StartServer
from tests.integration.joining import Asker, Device, asking, new_token, pin_of
from tests.integration.site import Site, until
from tests.unit.issuing import Relays

ROUNDS = 6
"""Kills of a server at a moment by chance; the unit tests kill the issuer at each of its steps."""


@pytest.fixture
async def asker() -> AsyncIterator[Asker]:
    async with asking() as made:
        yield made


async def test_a_server_that_is_killed_during_a_join_leaves_one_identity_and_one_use(
    start_server: StartServer, asker: Asker, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    chance = random.Random(1)
    for number in range(ROUNDS):
        server = await start_server(state_dir=state)
        device, token = Device(f"host-{number}"), new_token(state)
        asked = asyncio.create_task(asker.ask(server.address, device.join(token), pin=pin_of(state)))
        await asyncio.sleep(chance.uniform(0, 0.02))
        await server.kill()
        server = await start_server(state_dir=state, port=server.address[1])
        device.take(await asker.ask(server.address, device.join(token), pin=pin_of(state)))
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        answer = await asker.ask(server.address, Device("thief").join(token), pin=pin_of(state))
        assert isinstance(answer, Refused) and answer.cause == "used"
        await server.terminate()
        found = Joins(Authority(state)).token(token.id)
        assert found is not None and found.used == 1
        with Store(state) as store:
            (row,) = store.select("i.name = ?", device.host)
        assert row.fingerprint == device.fingerprint


def copy(database: Path, path: Path) -> None:
    """Copy a database that is in use."""
    db = sqlite3.connect(database)
    db.execute("VACUUM INTO ?", (str(path),))
    db.close()


def fails(answer: object) -> str:
    assert isinstance(answer, Refused), answer
    assert answer.again
    return answer.cause


async def warned(site: Site, text: str) -> bool:
    return any(text in sentence for sentence in (await site.get("/readyz")).json()["warnings"])


async def test_a_damaged_database_stops_joins_and_nothing_else(site: Site, asker: Asker, tmp_path: Path) -> None:
    await site.start("")
    address, pin = site.server.address, pin_of(site.state)
    device, other, token = Device(), Device("other"), new_token(site.state)
    device.take(await asker.ask(address, device.join(token), pin=pin))
    connection = await site.dial(cert=device.files(tmp_path))
    await connection.register(Role.CONNECTOR, "web")
    next_token = new_token(site.state)
    database = site.state / "identity.db"
    copy(database, tmp_path / "good.db")
    database.with_suffix(".new").write_bytes(os.urandom(50_000))
    for name in ("identity.db-wal", "identity.db-shm"):
        (site.state / name).unlink(missing_ok=True)
    database.with_suffix(".new").rename(database)

    assert fails(await asker.ask(address, other.join(next_token), pin=pin)) == "unavailable"
    assert fails(await asker.ask(address, device.renew(), by=device)) == "unavailable"
    await until(lambda: warned(site, "damaged"), "the warning")
    assert (await site.get("/readyz")).status_code == 200
    # Connections live on, and new ones come: the CA and crl.pem decide that.
    again = await site.dial(cert=device.files(tmp_path))
    await again.register(Role.CONNECTOR, "web")
    await connection.register(Role.CONNECTOR, "web")

    (tmp_path / "good.db").rename(database)
    other.take(await asker.ask(address, other.join(next_token), pin=pin))
    assert not await warned(site, "damaged")


async def test_a_full_disk_stops_joins_until_there_is_room(asker: Asker, tmp_path: Path) -> None:
    state, small = tmp_path / "state", tmp_path / "small"
    small.mkdir()
    before = Relays(state, now=keys.utc_now())
    token, next_token = before.token(), before.token()
    before.store.close()
    mounting = (
        f'mount -t tmpfs -o size=4m tmpfs "{small}" && cp -a "{state}/." "{small}" && '
        f'mount --bind "{small}" "{state}" && exec "$@"'
    )
    within = ("unshare", "--mount", "sh", "-c", mounting, "sh")
    if os.geteuid() != 0:
        pytest.skip("mount namespaces need root")
    async with await Server.begin(state, within=within) as server:
        seen = Path(f"/proc/{server.process.pid}/root{small}")
        device, other, pin = Device(), Device("other"), pin_of(state)
        device.take(await asker.ask(server.address, device.join(token), pin=pin))
        with (seen / "ballast").open("wb", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(bytes(4096))
            except OSError:
                pass
        assert fails(await asker.ask(server.address, other.join(next_token), pin=pin)) == "unavailable"
        (seen / "ballast").unlink()
        issued = other.take(await asker.ask(server.address, other.join(next_token), pin=pin))
        again = other.take(await asker.ask(server.address, other.join(next_token), pin=pin))
        assert again.chain == issued.chain


# A signer


def signer(directory: Path, ca: Path, text: str = "") -> Path:
    """A command that signs with openssl, and keeps no name of the request."""
    script = directory / "signer"
    script.write_text(
        f"""#!/bin/sh
set -e
{text}
work=$(mktemp -d)
cat > $work/request
names=$(echo "$ZTNA_DNS_NAMES" | sed 's/[^,]*/DNS:&/g')
printf 'subjectAltName=%s\\nextendedKeyUsage=clientAuth\\n' "$names" > $work/extensions
openssl x509 -req -in $work/request -CA {ca}/ca.pem -CAkey {ca}/ca.key -subj "/CN=$ZTNA_NAME" \\
    -days $((ZTNA_LIFETIME / 86400)) -extfile $work/extensions 2>/dev/null
"""
    )
    script.chmod(0o700)
    return script


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """The CA of somebody else, with its key."""
    directory = tmp_path / "foreign"
    directory.mkdir()
    key, now = keys.new_key(), keys.utc_now()
    made = keys.sign_itself("foreign", key, not_before=now - keys.BACKDATE, not_after=now + 1000 * keys.BACKDATE)
    (directory / "ca.pem").write_bytes(keys.certificate_pem(made))
    (directory / "ca.key").write_bytes(keys.key_pem(key))
    return directory


async def test_a_signer_issues_what_a_token_says(site: Site, asker: Asker, foreign: Path, tmp_path: Path) -> None:
    command = signer(tmp_path, foreign)
    await site.start(f'ca-cert = "{foreign}/ca.pem"\njoin-signer = ["{command}"]\n')
    address, pin, device = site.server.address, pin_of(site.state), Device()
    device.take(await asker.ask(address, device.join(new_token(site.state)), pin=pin))
    assert device.issued is not None
    leaf = x509.load_pem_x509_certificate(device.issued.chain.encode())
    assert leaf.issuer == x509.load_pem_x509_certificate((foreign / "ca.pem").read_bytes()).subject
    connection = await site.dial(cert=device.files(tmp_path))
    await connection.register(Role.CONNECTOR, "web")
    # A revocation of what another CA has issued is a line in a deny list.
    Authority(site.state).revoke("office")
    assert (await connection.wait_closed()).code == 4
    answer = await asker.ask(address, device.renew(), by=device)
    assert isinstance(answer, Refused) and answer.cause == "revoked"


async def test_a_relay_without_a_ca_of_its_own_issues_by_a_signer(
    site: Site, asker: Asker, foreign: Path, tmp_path: Path
) -> None:
    ca = x509.load_pem_x509_certificate((foreign / "ca.pem").read_bytes())
    ca_key = keys.parse_key((foreign / "ca.key").read_bytes(), "foreign")
    own, now = keys.new_key(), keys.utc_now()
    leaf = keys.sign(
        subject=keys.common_name("relay"),
        public_key=own.public_key(),
        authority=ca,
        authority_key=ca_key,
        names=[x509.DNSName("ztna-server")],
        usage=keys.SERVER_AUTH,
        not_before=now - keys.BACKDATE,
        not_after=now + keys.BACKDATE,
    )
    (tmp_path / "relay.pem").write_bytes(keys.certificate_pem(leaf, ca))
    (tmp_path / "relay.key").touch(mode=0o600)
    (tmp_path / "relay.key").write_bytes(keys.key_pem(own))
    command = signer(tmp_path, foreign)
    server = await site.start(
        f'cert = "{tmp_path}/relay.pem"\nkey = "{tmp_path}/relay.key"\nca-cert = "{foreign}/ca.pem"\n'
        f'join-signer = ["{command}"]\n'
    )
    assert not (site.state / "ca.pem").exists()
    pin, device = ca.fingerprint(keys.SHA256), Device()
    issued = device.take(await asker.ask(server.address, device.join(new_token(site.state, pin=pin)), pin=pin))
    assert issued.ca.encode() == keys.certificate_pem(ca)
    again = await asker.ask(server.address, device.renew(), by=device)
    assert isinstance(again, Issued) and again.chain == issued.chain
    assert await asker.ask(server.address, messages.Leave(), by=device) == messages.Left()
    assert device.fingerprint in (site.state / "denied.txt").read_text()


async def test_a_signer_that_fails_is_the_operators_to_know(
    site: Site, asker: Asker, foreign: Path, tmp_path: Path
) -> None:
    command = signer(tmp_path, foreign, text="echo the vault is sealed >&2; exit 3")
    await site.start(f'ca-cert = "{foreign}/ca.pem"\njoin-signer = ["{command}"]\n')
    address, pin, device = site.server.address, pin_of(site.state), Device()
    token = new_token(site.state)
    answer = await asker.ask(address, device.join(token), pin=pin)
    assert fails(answer) == "signer"
    assert isinstance(answer, Refused) and "sealed" not in answer.sentence
    assert await warned(site, "the vault is sealed")
    signer(tmp_path, foreign)
    assert isinstance(await asker.ask(address, device.join(token), pin=pin), Issued)
    assert not await warned(site, "sealed")
