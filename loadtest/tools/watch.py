"""Short requests, one after another, that tell which version of a marker adapter serves right now."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import aiohttp

_PROBE_S = 10.0  # for one token; longer than a busy server takes
_PAUSE_S = 0.002  # between probes: a probe is a request like any other, and should not be a load
_PAUSE_FAILED_S = 0.1
_FIRST_S = 2.0  # a server too busy for a probe is swapped without an answer from before


@dataclass
class Watch:
    """What the probes have seen; times are monotonic ns, 0 = never."""

    first_seen_ns: int = 0  # end of the first answer by the new version
    old_last_seen_ns: int = 0  # end of the last answer by anything else
    probes: int = 0
    error: str = ""  # why the last probe told nothing
    _seen: asyncio.Event = field(default_factory=asyncio.Event)

    async def until_seen(self, patience_s: float) -> None:
        """Wait for the new version, at most `patience_s`."""
        try:
            async with asyncio.timeout(patience_s):
                await self._seen.wait()
        except TimeoutError:
            return

    def note(self, token: int, markers: Sequence[int], at_ns: int) -> None:
        """One answer: its first token, at the time it was read."""
        self.probes += 1
        self.error = ""
        if token in markers:
            self.first_seen_ns = self.first_seen_ns or at_ns
            self._seen.set()
        else:
            self.old_last_seen_ns = at_ns


@asynccontextmanager
async def watching(
    session: aiohttp.ClientSession,
    url: str,
    name: str,
    markers: Sequence[int],
    now_ns: Callable[[], int] = time.monotonic_ns,
) -> AsyncIterator[Watch]:
    """Probe `name` while the block runs, beginning with one answer before it: the swap meets a server in use."""
    watch, started = Watch(), asyncio.Event()

    async def probe() -> None:
        while True:
            token = await _first_token(session, url, name, watch)
            if token is not None:
                watch.note(token, markers, now_ns())
            started.set()
            await asyncio.sleep(_PAUSE_S if token is not None else _PAUSE_FAILED_S)

    task = asyncio.create_task(probe())
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_S):
                await started.wait()
        yield watch
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _first_token(session: aiohttp.ClientSession, url: str, name: str, watch: Watch) -> int | None:
    """The id of one greedy token by adapter `name`; None and `watch.error` when there is none to be had."""
    import aiohttp
    import orjson

    body = {"model": name, "prompt": "The", "max_tokens": 1, "temperature": 0.0, "return_token_ids": True}
    try:
        async with asyncio.timeout(_PROBE_S), session.post(f"{url}/v1/completions", json=body) as response:
            text = await response.read()
        if response.status != 200:
            watch.error = f"a probe was answered with status {response.status}"
            return None
        return int(orjson.loads(text)["choices"][0]["token_ids"][0])
    except (ValueError, KeyError, TypeError, IndexError):
        watch.error = "the server sends no token ids (vLLM does from 0.10.2 on)"
    except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
        watch.error = f"a probe failed ({type(error).__name__})"
    return None
