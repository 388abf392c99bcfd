"""A reload: the whole new configuration is good, or nothing has changed and the reason is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from tests.unit.admin import new_status
from tests.unit.sessions_rig import moved_time

from intermediate_server.client.tasks import background
from intermediate_server.config import Settings
from intermediate_server.config.callout import CalloutSettings
from intermediate_server.errors import CertificateError, ConfigError
from intermediate_server.pki import ensure_development, keys
from intermediate_server.pki.development import RENEW_BEFORE
from intermediate_server.policy.callout import CalloutPolicy
from intermediate_server.server.own_certificate import LOOK, renew_in_time
from intermediate_server.server.reload import Loaded, Reloader, load


class Site:
    """A reloader, the settings as they are written, and what was taken over."""

    def __init__(self, state_dir: Path) -> None:
        self.written = Settings(state_dir=state_dir)
        self.fails: Exception | None = None
        self.taken: list[Loaded] = []
        self.reauthorizations_end = True
        self.status = new_status()
        self.status.reload_error = "an older one"
        self.reloader = Reloader(
            settings=self.written,
            admission=load(self.written).admission,
            read=self.read,
            status=self.status,
            apply=self.apply,
        )

    def read(self) -> Settings:
        if self.fails is not None:
            raise self.fails
        return self.written

    def apply(self, loaded: Loaded) -> tuple[asyncio.Future[int], int]:
        self.taken.append(loaded)
        reauthorization: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self.reauthorizations_end:
            reauthorization.set_result(2)
        return reauthorization, 1


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "state")


async def test_what_can_change_is_taken_over_and_the_rest_is_named(site: Site) -> None:
    site.written = site.written.model_copy(update={"registration_timeout": 3.0, "port": 1, "idle_timeout": 5.0})
    outcome = await site.reloader.reload("SIGHUP")
    assert outcome.error is None
    assert outcome.changed == ("registration_timeout",)
    assert outcome.needs_restart == ("port", "idle_timeout")
    assert (outcome.revoked, outcome.closed) == (2, 1)
    (loaded,) = site.taken
    assert (loaded.settings.registration_timeout, loaded.settings.port) == (3.0, 4433)
    assert site.reloader.settings == loaded.settings
    assert (site.status.reloads, site.status.reload_error) == (1, None)
    again = await site.reloader.reload("SIGHUP")
    assert (again.changed, again.needs_restart) == ((), ("port", "idle_timeout")), "it is mentioned until it is so"


async def test_a_renewed_certificate_is_read_again(site: Site, tmp_path: Path) -> None:
    before = load(site.written).trust
    (tmp_path / "state" / "server.pem").unlink()
    ensure_development(tmp_path / "state", names=("another.example",))
    await site.reloader.reload("SIGHUP")
    assert site.taken[0].trust.tls is not before.tls


@pytest.mark.parametrize(
    "error",
    [ConfigError("config.toml: no"), CertificateError("c.pem: no"), OSError("disk"), ValueError("a defect")],
    ids=lambda error: type(error).__name__,
)
async def test_what_cannot_be_read_changes_nothing(site: Site, error: Exception) -> None:
    before = site.reloader.settings
    site.fails = error
    outcome = await site.reloader.reload("SIGHUP")
    assert outcome.error
    assert site.status.reload_error == outcome.error
    assert (site.taken, site.reloader.settings, site.status.reloads) == ([], before, 0)
    site.fails = None
    assert (await site.reloader.reload("SIGHUP")).error is None


def damaged_key(state: Path) -> None:
    (state / "server.key").write_bytes(b"no key")


def open_key(state: Path) -> None:
    (state / "server.key").chmod(0o644)


def lost_ca(state: Path) -> None:
    (state / "ca.key").unlink()


@pytest.mark.parametrize("damage", [damaged_key, open_key, lost_ca])
async def test_bad_files_change_nothing(site: Site, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    damage(tmp_path / "state")
    outcome = await site.reloader.reload("SIGHUP")
    assert str(tmp_path / "state") in str(outcome.error)
    assert site.taken == []


async def test_a_key_is_never_part_of_the_reason(site: Site, tmp_path: Path) -> None:
    key = tmp_path / "state" / "server.key"
    spoilt = key.read_text().replace("PRIVATE KEY", "OTHER THING")
    key.write_text(spoilt)
    outcome = await site.reloader.reload("SIGHUP")
    assert spoilt.splitlines()[1] not in str(outcome.error)


async def test_a_file_name_that_is_no_utf8_can_be_told_over_http(site: Site) -> None:
    site.fails = ConfigError("\udcff.toml: not found")
    outcome = await site.reloader.reload("SIGHUP")
    assert outcome.error == "\\udcff.toml: not found"
    json.dumps(site.status.details(0), ensure_ascii=False).encode()


async def test_reloads_come_one_after_the_other(site: Site) -> None:
    under_way = 0

    def read() -> Settings:
        nonlocal under_way
        under_way += 1
        return site.written

    def apply(loaded: Loaded) -> tuple[asyncio.Future[int], int]:
        nonlocal under_way
        assert under_way == 1
        under_way -= 1
        return site.apply(loaded)

    reloader = Reloader(
        settings=site.written, admission=load(site.written).admission, read=read, status=site.status, apply=apply
    )
    outcomes = await asyncio.gather(*(reloader.reload("SIGHUP") for _ in range(5)))
    assert [outcome.error for outcome in outcomes] == [None] * 5


async def test_a_reload_does_not_wait_for_the_reauthorization_of_the_one_before(site: Site) -> None:
    site.reauthorizations_end = False
    async with asyncio.timeout(30):
        asked = asyncio.create_task(site.reloader.reload("asked over HTTP"))
        while not site.taken:  # noqa: ASYNC110 - a thread reads first
            await asyncio.sleep(0)
        first = await site.reloader.start("SIGHUP")
        assert (first.error, first.closed, len(site.taken)) == (None, 1, 2)
        assert not asked.done(), "who asks for a reload is told what became of it"
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    assert first.reauthorization is not None
    assert not first.reauthorization.cancelled()


async def test_what_needs_a_restart_is_not_even_read(site: Site, tmp_path: Path) -> None:
    before = site.written
    site.written = before.model_copy(update={"state_dir": tmp_path / "other", "registration_timeout": 3.0})
    outcome = await site.reloader.reload("SIGHUP")
    assert (outcome.error, outcome.needs_restart) == (None, ("state_dir",))
    assert site.taken[0].trust.ca_pem == load(before).trust.ca_pem
    assert not (tmp_path / "other").exists(), "a CA of its own would be made there"


async def test_a_callout_is_made_anew_and_another_policy_is_kept(site: Site) -> None:
    await site.reloader.reload("SIGHUP")
    assert site.taken[-1].policy is None
    site.written = site.written.model_copy(update={"callout": CalloutSettings(url="https://access.example/decide")})
    await site.reloader.reload("SIGHUP")
    await site.reloader.reload("SIGHUP")
    first, second = (loaded.policy for loaded in site.taken[1:])
    assert isinstance(first, CalloutPolicy)
    assert isinstance(second, CalloutPolicy)
    assert first is not second, "what the first one remembers is from before"


async def test_the_development_certificate_is_renewed_while_the_relay_runs(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with moved_time() as clocks:
        monkeypatch.setattr(keys, "utc_now", clocks.now)
        first = load(site.written).trust
        assert first.renew_at == first.not_after - RENEW_BEFORE

        def renew_at() -> datetime | None:
            return site.taken[-1].trust.renew_at if site.taken else first.renew_at

        async def settle() -> None:
            async with asyncio.timeout(10):
                for _ in range(20):
                    await asyncio.sleep(0)

        async with background(renew_in_time(renew_at, site.reloader.reload, clock=clocks.now)):
            for _ in range(3):
                await settle()
                clocks.skew += LOOK
            assert site.taken == [], "it is not due"
            site.fails = ConfigError("a broken file")
            clocks.skew += (first.renew_at - clocks.now()).total_seconds() + 1
            async with asyncio.timeout(10):
                while site.status.reload_failures == 0:  # noqa: ASYNC110  a thread reads the files
                    await asyncio.sleep(0.001)
            site.fails = None
            clocks.skew += LOOK
            async with asyncio.timeout(10):
                while not site.taken:  # noqa: ASYNC110  a thread reads the files
                    await asyncio.sleep(0.001)
    second = site.taken[-1].trust
    assert second.not_after > first.not_after
    assert second.renew_at is not None
    assert second.renew_at > first.not_after
    assert len(site.taken) == 1


def test_a_certificate_that_was_given_is_not_renewed(tmp_path: Path) -> None:
    made = ensure_development(tmp_path / "other")
    settings = Settings(state_dir=tmp_path / "state", cert=made.cert, key=made.key)
    assert load(settings).trust.renew_at is None
