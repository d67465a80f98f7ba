"""The user classes: subclass AdapterUser, write tasks, call `self.stream()`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from locust import User, task

from loadtest import plan
from loadtest.swarm import rows, seat
from loadtest.swarm.rows import Result

_PAUSE_S = 0.1  # after a stream that got no token; doubles up to _PAUSE_MAX_S, so that a dead server is not hammered
_PAUSE_MAX_S = 2.0


class AdapterUser(User):  # type: ignore[misc]  # Locust has no types
    """Someone who streams completions from adapters; the engine process does the HTTP.

    Set `wait_time = between(1, 5)` for think time; without it the scenario's `think` holds.
    """

    abstract = True

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._seat = seat.current()
        self._number = -1
        self._requests: Iterator[plan.Request] = iter(())
        self._think_s: Callable[[], float] = float
        self._failed = 0

    @property
    def name(self) -> str:
        """Who sent a stream, as the history names it, e.g. "Tenant-3"."""
        return f"{type(self).__name__}-{self._number}"

    def wait_time(self) -> float:
        """Seconds between two tasks: the scenario's think time; 0 before the first stream."""
        return self._think_s()

    def stream(
        self,
        model: str | None = None,
        prompt: str | list[int] | None = None,
        max_tokens: int | None = None,
        **extra: Any,
    ) -> Result:
        """Stream one completion to its end and return what became of it; never raises for what the server does.

        What is None is drawn from the scenario (its mix, prompts and lengths, by this user's number and the seed).
        `prompt`: text or token ids. `extra`: further fields of the request body, e.g. temperature=0.7.
        """
        running = self._seat.wait()
        if self._number < 0:
            self._number = running.next_user()
            self._requests = running.requests(self._number)
            self._think_s = running.think_s(self._number)
        drawn = next(self._requests) if None in (model, prompt, max_tokens) else None
        ask: dict[str, Any] = {
            "adapter": model if model is not None or drawn is None else drawn.adapter,
            "prompt": prompt if prompt is not None or drawn is None else drawn.prompt,
            "max_tokens": max_tokens if max_tokens is not None or drawn is None else drawn.max_tokens,
            "user": self.name,
        }
        if extra:
            ask["extra"] = extra
        result = self._send(running, ask)
        self._back_off(result)
        return result

    def _send(self, running: seat.Running, ask: dict[str, Any]) -> Result:
        """Rows for the stream; a user killed by Stop has its stream cancelled and counted apart."""
        began = time.monotonic()
        try:
            result = Result.read(running.link.stream(ask))
        except gevent.GreenletExit:
            rows.cancelled(self.environment, str(ask["adapter"]), (time.monotonic() - began) * 1000)
            raise
        rows.stream(self.environment, result, {"user": self.name, **self.context()})
        return result

    def _back_off(self, result: Result) -> None:
        if result.ok or result.tokens:
            self._failed = 0
            return
        gevent.sleep(min(_PAUSE_S * 2**self._failed, _PAUSE_MAX_S))
        self._failed = min(self._failed + 1, 10)


class ArrivalsUser(User):  # type: ignore[misc]
    """Keeps Locust's run alive while the engines send a scenario's `arrivals` (open loop) by themselves."""

    @task  # type: ignore[untyped-decorator]
    def idle(self) -> None:
        """Nothing: no user waits for an arrival's answer, which is what open loop means."""
        self.wait()

    def wait_time(self) -> float:
        """Short, so that a stop with --stop-timeout need not wait for it."""
        return 0.2
