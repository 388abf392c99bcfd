"""Renewal of a profile's certificate: when, what then, and what if not; time is the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from structlog.testing import capture_logs
from tests.unit.profiles import TOKEN, authority
from tests.unit.sessions_rig import MovedTime, moved_time

from intermediate_server.client import profile as profiles
from intermediate_server.client.connection import Closed
from intermediate_server.client.profile import Draft, Profile
from intermediate_server.client.profile_text import ProfileError
from intermediate_server.client.relay import Relay
from intermediate_server.client.renewal import FIRST_PAUSE, LONGEST_PAUSE, Life, Renewal, RenewalRefused
from intermediate_server.client.state import State
from intermediate_server.client.tasks import background
from intermediate_server.engine import Totals
from intermediate_server.errors import ConnectError
from intermediate_server.join.messages import Answer, Issued, Refused, Renew, encode, parse_request
from intermediate_server.pki import keys

WEEK = timedelta(days=7)


class Rig:
    """A profile, its renewal, and a relay that answers as the test wants it."""

    def __init__(self, path: Path, clocks: MovedTime, **options: Any) -> None:
        self.path = path
        self.clocks = clocks
        self.asked: list[datetime] = []
        self.switched: list[Profile] = []
        self.state = State()
        self.reply: Callable[[Renew], Answer] = self.issue
        begun = profiles.begin(path, TOKEN)
        assert isinstance(begun, Draft)
        self.first = profiles.finish(path, begun, authority().issue_for(begun))
        engine: Any = self
        self.renewal = Renewal(
            engine, Relay(server="relay", profile=path), clock=clocks.now, **{"spread": lambda: 0.0} | options
        )

    @property
    def profile(self) -> Profile:
        return Profile.load(self.path)

    async def ask(self, _: object, data: bytes) -> bytes:
        """As of a client engine."""
        self.asked.append(self.clocks.now())
        request = parse_request(data)
        assert isinstance(request, Renew)
        return encode(self.reply(request))

    def issue(self, request: Renew) -> Answer:
        public_key = x509.load_der_x509_csr(request.csr).public_key()
        return authority().issue(public_key, late=timedelta(seconds=-self.clocks.skew))

    def switch(self) -> None:
        self.switched.append(self.profile)

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Wait for what other tasks and threads do."""
        async with asyncio.timeout(10):
            while not predicate():  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def until_asked(self, times: int) -> None:
        await self.until(lambda: len(self.asked) >= times)

    async def settle(self) -> None:
        """Let whatever is due now be done, threads included."""
        for _ in range(10):
            await asyncio.sleep(0)
            await asyncio.to_thread(int)

    async def later(self, time: timedelta, *, steps: int = 1) -> None:
        for _ in range(steps):
            self.clocks.skew += (time / steps).total_seconds()
            await self.settle()


@asynccontextmanager
async def running(path: Path, **options: Any) -> AsyncIterator[Rig]:
    with moved_time() as clocks:
        rig = Rig(path, clocks, **options)
        async with background(rig.renewal.run(rig.switch, rig.state)):
            await rig.until(lambda: bool(rig.renewal.report()))
            yield rig


def test_a_renewal_is_due_around_the_half_of_the_life() -> None:
    now = keys.utc_now()
    life = Life(renew_after=now + WEEK / 2, end=now + WEEK)
    assert life.length == WEEK
    assert life.due(0) == now + WEEK / 2
    assert life.due(-1) == now + WEEK * 0.4
    assert life.due(1) == now + WEEK * 0.6
    assert life.warn_at == now + WEEK * 0.75
    assert life.pauses(now) == (FIRST_PAUSE.total_seconds(), LONGEST_PAUSE.total_seconds()) == (60, 3600)
    assert life.pauses(life.end) == (1, 60)
    short = Life(renew_after=now + timedelta(seconds=30), end=now + timedelta(seconds=60))
    assert short.pauses(now) == (3, 6)


async def test_the_next_certificate_is_asked_for_at_half_life_and_switched_to(tmp_path: Path) -> None:
    async with running(tmp_path / "connector.ztna") as rig:
        due = rig.first.renew_after
        assert rig.renewal.report() == {"certificate_renews": due.isoformat(timespec="seconds")}
        await rig.later(due - rig.clocks.now() - timedelta(seconds=10), steps=5)
        assert rig.asked == []
        await rig.later(timedelta(seconds=11))
        await rig.until(lambda: len(rig.switched) == 1)
        (renewed,) = rig.switched
        assert renewed == rig.profile != rig.first, "written before the switch"
        assert renewed.key_pem == rig.first.key_pem
        assert renewed.leaf.not_valid_after_utc > rig.first.leaf.not_valid_after_utc
        # And so on.
        await rig.later(WEEK / 2 + timedelta(minutes=1))
        await rig.until(lambda: len(rig.switched) == 2)
        assert len(rig.asked) == 2


async def test_a_new_ca_is_taken_into_the_profile(tmp_path: Path) -> None:
    key = keys.new_key()
    now = keys.utc_now()
    other = keys.certificate_pem(keys.sign_itself("other", key, not_before=now, not_after=now + 9 * WEEK))
    async with running(tmp_path / "connector.ztna") as rig:

        def both(request: Renew) -> Answer:
            issued = rig.issue(request)
            assert isinstance(issued, Issued)
            return replace(issued, ca=issued.ca + other.decode())

        rig.reply = both
        await rig.later(WEEK / 2 + timedelta(minutes=1))
        await rig.until(lambda: len(rig.switched) == 1)
        assert len(x509.load_pem_x509_certificates(rig.profile.ca_pem)) == 2


