"""Traffic for a benchmark to happen under: streams that are read and thrown away. Nothing here is judged."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadtest.errors import TargetError

if TYPE_CHECKING:
    import aiohttp

_TOKENS = 64
_TICK_S = 0.01
_START_S = 30.0  # a queue may be long, but not that long


@dataclass
class Background:
    """How the traffic went, and how late our own loop was beside it."""

    streams: int = 0  # ended well
    failed: int = 0
    lag_ms: list[float] = field(default_factory=list)

    def add(self, other: Background) -> None:
        """Count `other` in."""
        self.streams += other.streams
        self.failed += other.failed
        self.lag_ms += other.lag_ms


@asynccontextmanager
async def background(
    session: aiohttp.ClientSession, url: str, models: Sequence[str], streams: int
) -> AsyncIterator[Background]:
    """`streams` endless users, in turn on each of `models`, from before the block begins until it ends."""
    seen, flowing = Background(), asyncio.Event()
    work = [_user(session, url, models[i % len(models)], seen, flowing) for i in range(streams)]
    tasks = [asyncio.create_task(w) for w in (*work, _lag(seen))]
    try:
        if streams:
            await _started(flowing, url)
        yield seen
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _started(flowing: asyncio.Event, url: str) -> None:
    try:
        async with asyncio.timeout(_START_S):
            await flowing.wait()
    except TimeoutError:
        raise TargetError(f"{url} sent not one token within {_START_S:.0f} s") from None


async def _user(session: aiohttp.ClientSession, url: str, model: str, seen: Background, flowing: asyncio.Event) -> None:
    import aiohttp

    for n in itertools.count():
        body = {"model": model, "prompt": f"Story {n}:", "max_tokens": _TOKENS, "stream": True, "ignore_eos": True}
        try:
            async with session.post(f"{url}/v1/completions", json=body) as response:
                tail = b""
                async for chunk in response.content.iter_any():
                    flowing.set()
                    tail = tail[-16:] + chunk[-16:]
            ok = response.status == 200 and b"[DONE]" in tail
        except (aiohttp.ClientError, OSError):
            ok = False
        if ok:
            seen.streams += 1
        else:
            seen.failed += 1
            flowing.set()  # a server that serves no stream can still be measured, and the count says so
            await asyncio.sleep(0.1)


async def _lag(seen: Background) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _TICK_S
        await asyncio.sleep(_TICK_S)
        seen.lag_ms.append(max(0.0, (loop.time() - due) * 1000))
