"""Profiles, and the answers they are made of, for tests."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from intermediate_server.client.profile import Draft
from intermediate_server.join.messages import Issued
from intermediate_server.pki import keys
from intermediate_server.types import Role

TOKEN = bytes(range(6))


@dataclass(frozen=True)
class Authority:
    """A CA that issues what joins ask for."""

    key: keys.PrivateKey
    certificate: x509.Certificate

    def issue(
        self,
        public_key: CertificatePublicKeyTypes,
        *,
        name: str = "office",
        role: Role = Role.CONNECTOR,
        services: tuple[str, ...] = ("web",),
        servers: tuple[str, ...] = ("relay.example",),
        life: timedelta = timedelta(days=7),
        late: timedelta = timedelta(0),
    ) -> Issued:
        """The relay's answer; its clock is ``late``."""
        now = keys.utc_now() - late
        certificate = keys.sign(
            subject=keys.common_name(name),
            public_key=public_key,
            authority=self.certificate,
            authority_key=self.key,
            names=(),
            usage=keys.CLIENT_AUTH,
            not_before=now - timedelta(days=1),
            not_after=now + life,
        )
        return Issued(
            chain=keys.certificate_pem(certificate).decode(),
            ca=keys.certificate_pem(self.certificate).decode(),
            servers=servers,
            server_name="ztna-server",
            name=name,
            role=role,
            services=services,
            renew_after=now + life / 2,
            server_time=now,
        )

    def issue_for(self, draft: Draft, **kwargs: object) -> Issued:
        """The answer for a draft's key."""
        return self.issue(keys.parse_key(draft.key_pem, "").public_key(), **kwargs)  # type: ignore[arg-type]


@functools.cache
def authority() -> Authority:
    """The CA of all tests."""
    key = keys.new_key()
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    return Authority(key, keys.sign_itself("ca", key, not_before=begin, not_after=datetime(2060, 1, 1, tzinfo=UTC)))


def draft(token: bytes | None = TOKEN) -> Draft:
    """A join that has begun."""
    return Draft(keys.key_pem(keys.new_key()), token)