async def test_a_key_is_rotated_where_that_is_asked_for(tmp_path: Path) -> None:
    async with running(tmp_path / "connector.ztna", rotate_key=True) as rig:
        await rig.later(WEEK / 2 + timedelta(minutes=1))
        await rig.until(lambda: len(rig.switched) == 1)
        renewed = rig.profile
        assert renewed.key_pem != rig.first.key_pem
        keys.check_pair(renewed.leaf, keys.parse_key(renewed.key_pem, ""), "")


async def test_a_failure_is_tried_again_and_told_of_once_it_matters(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with running(tmp_path / "connector.ztna") as rig:

            def fail(request: Renew) -> Answer:
                raise ConnectError("the relay is away")

            rig.reply = fail
            await rig.later(WEEK / 2 + timedelta(seconds=1))
            await rig.until(lambda: len(rig.asked) == 1)
            for number in range(2, 10):  # at least once an hour
                await rig.later(timedelta(hours=1), steps=2)
                await rig.until_asked(number)
            pauses = [later - before for before, later in zip(rig.asked, rig.asked[1:], strict=False)]
            assert min(pauses) >= FIRST_PAUSE / 2
            assert rig.renewal.report()["renewal_error"] == "the relay is away"
            assert "certificate_warning" not in rig.renewal.report()
            assert not [line for line in logs if line["log_level"] == "warning"]
            await rig.later(WEEK / 4, steps=4)
            assert rig.renewal.report()["certificate_warning"].endswith("and is not renewed: the relay is away")
            await rig.until(lambda: any(line["log_level"] == "warning" for line in logs))
            rig.reply = lambda _: Refused("busy", "the relay is busy; ask again later", again=True)
            await rig.later(timedelta(hours=2), steps=4)
            assert "busy" in rig.renewal.report()["renewal_error"]
            rig.reply = rig.issue
            await rig.later(timedelta(hours=2), steps=4)
            await rig.until(lambda: len(rig.switched) == 1)
            assert list(rig.renewal.report()) == ["certificate_renews"]
    assert {line["event"] for line in logs if line["log_level"] == "info"} >= {"Certificate renewed"}


async def test_what_cannot_be_kept_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path / "connector.ztna") as rig:

        def full(_: Profile, path: Path) -> None:
            raise ProfileError(f"{path}: No space left on device")

        monkeypatch.setattr(Profile, "save", full)
        await rig.later(WEEK / 2 + timedelta(seconds=1))
        await rig.until(lambda: "No space left" in rig.renewal.report().get("renewal_error", ""))
        assert rig.profile == rig.first
        assert rig.switched == []
        monkeypatch.undo()
        await rig.later(timedelta(minutes=2))
        await rig.until(lambda: len(rig.switched) == 1)


async def test_an_expired_certificate_renews_before_anything_is_dialled(tmp_path: Path) -> None:
    with moved_time() as clocks:
        rig = Rig(tmp_path / "connector.ztna", clocks)
        await asyncio.wait_for(rig.renewal.ready(), 10)
        clocks.skew += (WEEK + timedelta(days=1)).total_seconds()
        fails = True

        def sometimes(request: Renew) -> Answer:
            if fails:
                raise ConnectError("no network yet")
            return rig.issue(request)

        rig.reply = sometimes
        ready = asyncio.create_task(rig.renewal.ready())
        async with background(rig.renewal.run(rig.switch, rig.state)):
            await rig.until(lambda: bool(rig.asked))
            await rig.settle()
            assert not ready.done()
            fails = False
            await rig.later(timedelta(seconds=1))
            await asyncio.wait_for(ready, 10)
            assert rig.profile.leaf.not_valid_after_utc > clocks.now()


@pytest.mark.parametrize("cause", ["past-grace", "revoked"])
async def test_a_refusal_for_good_ends_it_with_the_certificate(tmp_path: Path, cause: str) -> None:
    with moved_time() as clocks:
        rig = Rig(tmp_path / "connector.ztna", clocks)
        rig.reply = lambda _: Refused(cause, "join again with a new token", again=False)
        clocks.skew += (WEEK / 2 + timedelta(minutes=1)).total_seconds()
        running = asyncio.create_task(rig.renewal.run(rig.switch, rig.state))
        await rig.until(lambda: "renewal_error" in rig.renewal.report())
        await rig.later(WEEK / 4, steps=3)
        assert not running.done()
        assert len(rig.asked) == 1, "the answer stays the same"
        await rig.later(WEEK / 4, steps=3)
        with pytest.raises(RenewalRefused, match="has expired, and the relay does not renew it: join again"):
            await asyncio.wait_for(running, 10)


@pytest.mark.parametrize(("cause", "code"), [("application", 5), ("peer", 0x100 + 45)])
async def test_a_relay_that_holds_it_for_expired_is_asked_at_once(tmp_path: Path, cause: str, code: int) -> None:
    async with running(tmp_path / "connector.ztna") as rig:
        await rig.later(timedelta(hours=1), steps=4)
        assert rig.asked == []
        rig.state.ended = Closed(cause, code, "", Totals())
        await rig.later(timedelta(minutes=1))
        await rig.until(lambda: len(rig.switched) == 1)
        rig.state.ended = None
        await rig.later(timedelta(minutes=2), steps=4)
        assert len(rig.asked) == 1


async def test_another_profile_is_switched_to(tmp_path: Path) -> None:
    async with running(tmp_path / "connector.ztna") as rig:
        other = rig.first.with_issued(authority().issue_for(Draft(rig.first.key_pem)))
        other.save(rig.path)
        await rig.later(timedelta(minutes=2), steps=4)
        await rig.until(lambda: rig.switched == [other])
        assert rig.asked == []


async def test_without_a_profile_it_does_nothing() -> None:
    engine: Any = None
    renewal = Renewal(engine, Relay(server="relay"))
    await renewal.ready()
    assert renewal.report() == {}
