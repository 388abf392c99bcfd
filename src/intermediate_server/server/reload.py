"""Reload on SIGHUP: everything is read and checked before anything is let go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from intermediate_server.admin import Status
from intermediate_server.config import Settings
from intermediate_server.engine import Command, EngineError
from intermediate_server.errors import IntermediateServerError
from intermediate_server.server.listening import LIVE_SETTINGS, Trust, load_trust

_log = structlog.get_logger()


def changed(old: Settings, new: Settings) -> tuple[list[str], list[str]]:
    """Which settings differ: those a reload applies, and those that need a restart."""
    names = [name for name in Settings.model_fields if getattr(old, name) != getattr(new, name)]
    return [name for name in names if name in LIVE_SETTINGS], [name for name in names if name not in LIVE_SETTINGS]


class Reloader:
    """Holds the settings in force and replaces them."""

    def __init__(
        self,
        *,
        settings: Settings,
        read: Callable[[], Settings],
        submit: Callable[..., None],
        status: Status,
        apply: Callable[[Settings], Awaitable[None]],
    ) -> None:
        """``read`` gives the settings as they are written now; ``apply`` takes over what is no matter of TLS."""
        self.settings = settings
        self._read = read
        self._submit = submit
        self._status = status
        self._apply = apply

    async def reload(self) -> bool:
        """Read, check and apply; False when something was wrong and nothing has changed. Never raises for it."""
        try:
            # Files may be slow to read, and the relay's registrations do not wait for them.
            new, trust = await asyncio.to_thread(self._load)
        except (IntermediateServerError, EngineError, OSError) as error:
            self._status.reload_error = str(error)
            _log.error("Reload failed; everything stays as it is", reason=str(error))
            return False
        live, restart = changed(self.settings, new)
        self._submit(Command.SetServerTls(trust.tls))
        # What needs a restart keeps its old value, so that the next reload mentions it again.
        self.settings = self.settings.model_copy(update={name: getattr(new, name) for name in live})
        self._status.certificate_not_after = trust.not_after
        self._status.reload_error = None
        self._status.reloads += 1
        await self._apply(self.settings)
        _log.info("Reloaded", certificate=trust.origin, expires=trust.not_after.isoformat(), changed=",".join(live))
        if restart:
            _log.warning("Changed settings that need a restart", settings=",".join(restart))
        return True

    def _load(self) -> tuple[Settings, Trust]:
        new = self._read()
        return new, load_trust(new)
