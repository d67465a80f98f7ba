"""One engine process of this Locust process: requests go down, answers and news come up.

Rules
1. The engine's messages arrive in the handle's reader, which must not block: answers wake who waits for them, news is
   handed on, and whoever handles news spawns what takes time.
2. Every wait is bounded, except a stream's: the engine has deadlines of its own for those.
3. When the engine ends by itself, every waiter gets an answer (outcome info) and `on_death` is called once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import count
from typing import Any

from loadtest.errors import LoadtestError, TargetError
from loadtest.traffic.ipc import EngineHandle

READY_S = 30.0  # guessed: a Python process with aiohttp starts within 1 s, 5 s on a busy machine
STOP_S = 90.0  # rollback loads one version per adapter; a load that hangs has its own time-out below this

Message = dict[str, Any]


class _Waiter:
    """One awaited answer."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.answer: Message | None = None

    def wake(self, answer: Message | None) -> None:
        self.answer = answer
        self.event.set()


class EngineDied(LoadtestError):
    """An engine process ended by itself."""


class Link:
    """Starts the engine at construction; `on_news(link, message)` gets what nobody waits for."""

    def __init__(self, name: str, on_news: Callable[[Link, Message], None], on_death: Callable[[Link], None]) -> None:
        self.name = name
        self.dead = False
        self._closing = False
        self._on_news = on_news
        self._on_death = on_death
        self._ids = count(1)
        self._streams: dict[int, _Waiter] = {}
        self._replies: dict[str, _Waiter] = {}
        self._handle = EngineHandle(self._receive, self._ended)
        self._handle.start()

    # -- what the run needs -----------------------------------------------------------------------------------------

    def configure(self, config: Message) -> None:
        """Journal open, client ready. Raises EngineDied or LoadtestError."""
        self._ask({"op": "configure", **config}, "ready", READY_S)

    def setup(self, script: Message, timeout_s: float) -> None:
        """Load the first version of every adapter. Raises TargetError with the engine's words."""
        answer = self._ask({"op": "setup", "script": script}, "setup_done", timeout_s)
        if not answer.get("ok"):
            error = TargetError(str(answer.get("error") or "the server could not be set up"))
            error.exit_code = int(answer.get("exit_code") or error.exit_code)
            raise error

    def play(self) -> None:
        """Start the phases; news `phase`, `swap` and at last `play_done` follow."""
        self.tell({"op": "play"})

    def event(self, what: str, detail: str) -> None:
        """One line for the history."""
        self.tell({"op": "event", "what": what, "detail": detail})

    def stop(self, reason: str, drain_s: float) -> bool:
        """Chaos stopped, streams drained or cut, versions rolled back, journal closed. False: it took too long."""
        try:
            self._ask({"op": "stop", "reason": reason, "drain_s": drain_s}, "stopped", drain_s + STOP_S)
        except LoadtestError:
            return False
        return True

    def close(self) -> None:
        """End the process; idempotent. Streams still open get an answer (cancelled)."""
        self._closing = True
        self._handle.close()
        self._release("cancelled")

    def stream(self, ask: Message) -> Message:
        """Send one stream and wait for its `result`. When the user is killed, so is the stream."""
        stream, waiter = next(self._ids), _Waiter()
        self._streams[stream] = waiter
        try:
            self.tell({"op": "stream", "id": stream, **ask})
            waiter.event.wait()
        except BaseException:
            self._streams.pop(stream, None)
            self.tell({"op": "cancel", "id": stream})
            raise
        assert waiter.answer is not None  # whoever sets the event gives an answer
        return {"adapter": ask["adapter"], **waiter.answer}

    def tell(self, message: Message) -> None:
        """Send without waiting; a dead or closed engine swallows it (rule 3 tells the owner)."""
        if self.dead or self._closing:
            for waiter in [self._streams.pop(message["id"], None)] if message["op"] == "stream" else []:
                if waiter:
                    waiter.wake(_lost("cancelled" if self._closing else "unfinished"))
            return
        try:
            self._handle.send(message)
        except OSError:
            self._ended()

    # -- the handle's reader ----------------------------------------------------------------------------------------

    def _ask(self, message: Message, reply: str, timeout_s: float) -> Message:
        waiter = self._replies[reply] = _Waiter()
        self.tell(message)
        if self.dead or not waiter.event.wait(timeout_s):
            what = "has ended" if self.dead else f"gave no answer to {message['op']!r} within {timeout_s:.0f} s"
            raise EngineDied(f"engine {self.name} {what}", remedy="see engine.log in the results folder")
        if waiter.answer is None:
            raise EngineDied(f"engine {self.name} has ended", remedy="see engine.log in the results folder")
        return waiter.answer

    def _receive(self, message: Message) -> None:
        op = message.get("op")
        if op == "result" and message.get("id"):
            waiter = self._streams.pop(message["id"], None)
            if waiter is not None:  # None: cancelled meanwhile
                waiter.wake(message)
            return
        waiter = self._replies.pop(str(op), None)
        if waiter is not None:
            waiter.wake(message)
            return
        self._on_news(self, message)

    def _ended(self, *_: object) -> None:
        if self.dead or self._closing:
            return
        self.dead = True
        self._release("unfinished")
        self._on_death(self)

    def _release(self, reason: str) -> None:
        streams, self._streams = self._streams, {}
        replies, self._replies = self._replies, {}
        for waiter in streams.values():
            waiter.wake(_lost(reason))
        for waiter in replies.values():
            waiter.wake(None)


def _lost(reason: str) -> Message:
    return {"op": "result", "outcome": "info", "reason": reason, "tokens": 0, "detail": "the engine process is gone"}
