"""The policy that reads roles and services from the names in the peer's certificate.

A certificate grants by DNS names in its SAN extension: ``agent.<service>.ztna`` lets its holder be agent of the
service, ``connector.<service>.ztna`` connector for it, and ``*`` as the service means every service. Only the first and
the last label are fixed, so a service may contain dots: ``agent.db.prod.ztna`` is for ``db.prod``.

Names compare as DNS names do (RFC 4343): A-Z equal a-z, all else is exact. DNS names reach us lower-cased, so a
service id with capitals can only be granted this way; wider case folding would let one service's certificate
speak for another (``strasse`` for ``straße``).
"""

from __future__ import annotations

from datetime import datetime

from intermediate_server.policy.base import ANONYMOUS, Allow, Decision, Deny, Policy, Step
from intermediate_server.policy.patterns import fold
from intermediate_server.types import Identity, Registration, Role

SUFFIX = ".ztna"
EVERY_SERVICE = "*"


class CertificatePolicy(Policy):
    """Grants the roles and services that the certificate names."""

    decides_by_source = False

    def __init__(self, *, anonymous: bool, allow_unnamed: bool = False) -> None:
        """``anonymous`` lets peers without a certificate register anything.

        ``allow_unnamed`` grants everything to a certificate that has no name under ``.ztna``, as servers before
        this one did; one whose ``.ztna`` names are misspelt is still granted nothing. Both are for migrations.
        """
        self._anonymous = anonymous
        self._allow_unnamed = allow_unnamed

    async def authorize(self, registration: Registration) -> Decision:
        return self.decide(registration)

    def explain(self, registration: Registration, at: datetime) -> tuple[Decision, tuple[Step, ...]]:
        return self.decide(registration), _steps(registration.peer.identity, registration)

    def anonymous_warning(self) -> str | None:
        return (
            f"{ANONYMOUS} is anonymous and may register any service, as its agent and as its connector, which takes"
            " over what is sent to the service; write rules"
        )

    def decide(self, registration: Registration) -> Decision:
        identity = registration.peer.identity
        if identity is None:
            if self._anonymous:
                return Allow("anonymous")
            return Deny("the peer has no client certificate and anonymous peers are not allowed", "anonymous")
        name = granting_name(identity, registration.role, registration.service)
        if name is not None:
            return Allow(f"certificate name {name}")
        if not _unnamed(identity):
            return Deny(
                f"the certificate does not name the {registration.role.value} role for this service",
                "certificate names",
            )
        if self._allow_unnamed:
            return Allow("unnamed certificate")
        return Deny(
            "the certificate has no DNS name of the form agent.<service>.ztna or connector.<service>.ztna",
            "unnamed certificate",
        )


def granting_name(identity: Identity, role: Role, service: str) -> str | None:
    """The first name of the certificate that grants the role for the service, or None."""
    wanted = fold(service)
    for name in identity.dns_names:
        grant = parse_name(name)
        if grant is not None and grant[0] is role and grant[1] in (EVERY_SERVICE, wanted):
            return name
    return None


def parse_name(name: str) -> tuple[Role, str] | None:
    """The role and service that a DNS name grants, the service in lower case or ``*``; None for any other name.

    A name with a NUL or another unprintable character grants nothing, since programs read such names differently.
    """
    if not name.isprintable():
        return None
    first, _, rest = fold(name).partition(".")
    service = rest.removesuffix(SUFFIX)
    if service in ("", rest):
        return None
    match first:
        case Role.AGENT.value:
            return Role.AGENT, service
        case Role.CONNECTOR.value:
            return Role.CONNECTOR, service
        case _:
            return None


def _unnamed(identity: Identity) -> bool:
    """Whether the certificate has no name under ``.ztna``, not even a misspelt one."""
    return all(name.isprintable() and not f".{fold(name)}".endswith(SUFFIX) for name in identity.dns_names)


def _steps(identity: Identity | None, registration: Registration) -> tuple[Step, ...]:
    """One step for each DNS name, up to the one that grants."""
    if identity is None:
        return ()
    granted = granting_name(identity, registration.role, registration.service)
    steps: list[Step] = []
    for name in identity.dns_names:
        grant = parse_name(name)
        if grant is None:
            why: str | None = "it is not of the form agent.<service>.ztna or connector.<service>.ztna"
        elif grant[0] is not registration.role:
            why = f"it is for the {grant[0].value} role"
        elif name != granted:
            why = "it is for another service"
        else:
            why = None
        steps.append(Step(f"name {name}", why))
        if why is None:
            break
    return tuple(steps)
