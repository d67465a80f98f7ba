"""Where the users of this Locust process find the run they belong to. One seat per process.

Users may be spawned before their engine is ready (a worker is told to spawn while its run information is on its way):
they wait here. Between runs the seat is empty.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import gevent.event
from locust.exception import StopUser

from loadtest import plan, scenario
from loadtest.swarm.link import Link

WAIT_S = 120.0  # guessed: the master starts a server and forges adapters before it tells workers anything
_LATE = 100_000  # more users than one process can carry


class Running:
    """One run as one process sees it: its engine, its scenario, its share of the traffic."""

    def __init__(self, link: Link, info: dict[str, Any], share: int, of: int) -> None:
        """`info`: harness.Session.run_info(); `share` of `of`: this process's index among those that make traffic."""
        self.link = link
        self.info = info
        self.share, self.of = share, of
        self.scenario = scenario.load(info["scenario"])
        self._late = share >= of  # came after the shares were cut: numbers of its own, no part of the arrivals
        self._first = share * _LATE if self._late else share
        self._users = 0
        self._arriving = False

    def next_user(self) -> int:
        """A number that no other user of the run has, in any process."""
        number = self._first + self._users * self.of
        self._users += 1
        return number

    def requests(self, user: int) -> Iterator[plan.Request]:
        """What this user sends, without end."""
        drawn: Iterator[plan.Request] = plan.requests(self.scenario, self.info["seed"], user, self.info["vocab"])
        return drawn

    def think_s(self, user: int) -> Callable[[], float]:
        """Draws the seconds between two streams of this user, as the scenario says."""
        think, draw = self.scenario.traffic.think, random.Random(f"think {self.info['seed']} {user}")
        return lambda: draw.uniform(think.lo, think.hi)

    def arrive(self) -> None:
        """Start this process's share of an open-loop scenario's arrivals, once."""
        if self.scenario.traffic.arrivals is None or self._arriving or self._late:
            return
        self._arriving = True
        keys = ("scenario", "seed", "vocab")
        message = {key: self.info[key] for key in keys}
        self.link.tell({"op": "arrivals", **message, "share": self.share, "of": self.of})


class Seat:
    """Empty, or taken by a run."""

    def __init__(self) -> None:
        self.running: Running | None = None
        self._taken = gevent.event.Event()

    def take(self, running: Running) -> None:
        """The engine is ready: let the users go."""
        self.running = running
        self._taken.set()

    def leave(self) -> None:
        """The run is over."""
        self._taken.clear()
        self.running = None

    def wait(self) -> Running:
        """The current run, once its engine is ready. Ends the user when none comes."""
        while self.running is None:
            if not self._taken.wait(WAIT_S):
                raise StopUser()
        return self.running


_SEAT = Seat()


def current() -> Seat:
    """This process's seat."""
    return _SEAT
