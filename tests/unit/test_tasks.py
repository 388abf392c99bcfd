"""Background tasks: none fails unseen."""

from __future__ import annotations

import asyncio

import pytest

from intermediate_server.client.tasks import background
from intermediate_server.errors import TunnelError


class TestBackground:
    async def test_what_fails_ends_the_block(self) -> None:
        async def task() -> None:
            raise TunnelError("it broke")

        with pytest.raises(TunnelError, match="it broke"):
            async with asyncio.timeout(10), background(task(), asyncio.sleep(3600)):
                await asyncio.Event().wait()

    async def test_the_end_of_the_block_ends_the_rest(self) -> None:
        ended = asyncio.Event()

        async def task() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        with pytest.raises(KeyError):
            async with background(task()):
                await asyncio.sleep(0)
                raise KeyError
        assert ended.is_set()
