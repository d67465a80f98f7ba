"""Messages between a master and its workers, and the master's list of who takes part in a run.

    worker  ── hello ──────────────────────────► master      at init; a worker that is late asks so for the run
    worker  ◄─ run {info, engine, share, of} ─── master      start your engine
    worker  ── ready {run, error} ─────────────► master      it runs, or why not
    worker  ── news {engine, message} ─────────► master      progress, trouble
    worker  ◄─ stop {run, reason, drain_s, now}  master      now: stop users, close the engine; else: so it will end
    worker  ◄─ swapped {run, swap} ───────────── master      a swap has ended: its engine judges streams by it
    worker  ── closed {run} ───────────────────► master      the journal is closed

Locust delivers in order per worker, but drops a type that nobody has registered yet: hence `hello`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gevent
from locust.runners import STATE_MISSING

_NAMES = ("hello", "run", "ready", "news", "stop", "swapped", "closed")
HELLO, RUN, READY, NEWS, STOP, SWAPPED, CLOSED = (f"loadtest_{name}" for name in _NAMES)
READY_S = 60.0  # guessed: every worker starts one process
_POLL_S = 0.05


@dataclass
class Member:
    """One worker in a run."""

    client: str
    engine: str
    share: int
    state: str = "asked"  # "asked" | "ready" | "refused" | "closed" | "missing"
    error: str = ""


class Roster:
    """The workers of one run. Lives on the master."""

    def __init__(self, runner: Any, info: dict[str, Any]) -> None:
        self.runner = runner
        self.info = info
        self.run = str(info["folder"])
        self.members: dict[str, Member] = {}
        self._of = 1

    def summon(self) -> None:
        """Ask every connected worker to start its engine."""
        clients = sorted(self.runner.clients, key=self.runner.get_worker_index)
        self._of = max(1, len(clients))
        for client in clients:
            self._ask(client)

    def hello(self, client: str) -> None:
        """A worker has come up: it may have missed `run`, or be late. A late one takes no part of the arrivals."""
        member = self.members.get(client)
        if member is None or member.state == "asked":
            self._ask(client)

    def ready(self, client: str, data: dict[str, Any]) -> None:
        """A worker's answer to `run`."""
        member = self.members.get(client)
        if member is None or data["run"] != self.run or member.state != "asked":
            return
        member.error = str(data.get("error") or "")
        member.state = "refused" if member.error else "ready"

    def closed(self, client: str, data: dict[str, Any]) -> None:
        """A worker's journal is closed."""
        if client in self.members and data["run"] == self.run:
            self.members[client].state = "closed"

    def await_ready(self) -> list[Member]:
        """Wait until no worker is `asked`; those that did not come up."""
        self._poll(lambda: any(m.state == "asked" for m in self._present()), READY_S)
        return [m for m in self.members.values() if m.state in ("asked", "refused")]

    def announce(self, reason: str) -> None:
        """Tell the workers why they are about to be stopped by Locust."""
        self._tell_stop(reason, 0.0, now=False)

    def dismiss(self, reason: str, drain_s: float, timeout_s: float) -> None:
        """Tell every worker to stop its users and close its journal, and wait for those that are still there."""
        self._tell_stop(reason, drain_s, now=True)
        self._poll(lambda: any(m.state in ("ready", "asked") for m in self._present()), timeout_s)

    def swapped(self, swap: dict[str, Any]) -> None:
        """Tell the workers' engines of a swap that ours has made."""
        for member in self._present():
            if member.state == "ready":
                self.runner.send_message(SWAPPED, {"run": self.run, "swap": swap}, client_id=member.client)

    def newly_missing(self) -> list[Member]:
        """Workers that have gone without closing their journal; each is told once."""
        gone = [m for m in self.members.values() if m.state in ("ready", "asked") and not self._here(m)]
        for member in gone:
            member.state = "missing"
        return gone

    def unclosed(self) -> list[Member]:
        """Workers that should have closed their journal and have not."""
        return [m for m in self.members.values() if m.state in ("ready", "asked")]

    def _tell_stop(self, reason: str, drain_s: float, *, now: bool) -> None:
        data = {"run": self.run, "reason": reason, "drain_s": drain_s, "now": now}
        for member in self._present():
            if member.state in ("ready", "asked"):
                self.runner.send_message(STOP, data, client_id=member.client)

    def _ask(self, client: str) -> None:
        share = len(self.members)
        member = self.members.setdefault(client, Member(client, f"e{share + 1}", share))
        data = {"info": self.info, "engine": member.engine, "share": member.share, "of": self._of}
        self.runner.send_message(RUN, data, client_id=client)

    def _here(self, member: Member) -> bool:
        node = self.runner.clients.get(member.client)
        return node is not None and node.state != STATE_MISSING

    def _present(self) -> list[Member]:
        return [m for m in self.members.values() if self._here(m)]

    def _poll(self, waiting: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while waiting() and time.monotonic() < deadline:
            gevent.sleep(_POLL_S)
