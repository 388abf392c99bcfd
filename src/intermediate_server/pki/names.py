"""Names: of holders, and in their certificates.

The names of the wire convention, ``agent.<service>.ztna`` and ``connector.<service>.ztna``, name the roles and services
of the holder; ``*`` as service means all. Others, for rules, must not look like one of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Literal

from cryptography import x509

from intermediate_server.errors import CertificateError
from intermediate_server.types import Role

MAX_NAME = 64
"""Characters, the limit of a common name (X.520)."""
MAX_NAMES = 32
"""Further names in one certificate."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_LABEL = r"(?:(?:serial(?: number)?|sha-?256 fingerprint)[=:]\s*)?"
_NUMBER = re.compile(rf"{_LABEL}(?:0x)?([0-9a-f]+(?::[0-9a-f]+)*)", re.IGNORECASE)
_HOST = re.compile(r"(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?)+")
_SERVICE = re.compile(r"\*|[a-z0-9_]([a-z0-9._-]{0,198}[a-z0-9_])?")
_SPIFFE = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]{1,255})*")


def check_name(name: str) -> str:
    """The name of a holder, which may become a file's. Raises ``CertificateError``."""
    if _NAME.fullmatch(name) is None:
        raise CertificateError(f"{name[:64]!r} cannot be a name; use up to 64 letters, digits and . _ - @")
    return name


def name_of_host(host: str, prefix: str = "") -> str:
    """The name of a holder on a host that says what it is called: what a name cannot hold becomes ``-``."""
    plain = re.sub(r"[^A-Za-z0-9._@-]+", "-", f"{prefix}{host}"[:MAX_NAME])
    return check_name(plain.lstrip(".-_@").rstrip("-") or "device")


def check_services(services: Sequence[str]) -> tuple[str, ...]:
    """Services in lower case, each once. Raises ``CertificateError``."""
    lowered = tuple(dict.fromkeys(service.strip().lower() for service in services))
    if not lowered:
        raise CertificateError("a certificate needs at least one service; add --service NAME, or --service '*' for all")
    for service in lowered:
        if _SERVICE.fullmatch(service) is None:
            raise CertificateError(
                f"{service[:64]!r} cannot be a service of a certificate; use up to 200 letters, digits and . _ -, or *"
            )
    return lowered


def check_further(dns: Sequence[str], uris: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Further names for rules: DNS names and SPIFFE ids, each once. Raises ``CertificateError``."""
    lowered = tuple(dict.fromkeys(name.strip().lower().removesuffix(".") for name in dns))
    uris = tuple(dict.fromkeys(uri.strip() for uri in uris))
    if len(lowered) + len(uris) > MAX_NAMES:
        raise CertificateError(f"{len(lowered) + len(uris)} further names are more than the {MAX_NAMES} supported")
    for name in lowered:
        if _HOST.fullmatch(name) is None or len(name) > 253:
            raise CertificateError(f"{name[:64]!r} is not a DNS name")
        if name == "ztna" or name.endswith(".ztna"):
            raise CertificateError(f"{name[:64]!r} would grant a service; name the services instead")
    for uri in uris:
        if _SPIFFE.fullmatch(uri) is None or len(uri) > 2048:
            raise CertificateError(f"{uri[:64]!r} is not a SPIFFE id such as spiffe://example.org/laptop")
    return lowered, uris


def client_names(
    role: Role, services: Sequence[str], dns: Sequence[str] = (), uris: Sequence[str] = ()
) -> list[x509.GeneralName]:
    """The names in the certificate of an agent or a connector."""
    return [
        *(x509.DNSName(f"{role.value}.{service}.ztna") for service in services),
        *map(x509.DNSName, dns),
        *map(x509.UniformResourceIdentifier, uris),
    ]


def server_names(names: Sequence[str]) -> list[x509.GeneralName]:
    """The names in the certificate of a relay, each once. Raises ``CertificateError``."""
    found: dict[x509.GeneralName, None] = {}
    for text in names:
        try:
            found[x509.IPAddress(ip_address(text))] = None
        except ValueError:
            if _HOST.fullmatch(text) is None:
                raise CertificateError(f"{text[:64]!r} is neither a DNS name nor an address") from None
            found[x509.DNSName(text.lower().removesuffix("."))] = None
    return list(found)


def role_of(text: str) -> Role | Literal["server"]:
    """A role, or ``server``."""
    return "server" if text == "server" else Role(text)


def role_word(role: Role | Literal["server"]) -> str:
    """A role as a word."""
    return role.value if isinstance(role, Role) else role


def number_of(text: str) -> int | None:
    """The number in ``0A1B``, ``0a:1b``, ``0x0a1b``, ``serial=0A1B`` or ``sha256 Fingerprint=0A:1B``, else None."""
    match = _NUMBER.fullmatch(text.strip())
    return None if match is None else int(match[1].replace(":", ""), 16)


def fingerprint_of(text: str) -> str | None:
    """The SHA-256 fingerprint that a text is, 64 lower-case hex digits; None for anything else."""
    match = _NUMBER.fullmatch(text.strip())
    digits = "" if match is None else match[1].replace(":", "").lower()
    return digits if len(digits) == 64 else None
