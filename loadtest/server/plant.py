"""Reads `--plant` and runs the hooks of the planted faults."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields

from loadtest.errors import UsageError
from loadtest.server import faults as f
from loadtest.server import faults_wire as w
from loadtest.server.faults import Fault, Host
from loadtest.server.lora import Version
from loadtest.server.state import Emission, Entry, Stream

KNOWN: dict[str, type[Fault]] = {
    "torn": f.Torn,
    "flip": f.Flip,
    "stale": f.Stale,
    "inversion": f.Inversion,
    "prophetic": f.Prophetic,
    "aborted": f.Aborted,
    "wiped": f.Wiped,
    "lost": f.Lost,
    "noop": f.Noop,
    "reverted": f.Reverted,
    "leak": f.Leak,
    "fallback": f.Fallback,
    "base_leak": f.BaseLeak,
    "shared_prefix": f.SharedPrefix,
    "drop_token": w.DropToken,
    "dup_token": w.DupToken,
    "reorder": w.Reorder,
    "cut": w.Cut,
    "error_frame": w.ErrorFrame,
    "short": w.Short,
    "stall": f.Stall,
    "hangover": f.Hangover,
    "die": f.Die,
    "slow_load": f.SlowLoad,
    "hang_load": f.HangLoad,
}


def parse(text: str) -> Faults:
    """The faults named in a JSON list ("" is none). Raises UsageError naming all problems."""
    try:
        items = json.loads(text or "[]")
    except ValueError as error:
        raise UsageError(f"--plant is not JSON: {error}", remedy='give a list such as [{"fault": "stale"}]') from error
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UsageError("--plant is not a list of objects", remedy='give a list such as [{"fault": "stale"}]')
    problems = [problem for n, item in enumerate(items) for problem in _problems(n, item)]
    if problems:
        raise UsageError("; ".join(problems), remedy=f"known faults: {', '.join(KNOWN)}")
    return Faults([KNOWN[item["fault"]](**{k: v for k, v in item.items() if k != "fault"}) for item in items])


def _problems(n: int, item: dict[str, object]) -> list[str]:
    name = item.get("fault")
    if not isinstance(name, str) or name not in KNOWN:
        return [f"--plant[{n}].fault is {name!r}"]
    known = {x.name: type(x.default) for x in fields(KNOWN[name]) if x.init}
    out = []
    for key, value in item.items():
        if key == "fault":
            continue
        if key not in known:
            out.append(f"--plant[{n}].{key} is not a parameter of {name} (it takes {', '.join(known)})")
            continue
        wanted = (int, float) if known[key] is float else known[key]
        if not isinstance(value, wanted) or isinstance(value, bool):
            out.append(f"--plant[{n}].{key} must be {known[key].__name__}, got {value!r}")
    if name == "prophetic" and not item.get("path"):
        out.append(f"--plant[{n}].path is missing: the folder of the version to serve")
    if item.get("who", "all") not in ("all", "bystanders"):
        out.append(f"--plant[{n}].who must be all or bystanders, got {item['who']!r}")
    p = item.get("p", 1)
    if isinstance(p, int | float) and not 0 <= p <= 1:
        out.append(f"--plant[{n}].p must be between 0 and 1, got {p}")
    return out


class Faults:
    """All planted faults as one: each hook of Fault, asked of all of them in the order they were planted."""

    def __init__(self, planted: Sequence[Fault]) -> None:
        self.planted = tuple(planted)
        self._serving = self._with("serve")
        self._pausing = self._with("paused")
        self.pause = bool(self._pausing)  # whether any stream can ever sit out a step
        self._emitting = self._with("emit")

    def _with(self, hook: str) -> list[Fault]:
        return [x for x in self.planted if getattr(type(x), hook) is not getattr(Fault, hook)]

    def refused(self, host: Host, name: str, path: str) -> None:
        """A load has been refused."""
        for fault in self.planted:
            fault.refused(host, name, path)

    def loading(self, host: Host, entry: Entry, before: Entry | None) -> Entry:
        """What is applied instead of `entry`."""
        for fault in self.planted:
            entry = fault.loading(host, entry, before)
        return entry

    def loaded(self, host: Host, entry: Entry, before: Entry | None) -> None:
        """`entry` has been applied in place of `before`."""
        for fault in self.planted:
            fault.loaded(host, entry, before)

    def tick(self, host: Host) -> None:
        """A step begins."""
        for fault in self.planted:
            fault.tick(host)

    def admit(self, host: Host, stream: Stream) -> None:
        """A stream enters the batch."""
        for fault in self.planted:
            fault.admit(host, stream)

    def serve(self, host: Host, running: Sequence[Stream], versions: list[Version | None]) -> list[Version | None]:
        """The version for the next token of each running stream."""
        for fault in self._serving:
            versions = [fault.serve(host, s, v) for s, v in zip(running, versions, strict=True)]
        return versions

    def paused(self, stream: Stream, now: int) -> bool:
        """Does the stream sit out this step?"""
        return any(fault.paused(stream, now) for fault in self._pausing)

    def namespace(self, stream: Stream, space: str) -> str:
        """The prefix cache's namespace for the stream."""
        for fault in self.planted:
            space = fault.namespace(stream, space)
        return space

    def emit(self, emissions: list[Emission]) -> list[Emission]:
        """Tokens are about to leave."""
        for fault in self._emitting:
            for emission in emissions:
                fault.emit(emission)
        return emissions

    def extra_s(self, cost_s: float) -> float:
        """Seconds to add to a step that took `cost_s`."""
        return sum(fault.extra_s(cost_s) for fault in self.planted)

    def load_timing(self) -> tuple[float, float]:
        """Seconds before a load begins, and from its effect to its answer (infinite: never answered)."""
        timings = [fault.load_timing() for fault in self.planted]
        return sum(before for before, _ in timings), sum(after for _, after in timings)
