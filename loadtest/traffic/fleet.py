"""Several servers of one service: streams are spread over them, an admin operation is one operation on all of them.

Rules
1. An operation goes to every replica at once and is answered when all have answered.
2. It is `ok` when all are `ok`, `fail` when all refused. Anything between is `info`: some replicas serve the new
   version and some do not, so that nobody can say what a stream of the fleet should see.
3. A load that finds the name taken on any replica is `already_loaded` as a whole, when nothing else is wrong.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from loadtest.records import Outcome
from loadtest.traffic.admin import MAX_MESSAGE, Answer


@dataclass(slots=True)
class Spread:
    """Which replica a stream goes to."""

    urls: Sequence[str] = ()  # of the replicas; () for one server
    by_user: bool = False  # a user stays with a replica; else one stream after another goes to the next
    _homes: dict[str, int] = field(default_factory=dict)

    def __call__(self, number: int, user: str) -> int:
        """Index of the replica for stream `number` of `user`."""
        if len(self.urls) < 2:
            return 0
        if not self.by_user:
            return number % len(self.urls)
        return self._homes.setdefault(user, len(self._homes) % len(self.urls))


@dataclass(frozen=True, slots=True)
class Joint:
    """What all replicas together answered; `parts` by replica."""

    outcome: Outcome
    status: int
    reason: str
    message: str
    sent_ns: int
    at_ns: int
    parts: tuple[Answer, ...]


class Member(Protocol):
    """The part of admin.Admin that a fleet needs."""

    async def load(self, name: str, path: str, inplace: bool = False) -> Answer: ...
    async def unload(self, name: str) -> Answer: ...
    async def health(self) -> bool: ...
    async def metrics(self) -> str: ...


class Fleet:
    """Admin operations on all replicas."""

    def __init__(self, members: Sequence[Member], now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._members = tuple(members)
        self._now_ns = now_ns

    async def load(self, name: str, path: str, inplace: bool = False) -> Joint:
        """Load on every replica; `path` as they all see it."""
        return await self._all(m.load(name, path, inplace) for m in self._members)

    async def unload(self, name: str) -> Joint:
        """Unload on every replica."""
        return await self._all(m.unload(name) for m in self._members)

    async def health(self) -> bool:
        """Whether any replica is healthy: one that is gone is a finding, not the end of the run."""
        return any(await asyncio.gather(*(m.health() for m in self._members)))

    async def metrics(self) -> str:
        """The texts of all replicas, one after another: same series add up."""
        return "\n".join(await asyncio.gather(*(m.metrics() for m in self._members)))

    async def _all(self, asked: Iterable[Awaitable[Answer]]) -> Joint:
        sent_ns = self._now_ns()
        return joined(tuple(await asyncio.gather(*asked)), sent_ns)


def joined(parts: tuple[Answer, ...], sent_ns: int) -> Joint:
    """Rules 2 and 3."""
    at_ns = max(p.at_ns for p in parts)
    outcomes = {p.outcome for p in parts}
    odd = [(i, p) for i, p in enumerate(parts) if p.outcome != "ok"]
    if not odd:
        return Joint("ok", parts[0].status, "", parts[0].message, sent_ns, at_ns, parts)
    worst = odd[0][1]
    taken = all(p.reason == "already_loaded" for _, p in odd)
    outcome: Outcome = "fail" if taken or outcomes == {"fail"} else "info"
    reason = worst.reason if outcome == "fail" or outcomes == {"info"} else "partial"
    words = "; ".join(f"replica {i}: {p.reason}: {p.message}" for i, p in odd)
    return Joint(outcome, worst.status, reason, words[:MAX_MESSAGE], sent_ns, at_ns, parts)
