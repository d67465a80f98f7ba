"""`loadtest bench`: how long loading, unloading and replacing an adapter takes, by rank, idle and under load.

One round, for one rank, gives one sample of each operation, in this order:

    cold load      a name and a path the server has not seen, file contents dropped from the page cache where allowed
    first token    one token from it, right after the ack: what an engine puts off until an adapter is used shows here
    in-place swap  `load_inplace` to other contents of the same rank at a new path
    reload         unload, then load at a new path: from the request of the one to the ack of the other
    unload
    warm load      the same name and path again

Ranks take turns within a repetition, so that a drift of the machine spreads over all. A sample is what the client sees:
request sent to answer read. A refused or unanswered operation gives no sample and is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.errors import TargetError, UsageError
from loadtest.tools.background import Background, background
from loadtest.tools.remote import Remote, raise_unless_served, talking

if TYPE_CHECKING:
    import aiohttp

    from loadtest.traffic.admin import Admin, Answer

OPERATIONS = ("cold load", "first token", "in-place swap", "reload", "unload", "warm load")
CONDITIONS = ("idle", "load")
_TIDY_S = 10.0
Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure."""

    ranks: tuple[int, ...] = (8, 16, 32, 64)
    repeat: int = 20
    streams: int = 4  # under load; 0 leaves that condition out

    @property
    def conditions(self) -> tuple[str, ...]:
        """Those that are measured."""
        return CONDITIONS if self.streams else CONDITIONS[:1]

    @property
    def rounds(self) -> int:
        """How often `step` is called, unless ranks are refused."""
        return len(self.conditions) * self.repeat * len(self.ranks)


@dataclass(frozen=True, slots=True)
class Place:
    """Where adapters are made, and where the server finds them."""

    base: Path | None  # the base model's folder; None: where the server says its base lies
    local: Path
    server: str


@dataclass
class Measured:
    """Everything that was measured; `samples` in ms by (operation, rank, condition), in order."""

    model: str
    version: str
    samples: dict[tuple[str, int, str], list[float]] = field(default_factory=dict)
    failures: dict[tuple[str, int, str], list[str]] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)  # rank -> the server's words
    background: Background = field(default_factory=Background)


@dataclass
class _Name:
    """An adapter name of ours, and whether the server may know it."""

    name: str
    paths: int = 0
    loaded: bool = False


class _Refused(Exception):
    """An operation without a sample; its reason."""


def run(server: Remote, place: Place, settings: Settings, step: Step) -> Measured:
    """Measure. Raises TargetError, UsageError; whatever ends it, the server is left without our adapters."""
    return asyncio.run(_run(server, place, settings, step))


async def _run(server: Remote, place: Place, settings: Settings, step: Step) -> Measured:
    async with talking(server) as (session, admin):
        cards = await admin.models()
        base = next((card for card in cards if not card.parent), None)
        if base is None:
            raise TargetError(f"{server.url} serves no base model")
        measured = Measured(base.id, await admin.version())
        contents = _contents(place, base.root, settings.ranks)
        async with _bystander(server, admin, place, contents[0][0]) as bystander:
            bench = _Bench(server, session, admin, place, measured)
            for condition in settings.conditions:
                streams = settings.streams if condition == "load" else 0
                async with background(session, server.url, (base.id, bystander), streams) as traffic:
                    for repetition in range(settings.repeat):
                        for rank, pair in zip(settings.ranks, contents, strict=True):
                            if rank not in measured.refused:
                                await bench.round(condition, rank, pair)
                            step(f"{condition}, rank {rank}, {repetition + 1} of {settings.repeat}")
                measured.background.add(traffic)
        return measured


def _contents(place: Place, root: str, ranks: Sequence[int]) -> list[tuple[Path, Path]]:
    """Two adapters of each rank. Raises UsageError, AdapterError."""
    from loadtest.adapters.marker import Effect, random_effect

    base = place.base or (Path(root) if (Path(root) / "config.json").is_file() else None)
    if base is None:
        raise UsageError(
            f"adapters are made to fit the base model, and {root or 'its folder'} is not here",
            remedy="give its folder with --base",
        )
    made = []
    for rank in ranks:
        paths = [place.local / "contents" / f"r{rank}-{side}" for side in "ab"]
        for seed, path in enumerate(paths):
            random_effect(base, path, Effect(rank=rank, seed=seed))
        made.append((paths[0], paths[1]))
    return made


