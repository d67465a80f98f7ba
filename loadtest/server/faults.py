"""Plantable faults: each is one small class that breaks one promise, so that the tester can be tested.

`--plant '[{"fault": "stale", "ms": 500, "p": 0.1, "seed": 3}]'`. Every fault takes `p` (chance per opportunity) or
`every` (each n-th opportunity), `seed`, and `adapter` (only this one; "" is all). Each class names its opportunity.
Faults of what leaves the engine are in faults_wire.py; plant.py reads the option and runs the hooks.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from loadtest.server.lora import BadAdapter, NoAdapter, Version
from loadtest.server.state import Emission, Entry, Stream

MS = 1_000_000  # ns


class Host(Protocol):
    """What a fault may touch of the engine."""

    entries: dict[str, Entry]
    past: dict[int, deque[Entry]]
    now_ns: Callable[[], int]

    def read(self, path: str, limited: bool = True) -> Version:
        """Read a folder, with or without the rank limit."""

    def put(self, entry: Entry) -> None:
        """Make an entry what its name stands for, faults left out."""


@dataclass(slots=True)
class Fault:
    """Base: hooks that do nothing. Subclasses override the ones they need."""

    p: float = 1.0
    every: int = 0
    seed: int = 0
    adapter: str = ""
    _rng: random.Random = field(init=False, repr=False)
    _seen: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    def hit(self) -> bool:
        """Decide one opportunity."""
        self._seen += 1
        return self._seen % self.every == 0 if self.every else self._rng.random() < self.p

    def concerns(self, name: str) -> bool:
        """Is an adapter a possible victim? The base ("") never is."""
        return bool(name) and self.adapter in ("", name)

    def refused(self, host: Host, name: str, path: str) -> None:
        """A load has been refused."""

    def loading(self, host: Host, entry: Entry, before: Entry | None) -> Entry:
        """`entry` is about to be applied; what is applied instead."""
        return entry

    def loaded(self, host: Host, entry: Entry, before: Entry | None) -> None:
        """`entry` has been applied in place of `before`."""

    def tick(self, host: Host) -> None:
        """A step begins."""

    def admit(self, host: Host, stream: Stream) -> None:
        """A stream enters the batch."""

    def serve(self, host: Host, stream: Stream, version: Version | None) -> Version | None:
        """The version for a stream's next token."""
        return version

    def paused(self, stream: Stream, now: int) -> bool:
        """Does the stream sit out this step?"""
        return False

    def namespace(self, stream: Stream, space: str) -> str:
        """The prefix cache's namespace for the stream."""
        return space

    def emit(self, emission: Emission) -> None:
        """A token is about to leave."""

    def extra_s(self, cost_s: float) -> float:
        """Seconds to add to a step that took `cost_s`."""
        return 0.0

    def load_timing(self) -> tuple[float, float]:
        """Seconds before a load begins, and from its effect to its answer (infinite: never answered)."""
        return 0.0, 0.0


def _next(host: Host, stream: Stream) -> Entry | None:
    """The entry applied right after the stream's own, if any."""
    if stream.entry is None:
        return None
    later = [e for e in host.past.get(stream.entry.ident, ()) if e.at_ns > stream.entry.at_ns]
    return later[0] if later else None


def _previous(host: Host, entry: Entry | None) -> Entry | None:
    earlier = [e for e in host.past.get(entry.ident, ()) if e.at_ns < entry.at_ns] if entry else []
    return earlier[-1] if earlier else None


@dataclass(slots=True)
class Torn(Fault):
    """A stream exposed to a swap goes over to the next version from token `at` on. Opportunity: such a stream."""

    at: int = 0

    def serve(self, host: Host, stream: Stream, version: Version | None) -> Version | None:
        if not self.concerns(stream.adapter) or len(stream.ids) < self.at:
            return version
        if (after := _next(host, stream)) is None:
            return version
        if id(self) not in stream.marks:
            stream.marks[id(self)] = len(stream.ids) if self.hit() else -1
        began = stream.marks[id(self)]
        return after.version if began >= 0 and self.over(len(stream.ids) - began) else version

    def over(self, tokens: int) -> bool:
        """Does the foreign version serve the token that is `tokens` after the tear?"""
        return True


