"""Files that change, and reloads that must be whole or nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from intermediate_server import file_watch as watch_module
from intermediate_server.file_watch import Watch


class Changes:
    def __init__(self) -> None:
        self.count = 0
        self.happened = asyncio.Event()
        self.watch: Watch

    async def __call__(self) -> None:
        self.watch.take()
        self.count += 1
        self.happened.set()

    async def next(self) -> None:
        await asyncio.wait_for(self.happened.wait(), 10)
        self.happened.clear()


@asynccontextmanager
async def watching(paths: Callable[[], list[Path]]) -> AsyncIterator[Changes]:
    changes = Changes()
    changes.watch = Watch(paths, changes)
    changes.watch.take()
    task = asyncio.create_task(changes.watch.run())
    try:
        yield changes
    finally:
        task.cancel()


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "INTERVAL", 0.01)


async def test_each_way_of_changing_a_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    async with watching(lambda: [path]) as changes:
        path.write_text("two!")
        await changes.next()
        (tmp_path / "new").write_text("six!")
        (tmp_path / "new").rename(path)
        await changes.next()
        os.utime(path, ns=(1, 1))
        await changes.next()
        path.unlink()
        await changes.next()
        path.write_text("back")
        await changes.next()
        assert changes.count == 5


async def test_a_file_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    looks = 0
    real = watch_module._signature

    def growing(_: Path) -> watch_module.Signature:
        nonlocal looks
        looks += 1
        return real(path) if looks == 1 else (1, min(looks, 6), 1)

    async with watching(lambda: [path]) as changes:
        pass
    monkey = pytest.MonkeyPatch()
    monkey.setattr(watch_module, "_signature", growing)
    async with watching(lambda: [path]) as changes:
        await changes.next()
        assert looks >= 7, "it had stopped to grow before it was read"
        assert changes.count == 1
    monkey.undo()


async def test_a_file_that_is_named_later_is_no_change(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("a")
    second.write_text("b")
    paths = [first]
    async with watching(lambda: paths) as changes:
        paths.append(second)
        while second not in changes.watch._seen:  # noqa: ASYNC110 - nobody tells of a look
            await asyncio.sleep(0.001)
        assert changes.count == 0
        second.write_text("changed")
        await changes.next()
