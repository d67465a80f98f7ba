"""Swap policies: which version serves a stream in a step, once an adapter has been replaced in place.

A policy sees admissions, departures and loads, and is asked each step. All of it happens in the engine's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from loadtest.server.lora import Version
from loadtest.server.state import Entry, Stream

Entries = Mapping[str, Entry]
Read = Callable[[str], Version]  # reads a folder again; raises when it is gone


class Pin:
    """A stream keeps the version it was admitted with to its end; admissions after the load get the new one."""

    waits = False  # does an in-place load wait until the adapter's running streams have ended?

    def loaded(self, entry: Entry, running: Sequence[Stream]) -> None:
        """`entry` has been applied."""

    def unloaded(self, entry: Entry, running: Sequence[Stream]) -> None:
        """The name of `entry` has been forgotten; its streams run on."""

    def admit(self, stream: Stream, entries: Entries) -> None:
        """`stream` enters the batch; its `entry` is the one of its arrival."""
        stream.entry = entries.get(stream.adapter, stream.entry)  # unloaded meanwhile: what it arrived with

    def leave(self, stream: Stream, running: Sequence[Stream]) -> None:
        """`stream` has left the batch; `running` no longer holds it."""

    def serve(self, running: Sequence[Stream]) -> list[Version | None]:
        """The version that computes each stream in this step; None is the base."""
        return [s.entry.version if s.entry else None for s in running]


class Switch(Pin):
    """At the load all running streams of the adapter change to the new version; their cached keys and values stay."""

    def loaded(self, entry: Entry, running: Sequence[Stream]) -> None:
        for stream in running:
            if stream.entry is not None and stream.entry.ident == entry.ident:
                stream.entry = entry


class Drain(Pin):
    """An in-place load waits until running streams of the adapter have ended; new ones queue behind it."""

    waits = True


class Sticky(Pin):
    """What vLLM 0.15 to 0.32 does.

    One slot of weights per loaded name. Each request carries the path the registry had when it arrived; per name, what
    the request that entered the batch last carries decides for all. When that one ends, the last to enter of those
    that remain decides: if it carries an older path, every running stream flips back. If the deciding load was in
    place, its folder is read into the slot again at every step, and steps stay slow until unload and load.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._slots: dict[int, Version | None] = {}
        self._carried: dict[int, Entry] = {}
        self._gone: set[int] = set()  # unloaded, with streams still running

    def loaded(self, entry: Entry, running: Sequence[Stream]) -> None:
        self._slots[entry.ident] = entry.version

    def unloaded(self, entry: Entry, running: Sequence[Stream]) -> None:
        self._gone.add(entry.ident)
        self._tidy(entry.ident, running)

    def admit(self, stream: Stream, entries: Entries) -> None:
        if stream.entry is None:
            return
        ident = stream.entry.ident
        self._carried[ident] = stream.entry
        if ident not in self._slots:  # unloaded while it queued
            self._slots[ident] = stream.entry.version
            self._gone.add(ident)

    def leave(self, stream: Stream, running: Sequence[Stream]) -> None:
        if stream.entry is not None:
            self._tidy(stream.entry.ident, running)

    def _tidy(self, ident: int, running: Sequence[Stream]) -> None:
        remaining = [s.entry for s in running if s.entry is not None and s.entry.ident == ident]
        if remaining:
            self._carried[ident] = remaining[-1]
            return
        self._carried.pop(ident, None)
        if ident in self._gone:
            self._gone.discard(ident)
            self._slots.pop(ident, None)

    def serve(self, running: Sequence[Stream]) -> list[Version | None]:
        for ident, entry in self._carried.items():
            if entry.inplace and entry.version is not None:
                self._slots[ident] = self._read(entry.path)
        return [self._slots[s.entry.ident] if s.entry else None for s in running]


NAMES = ("pin", "switch", "sticky", "drain")


def make(name: str, read: Read) -> Pin:
    """The policy called `name`. Raises KeyError for a name that is not in NAMES."""
    plain: dict[str, type[Pin]] = {"pin": Pin, "switch": Switch, "drain": Drain}
    return Sticky(read) if name == "sticky" else plain[name]()
