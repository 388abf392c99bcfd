"""A reload: the whole new configuration is good, or nothing has changed and the reason is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.admin import new_status

from intermediate_server.config import Settings
from intermediate_server.config.callout import CalloutSettings
from intermediate_server.errors import CertificateError, ConfigError
from intermediate_server.pki import ensure_development
from intermediate_server.policy.callout import CalloutPolicy
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
