"""Joining at a real server process: what a device gets, what is written down of it, and what ends it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from intermediate_server.errors import ConnectError, ConnectionClosed, RegistrationError
from intermediate_server.join import messages
from intermediate_server.join.messages import Issued, Left, Pending, Refused, encode
from intermediate_server.pki import identity_of, keys
from intermediate_server.pki.authority import Authority
from intermediate_server.pki.joins import Joins
from intermediate_server.pki.rollover import Rollover
from intermediate_server.types import Role
from intermediate_server.wire import close_codes
from tests.integration.joining import Asker, Device, Unanswered, asking, new_token, pin_of
from tests.integration.site import Site
from tests.unit.issuing import Relays, Token, der_of, signing_request

NO_PROTOCOL = 0x178
"""The TLS alert no_application_protocol (RFC 9001 section 4.8)."""


@pytest.fixture
async def asker() -> AsyncIterator[Asker]:
    async with asking() as made:
        yield made


async def join(site: Site, asker: Asker, device: Device, **options: object) -> Issued:
    """Let a device join by a new token."""
    token = new_token(site.state, **options)  # type: ignore[arg-type]
    return device.take(await asker.ask(site.server.address, device.join(token), pin=pin_of(site.state)))


def refused(answer: object) -> Refused:
    assert isinstance(answer, Refused), answer
    return answer


async def test_a_device_joins_connects_renews_and_leaves(site: Site, asker: Asker, tmp_path: Path) -> None:
    await site.start("")
    device = Device()
    issued = await join(site, asker, device)
    assert (issued.name, issued.role, issued.services) == ("office", Role.CONNECTOR, ("web",))
    assert abs(issued.server_time - datetime.now(UTC)) < timedelta(minutes=1)

    connection = await site.dial(cert=device.files(tmp_path))
    await connection.register(Role.CONNECTOR, "web")
    first = device.fingerprint
    line = await site.wait_decision("issued", cause="join")
    assert (line["name"], line["role"], line["fingerprint"]) == ("office", "connector", first)
    assert line["token"]

    # At once the same key gets the same certificate again.
    again = await asker.ask(site.server.address, device.renew(), by=device)
    assert isinstance(again, Issued)
    assert again.chain == issued.chain

    assert await asker.ask(site.server.address, messages.Leave(), by=device) == Left()
    assert (await connection.wait_closed()).code == close_codes.CERTIFICATE_REVOKED
    left = await site.wait_decision("left")
    assert (left["name"], left["fingerprint"]) == ("office", first)
    late = await site.dial(cert=device.files(tmp_path))
    assert (await late.wait_closed()).code == close_codes.CERTIFICATE_REVOKED
    assert refused(await asker.ask(site.server.address, device.renew(), by=device)).cause == "revoked"
    assert await site.metric('ztna_joins_total{outcome="ok"}') == 1
    assert await site.metric('ztna_renewals_total{outcome="repeated"}') == 1
    assert await site.metric('ztna_renewals_total{outcome="revoked"}') == 1
    assert await site.metric('ztna_identities_ended_total{cause="left"}') == 1
    assert "PRIVATE KEY" not in site.audit.read_text()


def joined_ago(site: Site, device: Device, *, lifetime: float, **ago: float) -> None:
    """Let a device have joined so long ago."""
    past = Relays(site.state, now=keys.utc_now() - timedelta(**ago))
    device.take(past.join(past.token(lifetime=lifetime), device.key, host=device.host))
    past.store.close()


async def test_a_certificate_that_has_expired_renews_and_connects_again(
    site: Site, asker: Asker, tmp_path: Path
) -> None:
    await site.start("")
    device = Device()
    joined_ago(site, device, lifetime=60, days=1)
    # TLS takes no expired certificate for a connection.
    with pytest.raises((ConnectError, ConnectionClosed, RegistrationError)):
        await (await site.dial(cert=device.files(tmp_path))).register(Role.CONNECTOR, "web")
    device.take(await asker.ask(site.server.address, device.renew(), by=device))
    connection = await site.dial(cert=device.files(tmp_path))
    await connection.register(Role.CONNECTOR, "web")
    line = await site.wait_decision("issued", cause="late-renew")
    assert line["fingerprint"] == device.fingerprint
    assert await site.metric('ztna_renewals_total{outcome="late"}') == 1


async def test_without_a_grace_an_expired_certificate_is_refused_with_what_to_do(site: Site, asker: Asker) -> None:
    await site.start("renew-grace = 0\n")
    device = Device()
    joined_ago(site, device, lifetime=60, days=1)
    answer = refused(await asker.ask(site.server.address, device.renew(), by=device))
    assert (answer.cause, answer.again) == ("past-grace", False)
    assert "token" in answer.sentence


async def test_a_revoked_identity_is_cut_and_renews_no_more(site: Site, asker: Asker, tmp_path: Path) -> None:
    await site.start("")
    device = Device()
    await join(site, asker, device)
    connection = await site.dial(cert=device.files(tmp_path))
    await connection.register(Role.CONNECTOR, "web")
    Authority(site.state).revoke("office")
    assert (await connection.wait_closed()).code == close_codes.CERTIFICATE_REVOKED
    assert refused(await asker.ask(site.server.address, device.renew(), by=device)).cause == "revoked"


async def test_answers_carry_both_cas_while_one_takes_over(site: Site, asker: Asker) -> None:
    server = await site.start("")
    device = Device()
    issued = await join(site, asker, device)
    for reloads, step in enumerate(("start", "switch"), start=1):
        getattr(Rollover(site.state), step)()
        await server.wait_log("Reloaded", count=reloads)
        # The same certificate, since it was issued a moment ago, and the CAs of now.
        answer = device.take(await asker.ask(server.address, device.renew(), by=device))
        assert answer.chain == issued.chain
        assert answer.ca.count("BEGIN CERTIFICATE") == 2
    newcomer = Device("newcomer")
    token = new_token(site.state)
    authorities = x509.load_pem_x509_certificates((site.state / "ca.pem").read_bytes())
    # The relay's own certificate stays with the old CA, which a token pins.
    pin = authorities[1].fingerprint(keys.SHA256)
    newcomer.take(await asker.ask(server.address, newcomer.join(token), pin=pin))
    assert newcomer.issued is not None
    assert keys.is_signed_by(x509.load_pem_x509_certificate(newcomer.issued.chain.encode()), authorities[0])


async def test_a_join_waits_for_its_approval(site: Site, asker: Asker) -> None:
    await site.start("")
    device, token, joins = Device(), new_token(site.state, approve=True), Joins(Authority(site.state))
    pin = pin_of(site.state)
    assert await asker.ask(site.server.address, device.join(token), pin=pin) == Pending(10.0)
    (waiting,) = joins.pending()
    assert waiting.source == "127.0.0.1"
    joins.approve(waiting.join)
    device.take(await asker.ask(site.server.address, device.join(token), pin=pin))
    assert (await site.wait_decision("pending"))["token"] == token.id.hex()


# Refusals


async def test_a_token_of_another_relay_says_nothing_to_this_one(site: Site, asker: Asker) -> None:
    await site.start("")
    token = new_token(site.state)
    with pytest.raises(Unanswered) as caught:
        await asker.ask(site.server.address, Device().join(token), pin=bytes(32))
    assert caught.value.cause == "unknown_issuer"
    # No byte of a request has come.
    assert await site.metric('ztna_join_attempts_total{outcome="replied"}') == 0


async def test_every_wrong_token_gets_its_named_refusal_and_is_in_the_audit_log(site: Site, asker: Asker) -> None:
    await site.start("")
    address, pin, device = site.server.address, pin_of(site.state), Device()
    used = new_token(site.state)
    device.take(await asker.ask(address, device.join(used), pin=pin))
    gone = new_token(site.state)
    Joins(Authority(site.state)).revoke_token(gone.id)
    expired = new_token(site.state, now=keys.utc_now() - timedelta(hours=2))
    elsewhere = new_token(site.state, networks=("192.0.2.0/24",))
    good = new_token(site.state)
    for number, (token, cause) in enumerate(
        [
            (used, "used"),
            (gone, "revoked"),
            (expired, "expired"),
            (elsewhere, "source"),
            (Token(good.id, bytes(20)), "unknown"),
            (Token(b"\xff" * 6, good.secret), "unknown"),
            (good, "name"),
        ]
    ):
        # Each from a source of its own: five failures close joining to one.
        source = f"127.0.1.{number + 1}"
        answer = refused(await asker.ask(address, Device().join(token), pin=pin, source=source))
        assert (answer.cause, answer.again) == (cause, False)
        line = await site.wait_decision("refused", cause=cause, token=token.id.hex())
        assert (line["request"], line["address"].rpartition(":")[0]) == ("join", source)
        assert await site.metric(f'ztna_joins_total{{outcome="{cause}"}}') >= 1
    assert 'used by "office"' in next(line["reason"] for line in site.decisions("refused") if line["cause"] == "used")
    assert good.secret.hex() not in site.audit.read_text()


async def test_a_request_that_is_repeated_from_elsewhere_brings_nothing_new(site: Site, asker: Asker) -> None:
    await site.start("")
    address, pin, device, token = site.server.address, pin_of(site.state), Device(), new_token(site.state)
    request = encode(device.join(token))
    first = device.take(await asker.ask(address, request, pin=pin))
    # The certificate is of no use without the device's key, which is in no request.
    again = device.take(await asker.ask(address, request, pin=pin, source="127.0.4.1"))
    assert again.chain == first.chain
    known = Joins(Authority(site.state)).token(token.id)
    assert known is not None and known.used == 1
    # A renewal counts by the certificate of its own handshake.
    renewal = encode(device.renew())
    await asker.ask(address, renewal, by=device)
    answer = await asker.ask(address, renewal, pin=pin, source="127.0.4.2")
    assert refused(answer).cause == "no-certificate"


async def test_bad_requests_get_their_named_refusal(site: Site, asker: Asker) -> None:
    await site.start("")
    address, pin, token = site.server.address, pin_of(site.state), new_token(site.state)
    weak = rsa.generate_private_key(65537, 1024)
    damaged = bytearray(signing_request(keys.new_key()))
    damaged[-1] ^= 1
    requests: list[tuple[messages.Request | bytes, str]] = [
        (b"{", "malformed"),
        (b'{"v":1,"type":"leave","extra":1}', "malformed"),
        (messages.Join(token.id, token.secret, signing_request(weak), "office", "1"), "weak-key"),
        (messages.Join(token.id, token.secret, bytes(damaged), "office", "1"), "csr"),
        (messages.Renew(signing_request(keys.new_key())), "no-certificate"),
        (messages.Leave(), "no-certificate"),
    ]
    for number, (request, cause) in enumerate(requests):
        source = f"127.0.2.{number + 1}"
        assert refused(await asker.ask(address, request, pin=pin, source=source)).cause == cause
    stranger = Device()
    other = Relays(site.config.parent / "other")
    stranger.take(other.join(other.token(), stranger.key))
    other.store.close()
    answer = await asker.ask(address, stranger.renew(), pin=pin, by=stranger, source="127.0.2.99")
    assert refused(answer).cause == "unknown-certificate"
    # Foreign names in a request are no fault; they count for nothing.
    device = Device()
    wishes = signing_request(device.key, "agent.*.ztna", "connector.secret.ztna")
    request = messages.Join(token.id, token.secret, wishes, "office", "1")
    issued = device.take(await asker.ask(address, request, pin=pin))
    assert identity_of(der_of(issued)).dns_names == ("connector.web.ztna",)


async def test_five_failures_close_joining_to_their_source_and_relaying_to_nobody(
    site: Site, asker: Asker, tmp_path: Path
) -> None:
    await site.start("")
    address, pin = site.server.address, pin_of(site.state)
    device = Device()
    await join(site, asker, device)
    wrong = Device().join(Token(bytes(6), bytes(20)))
    for _ in range(5):
        assert refused(await asker.ask(address, wrong, pin=pin)).cause == "unknown"
    with pytest.raises(Unanswered):
        await asker.ask(address, wrong, pin=pin)
    connection = await site.dial(cert=device.files(tmp_path))
    await connection.register(Role.CONNECTOR, "web")
    assert refused(await asker.ask(address, wrong, pin=pin, source="127.0.3.1")).cause == "unknown"


async def test_where_joining_is_off_the_protocol_is_not_offered_until_a_reload(site: Site, asker: Asker) -> None:
    await site.start("joining = false\n")
    device, token = Device(), new_token(site.state)
    with pytest.raises(Unanswered) as caught:
        await asker.ask(site.server.address, device.join(token), pin=pin_of(site.state))
    assert caught.value.code == NO_PROTOCOL
    assert (await site.get("/readyz")).json()["joining"].startswith("off: ")
    site.write("")
    assert (await site.reload()).status_code == 200
    device.take(await asker.ask(site.server.address, device.join(token), pin=pin_of(site.state)))
    assert (await site.get("/readyz")).json()["joining"] == "on"
