"""Ctrl-C and SIGTERM as a KeyboardInterrupt in the main greenlet, at a point where it waits.

Python's own handler raises in whatever code happens to run: in the greenlet that reads an engine's messages, inside a
lock, in a hook around a fork. The run would then hang or end without its rollback. gevent's signal watchers run when
the hub does, which is when every greenlet is at a switch.
"""

from __future__ import annotations

import signal
from typing import Any

import gevent

from loadtest.harness import say


class Interrupts:
    """The first signal interrupts, the second is answered with words, later ones interrupt again."""

    def __init__(self) -> None:
        self._count = 0
        self._term: Any = None

    def listen(self, *, term: bool) -> None:
        """Take Ctrl-C over; SIGTERM too when Locust has not done so yet."""
        gevent.signal_handler(signal.SIGINT, self._interrupt)
        if term:
            self._term = gevent.signal_handler(signal.SIGTERM, self._interrupt)

    def leave_term(self) -> None:
        """SIGTERM is Locust's from now on."""
        if self._term is not None:
            self._term.cancel()
            self._term = None

    def _interrupt(self) -> None:
        self._count += 1
        if self._count == 2:
            say("still rolling back and judging; press Ctrl-C again to give up")
            return
        gevent.get_hub().handle_system_error(KeyboardInterrupt, KeyboardInterrupt())
