"""The chaos conductor: plays the phases, swaps adapters, journals every step, and undoes it all at the end.

Rules
1. An operation is journaled and on disk before its bytes leave, and again when its answer is read. What the disk does
   not take does not leave, but for rollbacks: those are worth more than their record.
2. The undo of an adapter's first swap is journaled before that swap. `rollback` plays it however the run ends.
3. One operation at a time per adapter, the operator's included.
4. Every swap names a path that was never loaded: real and sham differ only in content. Sham: the content served now.
5. A swap that timed out (`info`) is not repeated; the next one goes on after its pause.
6. After `stop` no operation begins but rollbacks; one under way has GRACE_S to be answered, then it is `info`.
7. A name that somebody else has loaded is taken over in place, which proves that the server sees our folder, and then
   once more by unload and load: vLLM goes on reading a folder that was loaded in place at every step, and the traffic
   before the first swap would be as slow as that after the last.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from loadtest import records
from loadtest.chaos import actions
from loadtest.errors import FeatureOff, LoadtestError, TargetError, UsageError
from loadtest.plan import PhasePlan, SwapPlan

ROLLBACK_TIMEOUT_S = 10.0
GRACE_S = 2.0  # an in-place load took 75-100 ms on a GPU; a hung one must not hold up Ctrl-C


class Answer(Protocol):
    """What traffic.admin.Admin's calls return."""

    @property
    def outcome(self) -> records.Outcome: ...
    @property
    def status(self) -> int: ...
    @property
    def reason(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def at_ns(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The Answer of an operation that we gave up: it may have happened, or may yet."""

    at_ns: int
    outcome: records.Outcome = "info"
    status: int = 0
    reason: str = "cancelled"
    message: str = "the run ended before the answer came"


class Admin(Protocol):
    """The part of traffic.admin.Admin that swaps need."""

    async def load(self, name: str, path: str, inplace: bool = False) -> Answer: ...
    async def unload(self, name: str) -> Answer: ...


class Emit(Protocol):
    """Journal.emit."""

    def __call__(self, record: records.Record, flush: bool = False) -> bool: ...


@dataclass(frozen=True, slots=True)
class VersionFile:
    """A version on our disk."""

    version: str
    path: str
    sha: str
    markers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Script:
    """Everything the conductor does, decided before the run."""

    url: str
    adapters: Mapping[str, list[VersionFile]]
    phases: tuple[PhasePlan, ...]
    root_local: str
    root_server: str
    mode: str  # "inplace" | "reload"
    timeout_s: float
    max_rank: int
    run_time_s: float | None
    cycle: bool
    replicas: tuple[str, ...] = ()  # URLs of a fleet; () for the server at `url`

    def to_json(self) -> dict[str, Any]:
        """Plain data for the engine's `setup` message."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Script:
        """The script of a `setup` message."""
        adapters = {
            name: [VersionFile(**{**v, "markers": tuple(v["markers"])}) for v in found]
            for name, found in data["adapters"].items()
        }
        phases = tuple(PhasePlan(**{**p, "swaps": tuple(SwapPlan(**s) for s in p["swaps"])}) for p in data["phases"])
        replicas = tuple(data.get("replicas", ()))
        return cls(**{**data, "adapters": adapters, "phases": phases, "replicas": replicas})


@dataclass(slots=True)
class _Adapter:
    """An adapter's state as far as our own operations tell."""

    name: str
    versions: list[VersionFile]
    lock: asyncio.Lock
    current: VersionFile
    next: int = 1  # index of the version that the next real swap loads
    first_path: str = ""  # of v0, as the server sees it
    swapped: bool = False


class Conductor:
    """Plays one script against one server."""

    def __init__(
        self,
        script: Script,
        admin: Admin,
        emit: Emit,
        now_ns: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._script, self._admin, self._emit, self._now_ns, self._sleep = script, admin, emit, now_ns, sleep
        self._op = 0
        self._folders = 0
        self._stop = asyncio.Event()
        self._adapters = {
            name: _Adapter(name, found, asyncio.Lock(), found[0]) for name, found in script.adapters.items() if found
        }

    async def setup(self) -> None:
        """Load the first version of every adapter. Raises TargetError when the server does not take one."""
        self._emit(records.Version("base", "base", "", "", ()))
        for adapter in self._adapters.values():
            for v in {v.version: v for v in adapter.versions}.values():
                self._emit(records.Version(adapter.name, v.version, v.sha, v.path, v.markers))
            await self._first(adapter)

    async def _first(self, adapter: _Adapter) -> None:
        v = adapter.versions[0]
        adapter.first_path = await self._folder(adapter, v.version, lambda path: actions.fresh(Path(v.path), path))
        load = records.Invoke(0, adapter.name, "load", v.version, adapter.first_path, "", "setup", 0)
        answer = await self._operate(load)
        if answer.reason == "already_loaded":  # rule 7
            answer = await self._operate(dataclasses.replace(load, mode="inplace"))
            if answer.outcome == "ok":
                answer = await self._operate(dataclasses.replace(load, mode="reload"))
        if answer.outcome != "ok":
            kind = FeatureOff if answer.reason == "feature_off" else TargetError
            remedy = "see target.adapters_dir: the server must see this path" if answer.reason == "not_found" else ""
            words = f"{answer.status or answer.reason}: {answer.message}"
            raise kind(f"the server did not load {adapter.name} from {adapter.first_path} ({words})", remedy=remedy)

    async def play(self) -> None:
        """Play the phases to their end, to the run's time limit, or to `stop`; then, with time left, wait for it."""
        end = None if self._script.run_time_s is None else self._now_ns() + int(self._script.run_time_s * 1e9)
        for phase in self._script.phases:
            if self._over(end):
                return
            self._emit(records.Phase(phase.index, _arm(phase.arm), "start", self._now_ns(), phase.adapter))
            try:
                await self._phase(phase, end)
            finally:
                now = self._now_ns()
                self._emit(records.Phase(phase.index, _arm(phase.arm), "end", now, phase.adapter), flush=True)
        if end is not None:
            await self._wait_until(end, end)

    def _over(self, end: int | None) -> bool:
        return self._stop.is_set() or (end is not None and self._now_ns() >= end)

    async def _phase(self, phase: PhasePlan, end: int | None) -> None:
        start = due = self._now_ns()
        for swap in phase.swaps:
            due += int(swap.gap_s * 1e9)
            await self._wait_until(due, end)
            if self._over(end):
                return
            due = max(due, self._now_ns())  # a slow ack delays what follows: one operation at a time
            await self._swap(self._adapters[phase.adapter], phase, swap.how)
        if phase.duration_s is not None:
            await self._wait_until(start + int(phase.duration_s * 1e9), end)

    async def _wait_until(self, at_ns: int, end: int | None) -> None:
        """Sleep until `at_ns`, or until the run is over if that comes first."""
        at_ns = at_ns if end is None else min(at_ns, end)
        delay = (at_ns - self._now_ns()) / 1e9
        if delay <= 0 or self._stop.is_set():
            return
        sleeping = asyncio.ensure_future(self._sleep(delay))
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((sleeping, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            stopping.cancel()

    async def _swap(self, adapter: _Adapter, phase: PhasePlan, how: str) -> None:
        async with adapter.lock:
            if self._stop.is_set():  # while an operator had the lock
                return
            if phase.arm == "bad":
                await self._bad(adapter, phase, how)
            else:
                version = self._next(adapter) if phase.arm == "real" else adapter.current
                await self._good(adapter, version, _arm(phase.arm), "scenario", phase.index)

    def _next(self, adapter: _Adapter) -> VersionFile:
        if adapter.next >= len(adapter.versions) and not self._script.cycle:
            raise UsageError(f"{adapter.name} has no version left to swap to", remedy="give it more versions")
        index = self._following(adapter)
        adapter.next = index + 1
        return adapter.versions[index % len(adapter.versions)]

    def _following(self, adapter: _Adapter) -> int:
        """Index of the version whose turn it is. One that an operator loaded out of turn would be no swap at all."""
        count = len(adapter.versions)
        served = adapter.versions[adapter.next % count].version == adapter.current.version
        return adapter.next + (served and count > 1)

    async def hotfix(self, adapter: str, version: str | None = None) -> None:
        """One swap by an operator: the next version, or the one named. Raises UsageError for an unknown name."""
        state = self._adapters.get(adapter)
        if state is None:
            raise UsageError(f"no adapter {adapter!r}", remedy=f"choose one of {', '.join(self._adapters)}")
        found = [v for v in state.versions if v.version == version]
        if version is not None and not found:
            raise UsageError(f"{adapter} has no version {version!r}", remedy="leave it out for the next one")
        async with state.lock:
            if self._stop.is_set():
                raise UsageError("the run is ending", remedy="hotfix while it runs")
            await self._good(state, found[0] if found else self._next(state), "real", "operator", -1)

    async def _good(self, adapter: _Adapter, version: VersionFile, arm: records.Arm, by: Any, phase: int) -> None:
        path = await self._folder(adapter, version.version, lambda p: actions.fresh(Path(version.path), p))
        mode: Any = self._script.mode
        self._owe(adapter)
        invoke = records.Invoke(0, adapter.name, mode, version.version, path, arm, by, 0, phase)
        answer = await self._operate(invoke)
        if answer.outcome == "ok":
            adapter.current = version

    async def _bad(self, adapter: _Adapter, phase: PhasePlan, how: str) -> None:
        # Another content than the one that is served: were it to take effect all the same, streams would show it.
        made_of, rank = adapter.versions[self._following(adapter) % len(adapter.versions)], self._script.max_rank
        source, label = Path(made_of.path), records.BAD + how
        path = await self._folder(adapter, how, lambda p: actions.bad(how, source, p, rank))
        self._owe(adapter)
        invoke = records.Invoke(
            0, adapter.name, "inplace", label, path, "bad", "scenario", 0, phase.index, made_of.version
        )
        await self._operate(invoke)

    async def _folder(self, adapter: _Adapter, label: str, make: Callable[[Path], None]) -> str:
        """A path of this swap's own under the root; what the server is told."""
        self._folders += 1
        name = f"{self._folders:04d}-{label}"
        await asyncio.to_thread(make, Path(self._script.root_local) / adapter.name / name)
        return f"{self._script.root_server}/{adapter.name}/{name}"

    async def _operate(self, invoke: records.Invoke) -> Answer:
        """Journal, send, journal the answer, whatever happens meanwhile."""
        self._op += 1
        invoke = dataclasses.replace(invoke, op=self._op, invoked_ns=self._now_ns())
        if not self._emit(invoke, flush=True) and invoke.by != "rollback":
            raise _unwritten(invoke.adapter)
        answer: Answer | None = None
        gone = 0
        try:
            if invoke.mode == "reload":  # the unload is part of the operation
                answer = await self._unless_stopped(self._admin.unload(invoke.adapter), invoke)
                gone = answer.at_ns if answer.outcome == "ok" else 0
            if answer is None or answer.outcome == "ok" or answer.reason == "not_found":
                answer = None
                load = self._admin.load(invoke.adapter, invoke.path, inplace=invoke.mode == "inplace")
                answer = await self._unless_stopped(load, invoke)
        finally:
            a = answer or Unanswered(self._now_ns())
            self._emit_parts(invoke.op, getattr(a, "parts", ()))
            self._emit(records.Ack(invoke.op, a.outcome, a.at_ns, a.status, a.reason, a.message, gone), flush=True)
        return answer

    def _emit_parts(self, op: int, parts: Sequence[Answer]) -> None:
        """What each replica of a fleet answered."""
        for i, p in enumerate(parts):
            self._emit(records.ReplicaAck(op, i, p.outcome, p.at_ns, p.status, p.reason, p.message))

    async def _unless_stopped(self, sending: Coroutine[Any, Any, Answer], invoke: records.Invoke) -> Answer:
        """The answer, or rule 6."""
        if invoke.by == "rollback":
            return await sending
        task, stopping = asyncio.ensure_future(sending), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                patience = asyncio.ensure_future(self._sleep(GRACE_S))
                await asyncio.wait((task, patience), return_when=asyncio.FIRST_COMPLETED)
                patience.cancel()
            return task.result() if task.done() else Unanswered(self._now_ns())
        finally:
            stopping.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))

    def _owe(self, adapter: _Adapter) -> None:
        if not adapter.swapped:
            if not self._undo(adapter, "planned"):
                raise _unwritten(adapter.name)
            adapter.swapped = True

    def _undo(self, adapter: _Adapter, state: Any) -> bool:
        """Whether it is on record."""
        v = adapter.versions[0]
        written = True
        for url in self._script.replicas or (self._script.url,):
            undo = records.Undo(adapter.name, v.version, adapter.first_path, v.path, state, self._now_ns(), url)
            written &= self._emit(undo, flush=True)
        return written

    def stop(self) -> None:
        """No more swaps; `play` ends soon."""
        self._stop.set()

    async def rollback(self) -> None:
        """Put the first version of every swapped adapter back, in place. Never raises for a refusal."""
        self.stop()
        for adapter in self._adapters.values():
            if adapter.swapped:
                async with adapter.lock:
                    await self._roll_back(adapter)

    async def _roll_back(self, adapter: _Adapter) -> None:
        v = adapter.versions[0]
        invoke = records.Invoke(0, adapter.name, "inplace", v.version, adapter.first_path, "", "rollback", 0)
        try:
            async with asyncio.timeout(ROLLBACK_TIMEOUT_S):
                answer = await self._operate(invoke)
        except TimeoutError:
            self._undo(adapter, "failed")
            return
        adapter.swapped = answer.outcome != "ok"
        self._undo(adapter, "failed" if adapter.swapped else "played")


def _unwritten(adapter: str) -> LoadtestError:
    words = f"the history cannot be written, so {adapter} was left as it is"
    return LoadtestError(words, remedy="make room on the disk that holds the results")


def _arm(arm: str) -> Any:
    """A plan's arm as records spell it."""
    return arm
