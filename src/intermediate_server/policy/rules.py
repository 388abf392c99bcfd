"""Access rules: they say which peers may be agent of, or connector for, which services.

The rules are read in order and the first match decides; without a match the registration is denied. A rule matches when
everything it states is true, and a list is true when one of its entries is::

    [[rules]]
    name = "staff"
    dns = ["*.staff.example.com"]              # DNS names of the certificate; "**." takes several labels
    spiffe = ["spiffe://example.org/user/*"]   # its SPIFFE id; a final "/**" takes all below
    fingerprint = ["<64 hex digits>"]          # SHA-256 of the certificate
    network = ["198.51.100.0/24"]              # where its packets come from
    agent = ["web", "db-*"]                    # may be agent of these
    connector = []                             # and connector for these
    effect = "allow"                           # or "deny"
    not-before = 2026-01-01T00:00:00Z          # the rule is in force from
    not-after = 2026-12-31T00:00:00Z           # and until
    limits = { bytes-per-second = 1_000_000, packets-per-second = 1_000, connections = 4, bytes-per-month = 1_000 }

A rule that states nothing about the certificate must say whom it is for: ``peers = "certified"``, ``"anonymous"`` or
``"anyone"``. With a default, a rule for a network would grant to anonymous peers, or a rule that denies would spare
them. ``services = "certificate"`` in place of ``agent`` and ``connector`` leaves the choice to the names
``agent.<service>.ztna`` and ``connector.<service>.ztna`` of the certificate.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network

from intermediate_server.policy.base import ANONYMOUS, UNLIMITED, Allow, Decision, Deny, Limits, Policy, Step
from intermediate_server.policy.certificate import granting_name
from intermediate_server.policy.patterns import fold, glob, match_dns, match_spiffe
from intermediate_server.types import Identity, Peer, Registration, Role


class Peers(enum.Enum):
    """The peers that a rule is for, by identity."""

    CERTIFIED = "certified"
    """Peers that proved an identity."""
    ANONYMOUS = "anonymous"
    """Peers without a certificate."""
    ANYONE = "anyone"


class Effect(enum.Enum):
    """The answer of a rule that matches."""

    ALLOW = "allow"
    DENY = "deny"


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """The peers a rule is for; an empty tuple states nothing."""

    peers: Peers
    dns: tuple[str, ...] = ()
    spiffe: tuple[str, ...] = ()
    fingerprints: tuple[str, ...] = ()
    """Lower-case hex."""
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    def mismatch(self, peer: Peer, *, any_uri: bool = False) -> str | None:
        """The reason for which the peer does not match, or None.

        An X509-SVID has exactly one URI (X509-SVID section 2): of several, none counts, since the identity would be
        ambiguous. ``any_uri`` lets each count, for rules that deny.
        """
        if peer.identity is None:
            if self.peers is Peers.CERTIFIED:
                return "the peer has no certificate"
        elif self.peers is Peers.ANONYMOUS:
            return "the peer has a certificate"
        if self.networks and not any(peer.address.host in network for network in self.networks):
            return "the source address is in none of its networks"
        return self._identity_mismatch(peer.identity, any_uri)

    def _identity_mismatch(self, identity: Identity | None, any_uri: bool) -> str | None:
        if not (self.dns or self.spiffe or self.fingerprints):
            return None
        if identity is None:
            return "the peer has no certificate"
        if self.fingerprints and identity.fingerprint not in self.fingerprints:
            return "the certificate is none of its fingerprints"
        if self.dns and not any(match_dns(pattern, name) for pattern in self.dns for name in identity.dns_names):
            return "no DNS name of the certificate matches"
        uris = identity.uris if any_uri or len(identity.uris) == 1 else ()
        if self.spiffe and not any(match_spiffe(pattern, uri) for pattern in self.spiffe for uri in uris):
            return "the SPIFFE id of the certificate does not match"
        return None


_NO_AGENT = "it names no such service for the agent role"
_NO_CONNECTOR = "it names no such service for the connector role"


@dataclass(frozen=True, slots=True, kw_only=True)
class May:
    """The roles and services of a rule."""

    agent: tuple[str, ...] = ()
    connector: tuple[str, ...] = ()
    """Patterns as :func:`fold` leaves them."""
    by_certificate: bool = False
    """Whether the names in the certificate say which roles and services; the tuples are empty then."""

    def mismatch(self, registration: Registration, service: str) -> str | None:
        """The reason for which the registration does not match, or None.

        ``service`` is its service as :func:`fold` leaves it, and so are the patterns: a registration passes many rules.
        """
        if self.by_certificate:
            identity = registration.peer.identity
            if identity is not None and granting_name(identity, registration.role, service) is not None:
                return None
            return "the names in the certificate do not grant this role and service"
        as_agent = registration.role is Role.AGENT
        for pattern in self.agent if as_agent else self.connector:
            if glob(pattern, service):
                return None
        return _NO_AGENT if as_agent else _NO_CONNECTOR


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule."""

    name: str
    effect: Effect
    who: Who
    may: May
    limits: Limits = UNLIMITED
    direct: bool = True
    """Whether those it allows may be introduced for a direct path."""
    not_before: datetime | None = None
    not_after: datetime | None = None
    """Bounds of its validity, aware; the last moment is outside."""

    def mismatch(self, registration: Registration, service: str, now: datetime) -> str | None:
        """The reason for which the rule does not decide about the registration, or None; ``service`` is folded."""
        if self.not_before is not None and now < self.not_before:
            return "it is not in force yet"
        if self.not_after is not None and now >= self.not_after:
            return "it is no longer in force"
        return self.may.mismatch(registration, service) or self.who.mismatch(
            registration.peer, any_uri=self.effect is Effect.DENY
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision and the steps to it."""

    decision: Decision
    rule: Rule | None
    """The rule that decided, None when none matched."""
    steps: tuple[Step, ...] = ()
    """Every rule that was tried, in order."""


NO_RULE = Deny("no rule matches", "default")


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules, in their order."""

    rules: tuple[Rule, ...]
    _moments: tuple[tuple[int, datetime], ...] = field(init=False, repr=False, compare=False)
    """The moments at which rules come into force and leave it, each with the index of its rule."""

    def __post_init__(self) -> None:
        """Collect the moments once; most rules have none."""
        windows = enumerate((rule.not_before, rule.not_after) for rule in self.rules)
        moments = tuple((place, moment) for place, both in windows for moment in both if moment is not None)
        object.__setattr__(self, "_moments", moments)

    def decide(self, registration: Registration, now: datetime) -> Verdict:
        """The verdict without its steps, as registrations need it. ``now`` is aware."""
        service = fold(registration.service)
        for number, rule in enumerate(self.rules):
            if rule.mismatch(registration, service, now) is None:
                return Verdict(self._decision(number, now), rule)
        return Verdict(NO_RULE, None)

    def explain(self, registration: Registration, now: datetime) -> Verdict:
        """The same verdict with every step to it, for people."""
        steps: list[Step] = []
        service = fold(registration.service)
        for number, rule in enumerate(self.rules):
            steps.append(Step(rule.name, rule.mismatch(registration, service, now)))
            if steps[-1].mismatch is None:
                return Verdict(self._decision(number, now), rule, tuple(steps))
        return Verdict(NO_RULE, None, tuple(steps))

    def may_allow_anonymous(self) -> bool:
        """Whether some rule lets peers without a certificate register anything."""
        return any(rule.effect is Effect.ALLOW and rule.who.peers is not Peers.CERTIFIED for rule in self.rules)

    def _decision(self, number: int, now: datetime) -> Decision:
        rule = self.rules[number]
        if rule.effect is Effect.DENY:
            return Deny(f"denied by rule {rule.name!r}", rule.name)
        # Each rule up to this one may change the decision when it comes into force or leaves it.
        changes = (moment for place, moment in self._moments if place <= number and moment > now)
        return Allow(rule.name, rule.limits, min(changes, default=None), rule.direct)


class RulesPolicy(Policy):
    """The policy by the rules of the configuration file."""

    def __init__(self, rules: Rules, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.rules = rules
        self._clock = clock

    async def authorize(self, registration: Registration) -> Decision:
        return self.decide(registration)

    def decide(self, registration: Registration) -> Decision:
        return self.rules.decide(registration, self._clock()).decision

    def explain(self, registration: Registration, at: datetime) -> tuple[Decision, tuple[Step, ...]]:
        verdict = self.rules.explain(registration, at)
        return verdict.decision, verdict.steps

    def anonymous_warning(self) -> str | None:
        return f"{ANONYMOUS} may register what the rules grant it" if self.rules.may_allow_anonymous() else None
