"""Python policies as nobody should write them, for the server of ``bench/hostile.py``; one service is spared."""

from __future__ import annotations

import abc
import asyncio

from typing_extensions import override

from intermediate_server.policy import Allow, Decision, Policy
from intermediate_server.types import Registration


class _Hostile(Policy):
    @override
    async def authorize(self, registration: Registration) -> Decision:
        if registration.service != "bench":
            await self.trouble()
        return Allow("bench")

    @abc.abstractmethod
    async def trouble(self) -> None: ...


class Raising(_Hostile):
    @override
    async def trouble(self) -> None:
        raise RuntimeError


class Hanging(_Hostile):
    @override
    async def trouble(self) -> None:
        await asyncio.Event().wait()


class Slow(_Hostile):
    @override
    async def trouble(self) -> None:
        await asyncio.sleep(0.1)
