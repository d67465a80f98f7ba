"""One line about the run for a person who watches it; a plain line per phase for a log."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from loadtest.harness import say
from loadtest.report import text
from loadtest.swarm.board import Board

_CLEAR = "\r\x1b[2K"


class Progress:
    """Says what a board shows. Writes to standard error; one refreshed line on a terminal that is not a CI's."""

    def __init__(self, board: Board) -> None:
        self.live = sys.stderr.isatty() and "CI" not in os.environ
        self.board = board
        self._phase = "ramp"
        self._phase_began = self._began = time.monotonic()
        self._shown = False

    def phase(self, message: dict[str, Any]) -> None:
        """Edge of a phase: a plain line at its start."""
        self.board.edge(message)
        if message["edge"] != "start":
            return
        adapter = f" on {text.clean(message['adapter'], 80)}" if message.get("adapter") else ""
        self._phase = f"phase {message['index'] + 1}/{self.board.phases} {text.clean(message['arm'], 20)}{adapter}"
        self._phase_began = time.monotonic()
        self._wipe()
        say(f"{self._phase} ({self._totals()})")

    def show(self) -> None:
        """Refresh the line, on a terminal."""
        if not self.live:
            return
        now = time.monotonic()
        elapsed = f"{now - self._phase_began:.0f}s of {now - self._began:.0f}s"
        line = f"{self._phase} {elapsed} · {self.board.rate():,.0f} tokens/s · {self._totals()}"
        sys.stderr.write(f"{_CLEAR}{line[: _width()]}")
        sys.stderr.flush()
        self._shown = True

    def close(self) -> None:
        """The run has ended."""
        self._wipe()
        say(f"ended after {time.monotonic() - self._began:.0f} s ({self._totals()}); rolling back and judging")

    def _totals(self) -> str:
        board = self.board
        swaps, odd = board.swap_counts.total(), board.odd_swaps()
        failed = board.total("fail") + board.total("info")
        broken = ", ".join(f"{n} {kind}" for kind, n in board.violations().items())
        return (
            f"{board.total('sent')} streams, {board.total('open')} open, {failed} not ok"
            f" · {swaps} swaps{f', {odd} not as wanted' if odd else ''}{f' · {broken}' if broken else ''}"
        )

    def _wipe(self) -> None:
        if self._shown:
            sys.stderr.write(_CLEAR)
            self._shown = False


def _width() -> int:
    try:
        return max(20, os.get_terminal_size(sys.stderr.fileno()).columns - 1)
    except OSError:
        return 79
