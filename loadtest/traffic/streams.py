"""All streams of one engine: started on request or by a plan, counted, cancelled, drained.

Rules
1. Open loop: an arrival leaves when the plan says, whatever the earlier ones do. Its `intended_ns` is the plan's time,
   so that the engine's own lateness shows as schedule delay and not as the server's.
2. Every stream asked for gets exactly one result, also when it was cancelled before it began.
3. The target counts as dead after `DEAD_AFTER` refusals in a row and an unanswered /health; it is said once.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from loadtest.records import Stream
from loadtest.traffic.ask import Ask
from loadtest.traffic.client import StreamClient

if TYPE_CHECKING:
    from loadtest.plan import Request

NS = 1_000_000_000
DEAD_AFTER = 5
CANCEL_S = 5.0  # for cancelled streams to be journaled; then they are hurried

Message = dict[str, Any]


@dataclass(slots=True)
class Counts:
    """Totals since the engine began."""

    sent: int = 0
    ok: int = 0
    fail: int = 0
    info: int = 0
    tokens: int = 0


class Streams:
    """Owner of the stream tasks."""

    def __init__(
        self,
        client: StreamClient,
        send: Callable[[Message], None],
        healthy: Callable[[], Awaitable[bool]],
        note: Callable[[str, str], None],
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`send` takes messages to the host, `note(what, detail)` events to the history."""
        self.counts = Counts()
        self._client = client
        self._send = send
        self._healthy = healthy
        self._note = note
        self._now_ns = now_ns
        self._numbers = itertools.count(1)
        self._open: set[asyncio.Task[Stream]] = set()
        self._by_id: dict[int, asyncio.Task[Stream]] = {}
        self._refusals = 0
        self._dead = False
        self._check: asyncio.Task[None] | None = None
        self._arrivals: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def open(self) -> int:
        """Streams that have not ended."""
        return len(self._open)

    def ask(self, message: Mapping[str, Any]) -> None:
        """Start the stream of a host's `stream` message."""
        ask = ask_of(message)
        if self._closed:
            self._send(_result(message["id"], ask, None, "the run is ending"))
            return
        self._start(ask, message["id"])

    def cancel(self, request: int) -> None:
        """Cancel the stream of that message; unknown ids have ended already."""
        task = self._by_id.get(request)
        if task is not None:
            task.cancel()

    def arrive(self, arrivals: Iterator[tuple[float, Request]], share: int, of: int) -> None:
        """Send every `of`-th arrival, from number `share` on, at its time from now."""
        if self._arrivals is None and not self._closed:
            self._arrivals = asyncio.create_task(self._arrive(arrivals, share, of))

    async def _arrive(self, arrivals: Iterator[tuple[float, Request]], share: int, of: int) -> None:
        begun = self._now_ns()
        for at_s, request in itertools.islice(arrivals, share, None, of):
            due = begun + int(at_s * NS)
            await self._until(due)
            ask = Ask(0, request.adapter, request.prompt, request.max_tokens, user="arrivals", intended_ns=due)
            self._start(ask, 0)
            await asyncio.sleep(0)

    async def _until(self, due: int) -> None:
        while True:  # a loop's timers are exact to a millisecond, and may fire that much early
            wait = due - self._now_ns()
            if wait <= 0:
                return
            await asyncio.sleep(wait / NS)

    def _start(self, ask: Ask, request: int) -> None:
        number = next(self._numbers)
        ask = replace(ask, stream=number, replica=self._client.spread(number, ask.user))
        begun = self._now_ns()
        task = asyncio.create_task(self._client.stream(ask))
        self.counts.sent += 1
        self._open.add(task)
        if request:
            self._by_id[request] = task
        task.add_done_callback(lambda t: self._ended(t, ask, request, begun))

    def _ended(self, task: asyncio.Task[Stream], ask: Ask, request: int, begun: int) -> None:
        self._open.discard(task)
        self._by_id.pop(request, None)
        error = None if task.cancelled() else task.exception()
        record = None if task.cancelled() or error else task.result()
        if error is not None:
            self._note("error", f"stream {ask.stream}: {type(error).__name__}: {error}")
        outcome = record.outcome if record else "info"
        setattr(self.counts, outcome, getattr(self.counts, outcome) + 1)
        self.counts.tokens += record.tokens if record else 0
        message = _result(request, ask, record, "cancelled" if error is None else f"a bug of the tester: {error}")
        if record is None:
            message["e2el_ms"] = (self._now_ns() - begun) / 1e6
        self._send(message)
        self._watch_target(record)

    def _watch_target(self, record: Stream | None) -> None:
        """Rule 3."""
        if record is None or self._closed:
            return
        if record.reason != "refused":
            self._refusals = 0 if record.status else self._refusals
            return
        self._refusals += 1
        if self._refusals >= DEAD_AFTER and not self._dead and self._check is None:
            self._check = asyncio.create_task(self._check_target(record.detail))

    async def _check_target(self, detail: str) -> None:
        try:
            if await self._healthy():
                self._refusals = 0
            else:
                self._dead = True
                self._note("target_died", detail)
                self._send({"op": "target_died", "detail": detail})
        finally:
            self._check = None

    def close(self) -> None:
        """Start no more."""
        self._closed = True
        for task in (self._arrivals, self._check):
            if task is not None:
                task.cancel()

    async def drain(self, patience_s: float) -> None:
        """Close, let the open ones end for `patience_s`, then cancel them. The journal holds all of them."""
        self.close()
        if self._open and patience_s > 0:
            await asyncio.wait(self._open, timeout=patience_s)
        for _ in range(2):  # the second time they do not decode in steps any more
            for stream in self._open:
                stream.cancel()
            if self._open:
                await asyncio.wait(self._open, timeout=CANCEL_S)
        await asyncio.sleep(0)  # done callbacks


def ask_of(message: Mapping[str, Any]) -> Ask:
    """The Ask of a `stream` message, with what `extra` says about fields that the record holds."""
    extra = dict(message.get("extra") or {})
    return Ask(
        stream=0,
        adapter=message["adapter"],
        prompt=message["prompt"],
        max_tokens=int(extra.pop("max_tokens", message["max_tokens"])),
        user=message.get("user", ""),
        intended_ns=message.get("intended_ns") or 0,
        ignore_eos=bool(extra.pop("ignore_eos", True)),
        temperature=float(extra.pop("temperature", 0.0)),
        extra=extra,
    )


def _result(request: int, ask: Ask, record: Stream | None, words: str) -> Message:
    """The `result` message; without a record the stream was cancelled, or never sent."""
    message: Message = {"op": "result", "id": request, "adapter": ask.adapter, "user": ask.user, "stream": ask.stream}
    if record is None:
        lost = {"outcome": "info", "reason": "cancelled", "detail": words, "tokens": 0}
        return message | lost | {"ttft_ms": None, "e2el_ms": None}
    return message | {
        "outcome": record.outcome,
        "reason": record.reason,
        "detail": record.detail,
        "tokens": record.tokens,
        "ttft_ms": (record.first_ns - record.sent_ns) / 1e6 if record.first_ns else None,
        "e2el_ms": (record.ended_ns - record.sent_ns) / 1e6,
    }
