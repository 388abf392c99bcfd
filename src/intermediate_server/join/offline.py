"""Joining without a network between device and relay: an operator carries the request and the answer."""

from __future__ import annotations

from datetime import datetime

from cryptography import x509

from intermediate_server.config import Settings
from intermediate_server.errors import CertificateError
from intermediate_server.join import csr, messages
from intermediate_server.join.chain import chain_of
from intermediate_server.join.issuer import Relay, half
from intermediate_server.join.relay import servers_of
from intermediate_server.pki import keys, pem
from intermediate_server.pki.authority import Authority
from intermediate_server.pki.names import name_of_host
from intermediate_server.pki.signer import Signer, Wanted
from intermediate_server.pki.store import Issued, Store
from intermediate_server.pki.terms import Terms
from intermediate_server.types import Role

MAX_REQUEST = 64 << 10
"""Most bytes of a signing request."""

_REQUEST = ("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST")


def relay_of(settings: Settings) -> Relay:
    """The facts about a relay with these settings. Raises ``CertificateError`` and ``JoiningOff``."""
    chain = chain_of(settings)
    return Relay(servers_of(settings), chain.server_name, chain.ca_pem)


def answer(relay: Relay, row: Issued, now: datetime | None = None) -> messages.Issued:
    """The answer of a relay to the holder of this certificate."""
    return messages.Issued(
        chain=row.chain.decode(),
        ca=relay.ca_pem.decode(),
        servers=relay.servers,
        server_name=relay.server_name,
        name=row.name,
        role=Role(row.role),
        services=row.services,
        renew_after=half(row),
        server_time=now or keys.utc_now(),
    )


def sign(authority: Authority, settings: Settings, data: bytes, terms: Terms, *, now: datetime | None = None) -> Issued:
    """A certificate for the key of a signing request, PEM or DER; the request's own names grant nothing.

    Without a name in ``terms`` it is the one in the request. The same request gets the same certificate again. Raises
    ``CertificateError``.
    """
    now = now or keys.utc_now()
    request, key = csr.read(_der(data))
    name = terms.name or name_of_host(_common_name(request), terms.prefix)
    with authority.opened() as store:
        recorded = _recorded(store, name, key, terms, now)
    if recorded is not None:
        return recorded
    # A signer may take its time, and nobody waits for it meanwhile.
    chain = _signed(authority, settings, request, name, terms, now)
    with authority.opened() as store, store.transaction():
        recorded = _recorded(store, name, key, terms, now)
        if recorded is not None:
            return recorded
        before = store.holder_of_name(name, terms.role)
        if before is not None:
            store.end(before, "replaced", now=now)
        identity = store.add_identity(
            name,
            terms.role,
            services=terms.services,
            lifetime=terms.lifetime,
            now=now,
            dns=terms.dns,
            uris=terms.uris,
        )
        made = store.add_certificate(identity, chain, services=terms.services, issuer=authority.issuer_of(chain[0]))
        authority.tidy(store, now)
        return made


def _recorded(store: Store, name: str, key: csr.PublicKey, terms: Terms, now: datetime) -> Issued | None:
    """The certificate that the same request has got before. Raises ``CertificateError`` where the name is taken."""
    holders = store.select("i.name = ? AND i.role = ? AND i.ended IS NULL", name, terms.role.value)
    live = [item for item in holders if item.is_live(now)]
    if not live:
        return None
    last = live[-1]
    if last.chain and (last.key, last.services) == (keys.key_hash(key), terms.services):
        return last
    raise CertificateError(
        f"the name {name!r} is taken; give another with --name, or end that identity: intermediate-server revoke {name}"
    )


def _signed(
    authority: Authority,
    settings: Settings,
    request: x509.CertificateSigningRequest,
    name: str,
    terms: Terms,
    now: datetime,
) -> list[x509.Certificate]:
    if settings.join_signer:
        trusted = settings.ca_cert or authority.certificate_path
        wanted = Wanted(name, terms.role, terms.services, terms.dns, terms.uris, terms.lifetime)
        return Signer(settings.join_signer, keys.load_certificates(trusted)).sign(request, wanted, now=now)
    certificate = authority.sign(
        request.public_key(),
        name=name,
        role=terms.role,
        services=terms.services,
        lifetime=terms.lifetime,
        dns=terms.dns,
        uris=terms.uris,
        now=now,
    )
    return [certificate]


def _der(data: bytes) -> bytes:
    """The bytes of a request that may be PEM."""
    section = next(pem.select(pem.read(data, "signing request"), _REQUEST), None)
    return data if section is None else section.der("signing request")


def _common_name(request: x509.CertificateSigningRequest) -> str:
    names = request.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""
