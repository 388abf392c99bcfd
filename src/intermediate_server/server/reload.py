"""Reload: reads and checks everything before it replaces anything, and ends revoked registrations at once.

A policy may take its time over live registrations. A reload does not include that, so the next one, which may revoke a
peer, need not wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from dataclasses import dataclass, replace

import structlog

from intermediate_server.access.admission import Admission
from intermediate_server.access.loading import POLICY_SETTINGS, load_admission
from intermediate_server.admin import Status
from intermediate_server.config import Settings
from intermediate_server.engine import EngineError
from intermediate_server.errors import IntermediateServerError
from intermediate_server.policy import Policy, make_policy
from intermediate_server.policy.loader import changed_source
from intermediate_server.server.listener import Trust, load_trust

LIVE_SETTINGS = POLICY_SETTINGS | {
    "cert",
    "key",
    "ca_cert",
    "crl",
    "deny_list",
    "joining",
    "public_address",
    "certificate_lifetime",
    "renew_grace",
    "join_signer",
    "registration_timeout",
    "drain_grace",
    "audit_log",
    "direct",
    "private_candidates",
    "max_signaling_sessions",
}
"""The settings that a reload applies; others are read at the start only."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A whole new configuration, checked."""

    settings: Settings
    trust: Trust
    admission: Admission
    policy: Policy | None
    """None to keep the one in force."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a reload."""

    error: str | None = None
    """The error because of which nothing has changed."""
    changed: tuple[str, ...] = ()
    """Settings that changed and are in force."""
    needs_restart: tuple[str, ...] = ()
    """Settings that changed and are not in force."""
    revoked: int = 0
    """Registrations that ended, known once the policy has been asked about all."""
    closed: int = 0
    """Connections closed because of their certificate."""
    reauthorization: asyncio.Future[int] | None = None
    """Done when the policy has been asked about every registration; None when nothing has changed."""


def load(settings: Settings, *, current: Settings | None = None, admission: Admission | None = None) -> Loaded:
    """Read and check all files of the settings; changes nothing in a running server.

    ``current`` and ``admission`` are in force. Raises ``ConfigError``, ``CertificateError`` and ``EngineError``.
    """
    trust = load_trust(settings)
    # A callout is made anew: its CA may have changed, and its cache holds old answers.
    other = (
        current is None
        or settings.callout is not None
        or any(getattr(settings, name) != getattr(current, name) for name in POLICY_SETTINGS)
    )
    return Loaded(
        settings=settings,
        trust=trust,
        admission=load_admission(settings, trust.ca_pem, current=admission),
        policy=make_policy(settings) if other else None,
    )


def differences(old: Settings, new: Settings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The changed settings: the ones a reload applies, and the ones that need a restart."""
    names = [name for name in Settings.model_fields if getattr(old, name) != getattr(new, name)]
    live = tuple(name for name in names if name in LIVE_SETTINGS)
    return live, tuple(name for name in names if name not in LIVE_SETTINGS)


class Reloader:
    """Holds the settings in force and replaces them; one reload at a time."""

    def __init__(
        self,
        *,
        settings: Settings,
        admission: Admission,
        read: Callable[[], Settings],
        status: Status,
        apply: Callable[[Loaded], tuple[asyncio.Future[int], int]],
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """``read`` gives the settings as they are written now, on another thread.

        ``apply`` takes a new configuration over; it returns the re-authorization, whose result is how many
        registrations ended, and how many connections were closed. Each reload is made within ``around()``.
        """
        self.settings = settings
        self._admission = admission
        self._read = read
        self._status = status
        self._apply = apply
        self._around = around
        self._one = asyncio.Lock()

    async def reload(self, why: str) -> Outcome:
        """As :meth:`start`, and wait until the policy has been asked about every registration."""
        outcome = await self.start(why)
        if outcome.reauthorization is None:
            return outcome
        # Others may be waiting for the same re-authorization.
        return replace(outcome, revoked=await asyncio.shield(outcome.reauthorization))

    async def start(self, why: str) -> Outcome:
        """Read, check and apply. Never raises for a bad file; then nothing has changed."""
        async with self._one, AsyncExitStack() as stack:
            stack.enter_context(self._around())
            try:
                # A thread reads the files, which may be slow, so that registrations do not wait.
                loaded, live, restart = await asyncio.to_thread(self._load)
                reauthorization, closed = self._apply(loaded)
            except (IntermediateServerError, EngineError, OSError) as error:
                # A file's name may be no UTF-8, and HTTP could not carry it.
                text = str(error).encode(errors="backslashreplace").decode()
                self._status.reload_error = text
                self._status.reload_failures += 1
                _log.error("Reload failed; everything stays as it is", why=why, reason=text)
                return Outcome(error=text)
            except Exception as error:
                # A defect, of a policy's module perhaps; the relay goes on.
                text = f"{type(error).__name__} while reloading; the log has the traceback"
                self._status.reload_error = text
                self._status.reload_failures += 1
                _log.error("Reload failed half-way", why=why, exc_info=error)
                return Outcome(error=text)
            self.settings, self._admission = loaded.settings, loaded.admission
            self._status.reload_error = None
            self._status.reloads += 1
            _log.info(
                "Reloaded",
                why=why,
                certificate=loaded.trust.origin,
                expires=loaded.trust.not_after.isoformat(),
                changed=",".join(live),
                revoked=len(loaded.admission.revocations.serials),
                denied=len(loaded.admission.revocations.fingerprints),
                closed=closed,
            )
            reauthorization.add_done_callback(_reauthorized)
            if restart:
                _log.warning("Changed settings that need a restart", settings=",".join(restart))
            if (policy := self.settings.policy) is not None and (source := changed_source(policy)) is not None:
                _log.warning(
                    f"{source} has changed, and its old code goes on deciding: restart the server to use the new"
                )
                restart = (*restart, "policy")
            return Outcome(changed=live, needs_restart=restart, closed=closed, reauthorization=reauthorization)

    def _load(self) -> tuple[Loaded, tuple[str, ...], tuple[str, ...]]:
        written = self._read()
        live, restart = differences(self.settings, written)
        # A setting that needs a restart keeps its old value in everything read here, and is named again next time.
        settings = self.settings.model_copy(update={name: getattr(written, name) for name in live})
        return load(settings, current=self.settings, admission=self._admission), live, restart


def _reauthorized(reauthorization: asyncio.Future[int]) -> None:
    _log.info("Registrations re-authorized", revoked=reauthorization.result())
