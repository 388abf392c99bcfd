"""The certificate of a profile renews itself.

At half of its life the relay is asked for the next one, by the ALPN that joined. The profile is written first, then a
connection with it takes the old one's place. A certificate that has expired renews before it connects.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import structlog

from intermediate_server.client import profile as profiles
from intermediate_server.client.backoff import Backoff
from intermediate_server.client.engine import ClientEngine
from intermediate_server.client.join import CLOCK_OFF, GONE, JoinRefused, ask, signing_request
from intermediate_server.client.options import ConnectOptions
from intermediate_server.client.profile import Draft, Profile
from intermediate_server.client.profile_text import ProfileError
from intermediate_server.client.reasons import is_for_expiry
from intermediate_server.client.relay import Relay
from intermediate_server.client.state import State
from intermediate_server.errors import CertificateError, ConnectError, IntermediateServerError
from intermediate_server.join.messages import Issued, Refused, Renew
from intermediate_server.pki import keys

LOOK = 30.0
"""Longest time in seconds between two looks at the clock: a clock may be set, and a machine may sleep."""
JITTER = 0.1
"""Part of the life by which renewals are spread, before and after its half."""
FIRST_PAUSE, LONGEST_PAUSE = timedelta(minutes=1), timedelta(hours=1)
"""After a failure; the pauses double. Short lives have shorter ones."""
FIRST_LATE, LONGEST_LATE = 1.0, 60.0
"""Seconds of the same once the certificate has expired, since nothing works until then."""

_log = structlog.get_logger()


class RenewalRefused(IntermediateServerError):
    """The relay will not renew the certificate, which has expired: nothing will come of going on."""


@dataclass(frozen=True, slots=True)
class Life:
    """The life of a certificate; times are aware UTC."""

    renew_after: datetime
    """Its half, as the relay has named it."""
    end: datetime

    @classmethod
    def of(cls, profile: Profile) -> Life:
        return cls(profile.renew_after, profile.leaf.not_valid_after_utc)

    @property
    def length(self) -> timedelta:
        """The whole life, of which the second half is known."""
        return 2 * max(self.end - self.renew_after, timedelta(seconds=1))

    def due(self, spread: float) -> datetime:
        """When to ask for the next one; ``spread`` is -1 to 1."""
        return self.renew_after + JITTER * spread * self.length

    @property
    def warn_at(self) -> datetime:
        """Three quarters of it, from when on people are to hear of a failure."""
        return self.end - self.length / 4

    def pauses(self, now: datetime) -> tuple[float, float]:
        """The first and the longest pause after a failure, in seconds."""
        if now >= self.end:
            return FIRST_LATE, LONGEST_LATE
        first, most = min(FIRST_PAUSE, self.length / 20), min(LONGEST_PAUSE, self.length / 10)
        return first.total_seconds(), most.total_seconds()


class Renewal:
    """Renews the certificate of a relay's profile; without a profile it does nothing."""

    def __init__(
        self,
        engine: ClientEngine,
        relay: Relay,
        *,
        rotate_key: bool = False,
        clock: Callable[[], datetime] = keys.utc_now,
        spread: Callable[[], float] = lambda: random.uniform(-1, 1),  # noqa: S311  no secret
    ) -> None:
        self._engine = engine
        self._path = None if relay.profile is None else Path(str(relay.profile))
        self._readable = relay.readable_keys
        self._options = ConnectOptions(profile=relay.profile, readable_keys=relay.readable_keys)
        self._rotate_key = rotate_key
        self._clock = clock
        self._spread = spread
        self._life: Life | None = None
        self._due: datetime | None = None
        self._error = ""
        self._renewed = asyncio.Event()
        self._used: Profile | None = None
        """The profile of the connections so far."""

    def report(self) -> dict[str, Any]:
        """The part of the status: when the next renewal is due, the last failure, and from when on it matters."""
        if self._life is None or self._due is None:
            return {}
        data: dict[str, Any] = {"certificate_renews": self._due.isoformat(timespec="seconds")}
        if self._error:
            data["renewal_error"] = self._error
        if self._clock() >= self._life.warn_at:
            data["certificate_warning"] = self._warning(self._life)
        return data

    async def ready(self) -> None:
        """Wait while the certificate has expired: it is renewed before it is used."""
        while self._path is not None:
            renewed = self._renewed
            if not await self._expired(self._path):
                return
            await renewed.wait()

    async def run(self, switch: Callable[[], None], state: State) -> None:
        """Renew in time until cancelled, and call ``switch`` for each new profile. Raises ``RenewalRefused``.

        ``state`` tells when the relay holds the certificate for expired: one of the two clocks is off then.
        """
        if self._path is None:
            await asyncio.get_running_loop().create_future()
            return
        while True:
            try:
                profile = await self._load(self._path)
            except ProfileError as error:
                if self._error != str(error):
                    self._error = str(error)
                    _log.warning("The profile cannot be read; its certificate is not renewed", reason=self._error)
                await asyncio.sleep(LOOK)
                continue
            if self._used not in (None, profile):
                self._error = ""
                self._renewed.set()
                self._renewed = asyncio.Event()
                switch()
            self._used, self._life = profile, Life.of(profile)
            self._due = self._life.due(self._spread())
            await self._until(self._due, profile, state)
            await self._renew(self._path, profile, self._life)

    async def _renew(self, path: Path, used: Profile, life: Life) -> None:
        """Ask until the profile is another one."""
        pauses: Backoff | None = None
        late = False
        while True:
            try:
                if await self._load(path) != used:
                    return
                renewed = await self._next(used)
                await asyncio.to_thread(_replace, path, used, renewed)
            except JoinRefused as error:
                self._failed(error, life)
                if error.cause in GONE:
                    await self._until(life.end, used)
                    if self._clock() < life.end:
                        return
                    raise RenewalRefused(
                        f"our certificate has expired, and the relay does not renew it: {error}"
                    ) from None
            except (ConnectError, CertificateError) as error:
                self._failed(error, life)
            else:
                until = f"{renewed.leaf.not_valid_after_utc:%Y-%m-%d %H:%M:%S}"
                _log.info("Certificate renewed", until=until, profile=str(path))
                return
            now = self._clock()
            if pauses is None or late != (now >= life.end):
                first, most = life.pauses(now)
                pauses, late = Backoff(first=first, most=most), now >= life.end
            await self._until(now + timedelta(seconds=pauses.delay()), used)

    async def _next(self, profile: Profile) -> Profile:
        """The profile with its next certificate. Raises ``JoinRefused``, ``ConnectError`` and ``ProfileError``."""
        key_pem = keys.key_pem(keys.new_key()) if self._rotate_key else profile.key_pem
        request = await asyncio.to_thread(signing_request, Draft(key_pem))
        answer = await ask(self._engine, self._options, Renew(request))
        if isinstance(answer, Refused):
            raise JoinRefused(answer)
        if not isinstance(answer, Issued) or answer.role is not profile.role:
            raise ConnectError("the relay has answered another question", cause="bad_answer")
        off = (self._clock() - answer.server_time).total_seconds()
        if abs(off) > CLOCK_OFF:
            _log.warning("This host's clock differs from the relay's: set it", seconds=round(off))
        return profile.with_issued(answer, key_pem=key_pem)

    def _failed(self, error: Exception, life: Life) -> None:
        self._error = str(error)
        if self._clock() >= life.warn_at:
            _log.warning(self._warning(life))
        else:
            _log.info("Certificate not renewed yet; trying again", reason=self._error)

    def _warning(self, life: Life) -> str:
        verb = "ended" if self._clock() >= life.end else "ends"
        reason = f": {self._error}" if self._error else " yet"
        return f"Our certificate {verb} at {life.end:%Y-%m-%d %H:%M} UTC and is not renewed{reason}"

    async def _until(self, moment: datetime, profile: Profile, state: State | None = None) -> None:
        """Wait until a moment, until the profile on the disk is another one, or the relay says that it has expired."""
        while (left := (moment - self._clock()).total_seconds()) > 0:
            await asyncio.sleep(min(left, LOOK))
            if state is not None and state.ended is not None and is_for_expiry(state.ended):
                return
            if self._path is not None and left > LOOK:
                try:
                    if await self._load(self._path) != profile:
                        return
                except ProfileError:
                    continue

    async def _expired(self, path: Path) -> bool:
        try:
            return self._clock() >= (await self._load(path)).leaf.not_valid_after_utc
        except ProfileError:
            return False  # dialling says what is wrong with it

    async def _load(self, path: Path) -> Profile:
        return await asyncio.to_thread(Profile.load, path, readable=self._readable)


def _replace(path: Path, before: Profile, after: Profile) -> None:
    """Write a profile, unless another one is there by now. Raises ``ProfileError``."""
    with profiles.hold(path):
        if Profile.load(path, readable=True) != before:
            raise ProfileError(f"{path} has changed meanwhile")
        after.save(path)
