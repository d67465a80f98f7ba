"""After the traffic: asks the server what each version says about the streams of adapters without markers.

    python -m loadtest.scoring        one JSON line on standard input (Job); end of file, or a signal, ends it early

Rules
1. A version is asked as a pinned copy, loaded from a path of its own under a name of its own, `adapter--sha8`, one at a
   time, and unloaded whatever happens; `pin planned` is on disk before the load leaves (undo.py reads it).
2. Method `auto`: references of early streams first. If the engine repeats itself exactly, references of everything, and
   margins only for streams that no reference explains; else margins of everything (trust.py has the rules).
3. Whose streams no version of their own adapter explains, those are put to the base and the other adapters' versions.
4. Only versions that were asked for before a stream ended are candidates for it.
5. Results reach the files before the line that names them; the verdict is computed from the files alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loadtest import history, records
from loadtest.analysis.trust import LIMIT, PROOF, Trust, early, stream_ids, trust
from loadtest.asking import Asker, Refused
from loadtest.chaos import actions
from loadtest.journal import encode
from loadtest.scores import BASE, FILE, MARGINS, REFERENCES, Scores, Source
from loadtest.traffic.admin import Admin
from loadtest.traffic.client import open_session
from loadtest.traffic.process import boot_id
from loadtest.traffic.words import Redactor, without_secrets

if TYPE_CHECKING:
    from loadtest.history import History

SAMPLE = 2 * PROOF  # early streams whose references decide whether the engine repeats itself
REFUSED = 5  # questions, or a tenth of them: a stream as long as the server's context cannot be put to it again
SAY_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Job:
    """What the parent asks for."""

    folder: str
    url: str
    headers: Mapping[str, str]
    model: str  # served name of the base model
    root_local: str
    root_server: str
    choice: str  # "auto" | "reference" | "margins"


class Book:
    """The files of one scoring; also keeps what it wrote."""

    def __init__(self, folder: Path, recorded: History) -> None:
        self._lines = (folder / FILE).open("ab", buffering=0)
        self._columns = {"margins": (folder / MARGINS).open("ab"), "reference": (folder / REFERENCES).open("ab")}
        self._recorded = recorded
        self.margins: dict[int, dict[Source, Any]] = {}
        self.references: dict[int, dict[Source, Any]] = {}

    def line(self, record: records.Record) -> None:
        """One line, with the operating system when this returns."""
        self._lines.write(encode(record))

    def score(self, method: Any, row: int, source: Source, values: np.ndarray[Any, Any]) -> None:
        """What a version says about a stream: margins float32, or reference int32."""
        column = self._columns[method]
        offset = column.tell() // 4
        column.write(values.tobytes())
        column.flush()
        name = self._recorded.streams.name[row]
        self.line(records.Score(method, name, source[0], source[1], len(values), offset))
        kept = self.margins if method == "margins" else self.references
        kept.setdefault(row, {})[source] = values

    def judged(self, adapters: tuple[str, ...]) -> History:
        """The history with what was scored so far."""
        return replace(self._recorded, scores=Scores(self.margins, self.references, adapters, ""))


class Scoring:
    """One scoring from start to end."""

    def __init__(self, job: Job, recorded: History, asker: Asker, admin: Admin, book: Book) -> None:
        self._job, self._recorded, self._asker, self._admin, self._book = job, recorded, asker, admin, book
        self.adapters = adapters_of(recorded, job.choice)
        self.rows = scorable(recorded, self.adapters)
        self._asked = 0
        self._refused: list[str] = []
        self._said = time.monotonic()

    async def run(self) -> None:
        """Rules 2 and 3."""
        known = early(self._recorded, self.rows)
        if self._job.choice != "margins":
            sample = dict(list(known.items())[:SAMPLE])
            await self._ask("reference", {row: {source} for row, source in sample.items()})
            proven = self._proof().method == "reference"
            if proven:
                await self._ask("reference", {row: self._own(row) for row in self.rows})
            if self._job.choice == "reference":
                return
        left = self._unexplained() if self._proof().method == "reference" else self.rows
        calibration = dict(list(known.items())[:SAMPLE])
        await self._ask("margins", {row: {source} for row, source in calibration.items()})
        await self._ask("margins", {row: self._own(row) for row in left})
        await self._ask("margins", {row: self._foreign(row) for row in self._unexplained()})

    @property
    def incomplete(self) -> str:
        """Why some of it was not done."""
        count = len(self._refused)
        return f"{count} of {self._asked} questions were refused, first: {self._refused[0]}" if count else ""

    def _proof(self) -> Trust:
        return trust(self._book.judged(self.adapters))

    def _own(self, row: int) -> set[Source]:
        return {s for s in self._candidates(row) if s[0] == self._adapter(row)}

    def _foreign(self, row: int) -> set[Source]:
        return {s for s in self._candidates(row) if s[0] != self._adapter(row)}

    def _adapter(self, row: int) -> str:
        table = self._recorded.streams
        return table.adapters[int(table.adapter[row])]

    def _candidates(self, row: int) -> set[Source]:
        """Rule 4; and the base."""
        ended = int(self._recorded.streams.ended[row])
        loaded = {
            (op.adapter, op.version)
            for op in self._recorded.ops
            if op.mode != "unload" and op.outcome != "fail" and op.invoked <= ended and op.adapter in self.adapters
        }
        return loaded | {BASE}

    def _unexplained(self) -> list[int]:
        """Streams that no version of their own adapter explains from the first token to the last."""
        proof = self._proof()
        return [row for row in self.rows if not any(self._whole(row, s, proof) for s in self._own(row))]

    def _whole(self, row: int, source: Source, proof: Trust) -> bool:
        reference = self._book.references.get(row, {}).get(source)
        if reference is not None and proof.method == "reference":
            return bool(np.array_equal(reference, stream_ids(self._recorded, row)))
        margins = self._book.margins.get(row, {}).get(source)
        limit = proof.cut if proof.margins else LIMIT
        return margins is not None and not bool((margins > limit).any())

    async def _ask(self, method: str, wanted: Mapping[int, set[Source]]) -> None:
        """Put streams to versions, one version after another; what is known already is not asked again."""
        have = self._book.margins if method == "margins" else self._book.references
        todo: dict[Source, list[int]] = {}
        for row, sources in wanted.items():
            for source in sources - set(have.get(row, {})):
                todo.setdefault(source, []).append(row)
        versions = {(v.adapter, v.version): v for v in self._recorded.versions}
        for source in sorted(todo):
            if source == BASE:
                await self._put(method, self._job.model, source, todo[source])
            elif source in versions:
                async with self._pinned(versions[source]) as name:
                    await self._put(method, name, source, todo[source])

    async def _put(self, method: str, model: str, source: Source, rows: list[int]) -> None:
        table, recorded = self._recorded.streams, self._recorded

        async def one(row: int) -> None:
            first = int(table.prompt_start[row])
            prompt = recorded.prompts[first : first + int(table.prompt[row])].tolist()
            ids = stream_ids(recorded, row).tolist()
            self._asked += 1
            try:
                if method == "margins":
                    self._book.score("margins", row, source, await self._asker.margins(model, prompt, ids))
                else:
                    whole = bool(table.ignore_eos[row])
                    self._book.score("reference", row, source, await self._asker.greedy(model, prompt, len(ids), whole))
            except Refused as e:
                self._refused.append(str(e))
                if len(self._refused) > max(REFUSED, self._asked // 10):
                    raise
            self._say(f"{method} of {source[0]} {source[1]}: {self._asked} answers so far")

        async with asyncio.TaskGroup() as group:
            for row in rows:
                group.create_task(one(row))

    @contextlib.asynccontextmanager
    async def _pinned(self, version: records.Version) -> AsyncIterator[str]:
        """Rule 1."""
        name = await self._pin(version)
        try:
            yield name
        finally:
            await asyncio.shield(self._unpin(name, version))

    async def _pin(self, version: records.Version) -> str:
        stem = f"{version.adapter}--{version.sha[:8]}"
        for attempt in range(3):
            name = stem if not attempt else f"{stem}-{attempt + 1}"
            local = Path(self._job.root_local) / "pins" / f"{time.monotonic_ns()}-{name}"
            await asyncio.to_thread(actions.fresh, Path(version.path), local)
            path = f"{self._job.root_server}/pins/{local.name}"
            self._note(name, version, path, "planned")
            answer = await self._admin.load(name, path)
            if answer.outcome == "ok":
                self._note(name, version, path, "loaded")
                return name
            self._note(name, version, path, "refused" if answer.outcome == "fail" else "failed", answer.message)
            if answer.reason != "already_loaded":
                break
        raise Refused(f"the server did not load {name} ({answer.status or answer.reason}: {answer.message})")

    async def _unpin(self, name: str, version: records.Version) -> None:
        answer = await self._admin.unload(name)
        gone = answer.outcome == "ok" or answer.reason == "not_found"
        self._note(name, version, "", "unloaded" if gone else "failed", "" if gone else answer.message)

    def _note(self, name: str, version: records.Version, path: str, state: Any, message: str = "") -> None:
        url = without_secrets(self._job.url)
        pin = records.Pin(
            name, version.adapter, version.version, path, state, url, os.getpid(), boot_id(), message[:300]
        )
        self._book.line(pin)

    def _say(self, words: str) -> None:
        if time.monotonic() - self._said > SAY_EVERY_S:
            self._said = time.monotonic()
            say(words)


def say(words: str) -> None:
    """A line of progress, on standard error."""
    sys.stderr.write(f"loadtest: scoring, {words}\n")
    sys.stderr.flush()


def adapters_of(recorded: History, choice: str) -> tuple[str, ...]:
    """Adapters whose streams are scored, "base" among them: those without markers, or all where a method was chosen."""
    versions = [v for v in recorded.versions if v.adapter != BASE[0]]
    names = {v.adapter for v in versions if choice != "auto" or not v.markers}
    return (*sorted(names), BASE[0]) if names else ()


def scorable(recorded: History, adapters: Iterable[str]) -> list[int]:
    """Rows of streams whose prompt and tokens are known as ids."""
    table = recorded.streams
    mine = np.isin(np.array(table.adapters, dtype=object)[table.adapter], list(adapters))
    known = mine & ~table.text_only & (table.tokens > 0) & (table.prompt > 0)
    return [int(row) for row in np.flatnonzero(known)]


async def score(job: Job, stop: asyncio.Event) -> str:
    """Score a run's folder; why it is incomplete, "" when it is not. Writes the last line whatever happens."""
    began, folder = time.monotonic(), Path(job.folder)
    recorded = await asyncio.to_thread(history.load, folder)
    book = Book(folder, recorded)
    async with open_session(job.headers, 10.0) as session:
        redact = Redactor(job.url, job.headers)
        admin = Admin(session, job.url, timeout_s=60.0, redact=redact)
        scoring = Scoring(job, recorded, Asker(session, job.url, redact), admin, book)
        incomplete = await _until(scoring.run(), stop) or scoring.incomplete
    streams = len({*book.margins, *book.references})
    book.line(records.Scored(scoring.adapters, streams, round(time.monotonic() - began, 3), incomplete))
    say(f"{streams} streams in {time.monotonic() - began:.0f} s{': ' + incomplete if incomplete else ''}")
    return incomplete


async def _until(work: Any, stop: asyncio.Event) -> str:
    task, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))
        return "it was interrupted"
    try:
        await task
    except BaseExceptionGroup as e:
        first = e.exceptions[0]
        if not isinstance(first, Refused):
            raise
        return str(first)
    except Refused as e:
        return str(e)
    return ""


async def _main() -> int:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for sig in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sig, stop.set)
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    job = Job(**json.loads(await reader.readline()))
    _when_over(reader, stop.set)
    await score(job, stop)
    return 0


def _when_over(reader: asyncio.StreamReader, call: Callable[[], None]) -> None:
    """`call` at the end of our input: the parent is gone."""

    async def watch() -> None:
        while await reader.read(4096):
            pass
        call()

    _KEPT.append(asyncio.ensure_future(watch()))


_KEPT: list[asyncio.Future[None]] = []  # the loop itself holds tasks weakly

if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
