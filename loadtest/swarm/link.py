"""An engine process of this Locust process, by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from loadtest.traffic.ipc import EngineHandle

Message = dict[str, Any]


class Link(EngineHandle):
    """Started at construction. `on_news(link, message)` and `on_death(link)` run in its reader and must not block."""

    def __init__(self, name: str, on_news: Callable[[Link, Message], None], on_death: Callable[[Link], None]) -> None:
        super().__init__(lambda message: on_news(self, message), lambda: on_death(self))
        self.name = name
        self.start()

    def tell(self, message: Message) -> None:
        """Send; a dead engine swallows it, for its owner has been told of the death."""
        with contextlib.suppress(BrokenPipeError):
            self.send(message)