@dataclass(slots=True)
class Flip(Torn):
    """As torn, and back to the old version after `length` tokens."""

    length: int = 4

    def over(self, tokens: int) -> bool:
        return tokens < self.length


@dataclass(slots=True)
class Stale(Fault):
    """New streams get the superseded version until `ms` after the swap. Opportunity: a stream admitted by then."""

    ms: float = 1000.0

    def admit(self, host: Host, stream: Stream) -> None:
        entry = host.entries.get(stream.adapter)
        before = _previous(host, entry)
        if entry is None or before is None or not self.concerns(stream.adapter):
            return
        if host.now_ns() - entry.at_ns < self.ms * MS and self.hit():
            stream.marks[id(self)] = before

    def serve(self, host: Host, stream: Stream, version: Version | None) -> Version | None:
        before: Entry | None = stream.marks.get(id(self))
        return before.version if before else version


@dataclass(slots=True)
class Inversion(Stale):
    """The ack comes `ms` after the effect; meanwhile some new streams get the new version and some the old one."""

    ms: float = 300.0
    p: float = 0.5

    def load_timing(self) -> tuple[float, float]:
        return 0.0, self.ms / 1000.0


@dataclass(slots=True)
class Prophetic(Fault):
    """The folder `path` serves streams before it was ever loaded. Opportunity: a stream admitted before that."""

    path: str = ""
    _version: Version | None = field(init=False, default=None)
    _known: bool = field(init=False, default=False)

    def loaded(self, host: Host, entry: Entry, before: Entry | None) -> None:
        self._version = self._version or host.read(self.path)
        self._known |= entry.version is not None and entry.version.sha == self._version.sha

    def admit(self, host: Host, stream: Stream) -> None:
        if self.concerns(stream.adapter) and not self._known and self.hit():
            stream.marks[id(self)] = True

    def serve(self, host: Host, stream: Stream, version: Version | None) -> Version | None:
        return self._version if id(self) in stream.marks else version


@dataclass(slots=True)
class Aborted(Fault):
    """A refused in-place load takes effect, if its folder can be read at all. Opportunity: a refused load."""

    def refused(self, host: Host, name: str, path: str) -> None:
        before = host.entries.get(name)
        if before is None or not self.concerns(name) or not self.hit():
            return
        try:
            version = host.read(path, limited=False)
        except (NoAdapter, BadAdapter):
            return
        host.put(replace(before, version=version, at_ns=host.now_ns()))


@dataclass(slots=True)
class Wiped(Fault):
    """A refused load removes the adapter. Opportunity: a refused load of a loaded name."""

    def refused(self, host: Host, name: str, path: str) -> None:
        if name in host.entries and self.concerns(name) and self.hit():
            del host.entries[name]


@dataclass(slots=True)
class Lost(Fault):
    """A swap is acked and never applied. Opportunity: a swap."""

    def loading(self, host: Host, entry: Entry, before: Entry | None) -> Entry:
        if before is None or not self.concerns(entry.name) or not self.hit():
            return entry
        return replace(entry, version=before.version)


@dataclass(slots=True)
class Noop(Fault):
    """A swap is acked and the base answers from then on. Opportunity: a swap."""

    def loading(self, host: Host, entry: Entry, before: Entry | None) -> Entry:
        if before is None or not self.concerns(entry.name) or not self.hit():
            return entry
        return replace(entry, version=None)


@dataclass(slots=True)
class Reverted(Fault):
    """The superseded version comes back `ms` after the swap. Opportunity: a swap."""

    ms: float = 1000.0
    _due: list[tuple[int, Entry, Entry]] = field(init=False, default_factory=list)

    def loaded(self, host: Host, entry: Entry, before: Entry | None) -> None:
        if before is not None and self.concerns(entry.name) and self.hit():
            self._due.append((entry.at_ns + int(self.ms * MS), entry, before))

    def tick(self, host: Host) -> None:
        now = host.now_ns()
        for at, entry, before in [due for due in self._due if due[0] <= now]:
            self._due.remove((at, entry, before))
            if host.entries.get(entry.name) is entry:  # not if it was swapped again meanwhile
                host.put(replace(entry, version=before.version, at_ns=now))