@asynccontextmanager
async def _bystander(server: Remote, admin: Admin, place: Place, content: Path) -> AsyncIterator[str]:
    """An adapter that is served all the time and never swapped; its name."""
    name = _name("bystander")
    answer = await admin.load(name, _fresh(content, place, name))
    raise_unless_served(server, answer)
    try:
        if answer.outcome != "ok":
            raise TargetError(f"{server.url} refuses an adapter ({answer.reason}: {answer.message})")
        yield name
    finally:
        await _tidy(admin, name)


async def _tidy(admin: Admin, name: str) -> None:
    """Unload what may be loaded, also on the way out of a Ctrl-C; a server that hangs is left."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_TIDY_S):
            await admin.unload(name)


def _name(what: str) -> str:
    return f"bench-{os.getpid()}-{what}"


def _fresh(content: Path, place: Place, name: str, *, cold: bool = False) -> str:
    """A path never used before with the files of `content`; as the server sees it."""
    from loadtest.adapters.peft import copy_fresh

    copy_fresh(content, place.local / name)
    if cold:
        _evict(place.local / name)
    return f"{place.server}/{name}"


def _evict(folder: Path) -> None:
    """Drop the files' clean pages from the page cache, where the system has a call for it."""
    if not hasattr(os, "posix_fadvise"):
        return
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


class _Bench:
    def __init__(
        self, server: Remote, session: aiohttp.ClientSession, admin: Admin, place: Place, measured: Measured
    ) -> None:
        self._server, self._session, self._admin, self._place, self._measured = server, session, admin, place, measured
        self._rounds = 0

    async def round(self, condition: str, rank: int, pair: tuple[Path, Path]) -> None:
        """One sample of each operation, unless one is refused; nothing stays loaded."""
        self._rounds += 1
        name = _Name(_name(f"r{rank}-{self._rounds}"))
        operation = OPERATIONS[0]
        try:
            for operation, work in self._operations(name, pair):
                took = await work()
                self._measured.samples.setdefault((operation, rank, condition), []).append(took)
        except _Refused as refusal:
            self._measured.failures.setdefault((operation, rank, condition), []).append(str(refusal))
            if operation == OPERATIONS[0] and str(refusal).startswith("fail"):
                self._measured.refused[rank] = str(refusal)
        finally:
            if name.loaded:
                await _tidy(self._admin, name.name)

    def _operations(self, name: _Name, pair: tuple[Path, Path]) -> list[tuple[str, Callable[[], Any]]]:
        a, b = pair
        last = [""]

        async def cold() -> float:
            return await self._load(name, await self._path(name, a, cold=True))

        async def first() -> float:
            return await self._first_token(name)

        async def inplace() -> float:
            return await self._load(name, await self._path(name, b), inplace=True)

        async def reload() -> float:
            last[0] = await self._path(name, a)
            started = time.perf_counter()
            await self._unload(name)
            await self._load(name, last[0])
            return (time.perf_counter() - started) * 1000

        async def unload() -> float:
            return await self._unload(name)

        async def warm() -> float:
            return await self._load(name, last[0])

        return list(zip(OPERATIONS, (cold, first, inplace, reload, unload, warm), strict=True))

    async def _path(self, name: _Name, content: Path, *, cold: bool = False) -> str:
        """In a thread: while files are copied the streams must be read on."""
        name.paths += 1
        return await asyncio.to_thread(_fresh, content, self._place, f"{name.name}-{name.paths}", cold=cold)

    async def _load(self, name: _Name, path: str, *, inplace: bool = False) -> float:
        name.loaded = True  # also when nobody can say: an unload of nothing does no harm
        return self._took(await self._admin.load(name.name, path, inplace=inplace))

    async def _unload(self, name: _Name) -> float:
        took = self._took(await self._admin.unload(name.name))
        name.loaded = False
        return took

    def _took(self, answer: Answer) -> float:
        raise_unless_served(self._server, answer)
        if answer.outcome != "ok":
            raise _Refused(f"{answer.outcome}: {answer.reason}: {answer.message}")
        return (answer.at_ns - answer.sent_ns) / 1e6

    async def _first_token(self, name: _Name) -> float:
        import aiohttp
        import orjson

        body = {"model": name.name, "prompt": "The", "max_tokens": 1, "temperature": 0.0}
        started = time.perf_counter()
        try:
            async with (
                asyncio.timeout(self._server.timeout_s),
                self._session.post(f"{self._server.url}/v1/completions", json=body) as response,
            ):
                answer = await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise _Refused(f"info: {type(error).__name__}") from error
        if response.status != 200:
            raise _Refused(f"fail: status {response.status}")
        took = (time.perf_counter() - started) * 1000
        try:
            orjson.loads(answer)["choices"][0]["text"]
        except (ValueError, KeyError, TypeError, IndexError):
            raise _Refused("fail: status 200 without a completion") from None
        return took
