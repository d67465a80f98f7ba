"""One line about the run for a person who watches it; a plain line per phase for a log."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from typing import Any

from loadtest.harness import say

_CLEAR = "\r\x1b[2K"


class Progress:
    """Counts what engines report. Writes to standard error; one refreshed line on a terminal that is not a CI's."""

    def __init__(self, phases: int) -> None:
        self.live = sys.stderr.isatty() and "CI" not in os.environ
        self._phases = phases
        self._phase = "ramp"
        self._phase_began = self._began = time.monotonic()
        self._engines: dict[str, dict[str, Any]] = {}
        self._swaps: Counter[str] = Counter()
        self._tokens_then = (self._began, 0)
        self._rate = 0.0
        self._shown = False

    def count(self, engine: str, message: dict[str, Any]) -> None:
        """An engine's `progress`."""
        self._engines[engine] = message

    def swap(self, message: dict[str, Any]) -> None:
        """An ended swap. In the arm `bad` a refusal is what was asked for."""
        wanted = "fail" if message["arm"] == "bad" else "ok"
        self._swaps["as wanted" if message["outcome"] == wanted else "not as wanted"] += 1

    def phase(self, message: dict[str, Any]) -> None:
        """Edge of a phase: a plain line at its start."""
        if message["edge"] != "start":
            return
        adapter = f" on {message['adapter']}" if message.get("adapter") else ""
        self._phase = f"phase {message['index'] + 1}/{self._phases} {message['arm']}{adapter}"
        self._phase_began = time.monotonic()
        self._wipe()
        say(f"{self._phase} ({self._totals()})")

    def show(self) -> None:
        """Refresh the line, on a terminal."""
        if not self.live:
            return
        now, tokens = time.monotonic(), self._sum("tokens")
        then, before = self._tokens_then
        if now > then:
            self._rate = (tokens - before) / (now - then)
        self._tokens_then = (now, tokens)
        line = f"{self._phase} {now - self._phase_began:.0f}s · {self._totals()} · {self._rate:,.0f} tokens/s"
        sys.stderr.write(f"{_CLEAR}{line[: _width()]}")
        sys.stderr.flush()
        self._shown = True

    def close(self) -> None:
        """The run has ended."""
        self._wipe()
        say(f"ended after {time.monotonic() - self._began:.0f} s ({self._totals()}); rolling back and judging")

    def _totals(self) -> str:
        swaps, odd = self._swaps.total(), self._swaps["not as wanted"]
        failed = self._sum("fail") + self._sum("info")
        return (
            f"{self._sum('sent')} streams, {self._sum('open')} open, {failed} not ok"
            f" · {swaps} swaps{f', {odd} not as wanted' if odd else ''}"
        )

    def _sum(self, key: str) -> int:
        return sum(int(message.get(key) or 0) for message in self._engines.values())

    def _wipe(self) -> None:
        if self._shown:
            sys.stderr.write(_CLEAR)
            self._shown = False


def _width() -> int:
    try:
        return max(20, os.get_terminal_size(sys.stderr.fileno()).columns - 1)
    except OSError:
        return 79
