"""The conductor on a virtual clock, against a server that keeps what it was told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from loadtest import records
from loadtest.chaos.conductor import Conductor, Script, VersionFile
from loadtest.errors import LoadtestError, TargetError, UsageError
from loadtest.plan import PhasePlan, SwapPlan


@dataclass
class Clock:
    ns: int = 1_000_000_000

    def now(self) -> int:
        return self.ns

    async def sleep(self, seconds: float) -> None:
        self.ns += int(seconds * 1e9)
        await asyncio.sleep(0)


@dataclass(frozen=True)
class Said:
    outcome: records.Outcome
    status: int
    reason: str
    message: str
    at_ns: int


@dataclass
class Server:
    """Refuses paths that are not there, times out when told to, and knows how many calls overlap."""

    clock: Clock
    journal: list[records.Record]
    calls: list[tuple[str, str, bool, int]] = field(default_factory=list)
    loaded: dict[str, str] = field(default_factory=dict)
    silent: set[int] = field(default_factory=set)

    async def load(self, name: str, path: str, inplace: bool = False) -> Said:
        self.calls.append((name, path, inplace, len(self.journal)))
        await self.clock.sleep(0.1)
        if len(self.calls) in self.silent:
            return Said("info", 0, "timeout", "", self.clock.ns)
        if not (Path(path) / "adapter_config.json").is_file():
            return Said("fail", 404, "not_found", "no adapter", self.clock.ns)
        if name in self.loaded and not inplace:
            return Said("fail", 400, "already_loaded", "", self.clock.ns)
        self.loaded[name] = path
        return Said("ok", 200, "", "", self.clock.ns)

    async def unload(self, name: str) -> Said:
        await self.clock.sleep(0.1)
        self.loaded.pop(name)
        return Said("ok", 200, "", "", self.clock.ns)


def versions(root: Path, count: int = 4) -> list[VersionFile]:
    found = []
    for k in range(count):
        folder = root / f"src-v{k}"
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(f'{{"v": {k}}}')
        found.append(VersionFile(f"v{k}", str(folder), f"sha{k}", (100 + k,)))
    return found


PHASES = (
    PhasePlan(0, "aa", "", 5.0, ()),
    PhasePlan(1, "sham", "a", None, (SwapPlan(1.0, ""),)),
    PhasePlan(2, "real", "a", None, (SwapPlan(1.0, ""), SwapPlan(2.0, ""))),
    PhasePlan(3, "bad", "a", None, (SwapPlan(1.0, "missing"),)),
)


def build(root: Path, **changes: object) -> tuple[Conductor, Server, list[records.Record], Clock]:
    clock, journal = Clock(), list[records.Record]()
    server = Server(clock, journal)
    fields = {
        "url": "http://x", "adapters": {"a": versions(root)}, "phases": PHASES, "root_local": str(root / "swaps"),
        "root_server": str(root / "swaps"), "mode": "inplace", "timeout_s": 5.0, "max_rank": 64, "run_time_s": None,
        "cycle": True,
    }  # fmt: skip
    script = Script.from_json(Script(**{**fields, **changes}).to_json())  # type: ignore[arg-type]

    def emit(record: records.Record, flush: bool = False) -> bool:
        journal.append(record)
        return True

    return Conductor(script, server, emit, clock.now, clock.sleep), server, journal, clock


@pytest.mark.parametrize("full_after", [3, 6, 7, 8, 9])
def test_no_load_leaves_that_the_disk_did_not_take_but_a_rollback(tmp_path: Path, full_after: int) -> None:
    conductor, server, journal, _ = build(tmp_path)
    written: list[records.Record] = []

    def emit(record: records.Record, flush: bool = False) -> bool:
        journal.append(record)
        if len(journal) <= full_after:
            written.append(record)
        return len(journal) <= full_after

    conductor._emit = emit  # type: ignore[method-assign]
    with pytest.raises(LoadtestError, match="the history cannot be written"):
        whole_run(conductor)
    asyncio.run(conductor.rollback())
    on_record = {i.path for i in of(written, records.Invoke)}
    assert {path for _, path, _, _ in server.calls} <= on_record
    planned = [u for u in of(written, records.Undo) if u.state == "planned"]
    swapped = len(of(written, records.Invoke)) > 1
    if swapped:
        assert planned
        assert server.calls[-1][1] == server.calls[0][1]


def of(journal: list[records.Record], kind: type) -> list:
    return [r for r in journal if isinstance(r, kind)]


def whole_run(conductor: Conductor) -> None:
    async def main() -> None:
        await conductor.setup()
        await conductor.play()
        await conductor.rollback()

    asyncio.run(main())


def test_a_run_is_journaled_in_order_with_fresh_paths_and_undone(tmp_path: Path) -> None:
    conductor, server, journal, _ = build(tmp_path)
    whole_run(conductor)
    invokes, acks = of(journal, records.Invoke), of(journal, records.Ack)
    assert [(i.arm, i.by, i.version) for i in invokes] == [
        ("", "setup", "v0"),
        ("sham", "scenario", "v0"),
        ("real", "scenario", "v1"),
        ("real", "scenario", "v2"),
        ("bad", "scenario", "bad:missing"),
        ("", "rollback", "v0"),
    ]
    assert [a.outcome for a in acks] == ["ok", "ok", "ok", "ok", "fail", "ok"]
    assert len({i.path for i in invokes[:-1]}) == 5
    assert invokes[-1].path == invokes[0].path == server.loaded["a"]
    for invoke, (_, path, _, journaled) in zip(invokes, server.calls, strict=True):
        assert invoke.path == path
        assert invoke in journal[:journaled]
    undo = of(journal, records.Undo)
    assert [u.state for u in undo] == ["planned", "played"]
    assert journal.index(undo[0]) < journal.index(invokes[1])
    assert [v.version for v in of(journal, records.Version)] == ["base", "v0", "v1", "v2", "v3"]
    assert [(p.index, p.edge) for p in of(journal, records.Phase)] == [
        (i, edge) for i in range(4) for edge in ("start", "end")
    ]


def test_times_follow_the_plan(tmp_path: Path) -> None:
    conductor, _, journal, _ = build(tmp_path)
    whole_run(conductor)
    start = of(journal, records.Phase)[0].at_ns
    swaps = [i for i in of(journal, records.Invoke) if i.by == "scenario"]
    assert [round((i.invoked_ns - start) / 1e9, 1) for i in swaps] == [6.0, 7.1, 9.1, 10.2]


def test_a_swap_that_timed_out_is_not_repeated_and_not_taken_for_done(tmp_path: Path) -> None:
    conductor, server, journal, _ = build(tmp_path)
    server.silent = {3}
    whole_run(conductor)
    outcomes = [a.outcome for a in of(journal, records.Ack)]
    assert outcomes == ["ok", "ok", "info", "ok", "fail", "ok"]
    assert [i.version for i in of(journal, records.Invoke)][2:4] == ["v1", "v2"]


def test_stop_and_run_time_end_the_play_and_the_rollback_still_comes(tmp_path: Path) -> None:
    conductor, server, journal, _ = build(tmp_path, run_time_s=6.5)
    whole_run(conductor)
    assert [i.arm for i in of(journal, records.Invoke)] == ["", "sham", ""]
    assert of(journal, records.Undo)[-1].state == "played"
    assert server.loaded["a"].endswith("0001-v0")
    assert [p.edge for p in of(journal, records.Phase)].count("start") == [
        p.edge for p in of(journal, records.Phase)
    ].count("end")


def test_reload_is_one_operation_with_the_time_it_was_gone(tmp_path: Path) -> None:
    conductor, _, journal, _ = build(tmp_path, mode="reload")
    whole_run(conductor)
    swaps = [i.op for i in of(journal, records.Invoke) if i.arm in ("sham", "real")]
    gone = [a.gone_ns for a in of(journal, records.Ack) if a.op in swaps]
    assert all(gone)


def test_an_operator_swaps_by_name_and_is_refused_in_words(tmp_path: Path) -> None:
    conductor, _, journal, _ = build(tmp_path)

    async def main() -> None:
        await conductor.setup()
        await conductor.hotfix("a", "v3")
        with pytest.raises(UsageError, match="no adapter 'b'"):
            await conductor.hotfix("b")
        with pytest.raises(UsageError, match="no version 'v9'"):
            await conductor.hotfix("a", "v9")

    asyncio.run(main())
    assert [(i.by, i.version) for i in of(journal, records.Invoke)] == [("setup", "v0"), ("operator", "v3")]


def test_an_adapter_that_is_there_already_is_taken_over_and_a_refused_one_is_said(tmp_path: Path) -> None:
    conductor, server, journal, _ = build(tmp_path / "one")
    server.loaded["a"] = "/somebody/elses"
    asyncio.run(conductor.setup())
    assert [i.mode for i in of(journal, records.Invoke)] == ["load", "inplace", "reload"]
    assert server.calls[-1][1:3] == (server.loaded["a"], False), "not left in the state of an in-place load"
    conductor, _, _, _ = build(tmp_path / "two", root_server="/not/mounted/here")
    with pytest.raises(TargetError, match="adapters_dir"):
        asyncio.run(conductor.setup())