@dataclass(slots=True)
class Leak(Fault):
    """A single token comes from another loaded adapter. Opportunity: a token while there is another."""

    p: float = 0.001

    def serve(self, host: Host, stream: Stream, version: Version | None) -> Version | None:
        others = [e for e in host.entries.values() if e.name != stream.adapter]
        if not others or not self.concerns(stream.adapter) or not self.hit():
            return version
        return self._rng.choice(others).version


@dataclass(slots=True)
class Fallback(Fault):
    """The base answers a whole stream of an adapter. Opportunity: a stream."""

    def admit(self, host: Host, stream: Stream) -> None:
        if self.concerns(stream.adapter) and self.hit():
            stream.marks[id(self)] = True

    def serve(self, host: Host, stream: Stream, version: Version | None) -> Version | None:
        return None if id(self) in stream.marks else version


@dataclass(slots=True)
class BaseLeak(Fault):
    """A loaded adapter answers a whole stream of the base. Opportunity: such a stream."""

    def admit(self, host: Host, stream: Stream) -> None:
        loaded = [e for e in host.entries.values() if self.concerns(e.name)]
        if not stream.adapter and loaded and self.hit():
            stream.marks[id(self)] = self._rng.choice(loaded).version

    def serve(self, host: Host, stream: Stream, version: Version | None) -> Version | None:
        found: Version | None = stream.marks.get(id(self), version)
        return found


@dataclass(slots=True)
class SharedPrefix(Fault):
    """All versions of a name share prefix blocks. Opportunity: a prompt."""

    def namespace(self, stream: Stream, space: str) -> str:
        return f"name:{stream.adapter}" if self.concerns(stream.adapter) and self.hit() else space


@dataclass(slots=True)
class Stall(Fault):
    """At a swap streams pause for `ms`: all of them, or only the bystanders. Opportunity: a swap."""

    ms: float = 500.0
    who: str = "all"
    _until: int = field(init=False, default=0)
    _swapped: str = field(init=False, default="")

    def loaded(self, host: Host, entry: Entry, before: Entry | None) -> None:
        if before is not None and self.concerns(entry.name) and self.hit():
            self._until, self._swapped = entry.at_ns + int(self.ms * MS), entry.name

    def paused(self, stream: Stream, now: int) -> bool:
        return now < self._until and (self.who == "all" or stream.adapter != self._swapped)


@dataclass(slots=True)
class Hangover(Fault):
    """After the first swap every step costs `percent` more."""

    percent: float = 100.0
    _armed: bool = field(init=False, default=False)

    def loaded(self, host: Host, entry: Entry, before: Entry | None) -> None:
        self._armed = self._armed or (before is not None and self.concerns(entry.name))

    def extra_s(self, cost_s: float) -> float:
        return cost_s * self.percent / 100.0 if self._armed else 0.0


@dataclass(slots=True)
class Die(Fault):
    """The process ends at the first step after `n` swaps."""

    n: int = 1
    _swaps: int = field(init=False, default=0)

    def loaded(self, host: Host, entry: Entry, before: Entry | None) -> None:
        self._swaps += before is not None and self.concerns(entry.name)

    def tick(self, host: Host) -> None:
        if self._swaps >= self.n:
            os._exit(1)


@dataclass(slots=True)
class SlowLoad(Fault):
    """A load begins `ms` late. Opportunity: a load."""

    ms: float = 1000.0

    def load_timing(self) -> tuple[float, float]:
        return (self.ms / 1000.0 if self.hit() else 0.0), 0.0


@dataclass(slots=True)
class HangLoad(Fault):
    """A load is never answered, yet applied `ms` later. Opportunity: a load."""

    ms: float = 0.0

    def load_timing(self) -> tuple[float, float]:
        return (self.ms / 1000.0, float("inf")) if self.hit() else (0.0, 0.0)
