"""However a run ends: operations under way, operators who wait, a cancelled task, a server that never answers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
from peft_maker import make
from test_conductor_play import PHASES, Said, Server, build, of, whole_run

from loadtest import records
from loadtest.adapters.checks import refusals
from loadtest.adapters.peft import content_hash
from loadtest.adapters.tensors import read_stored
from loadtest.chaos.conductor import Conductor, VersionFile
from loadtest.errors import UsageError
from loadtest.plan import PhasePlan, SwapPlan
from loadtest.server.base import ensure_base


class Hung:
    """Makes a server's n-th load hang until it is released, and tells when it has begun."""

    def __init__(self, server: Server, call: int) -> None:
        self.begun, self.release = asyncio.Event(), asyncio.Event()
        self.cancelled = False
        self._load, self._call, self._count = server.load, call, 0
        server.load = self.load  # type: ignore[method-assign]

    async def load(self, name: str, path: str, inplace: bool = False) -> Said:
        self._count += 1
        if self._count == self._call:
            self.begun.set()
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        return await self._load(name, path, inplace)


def run(conductor: Conductor, end: Callable[[asyncio.Task[None]], Awaitable[None]]) -> None:
    """Setup, play with `end` beside it, rollback."""

    async def main() -> None:
        await conductor.setup()
        playing = asyncio.create_task(conductor.play())
        await end(playing)
        with contextlib.suppress(asyncio.CancelledError):
            await playing
        await conductor.rollback()

    asyncio.run(main())


def test_stop_gives_up_a_load_that_hangs_and_rolls_back(tmp_path: Path) -> None:
    conductor, server, journal, _ = build(tmp_path)
    hung = Hung(server, 3)  # setup, sham, real

    async def end(playing: asyncio.Task[None]) -> None:
        await hung.begun.wait()
        conductor.stop()

    run(conductor, end)
    assert hung.cancelled
    assert [(a.outcome, a.reason) for a in of(journal, records.Ack)] == [
        ("ok", ""),
        ("ok", ""),
        ("info", "cancelled"),
        ("ok", ""),
    ]
    assert [i.by for i in of(journal, records.Invoke)] == ["setup", "scenario", "scenario", "rollback"]
    assert [(p.index, p.edge) for p in of(journal, records.Phase)][-1] == (2, "end")
    assert [u.state for u in of(journal, records.Undo)] == ["planned", "played"]


def test_a_load_that_answers_after_the_stop_is_what_it_says(tmp_path: Path) -> None:
    conductor, server, journal, _ = build(tmp_path)
    hung = Hung(server, 3)

    async def end(playing: asyncio.Task[None]) -> None:
        await hung.begun.wait()
        conductor.stop()
        hung.release.set()

    run(conductor, end)
    assert not hung.cancelled
    assert [a.outcome for a in of(journal, records.Ack)] == ["ok"] * 4


def test_a_cancelled_play_leaves_no_operation_and_no_phase_open(tmp_path: Path) -> None:
    conductor, server, journal, _ = build(tmp_path)
    hung = Hung(server, 3)

    async def end(playing: asyncio.Task[None]) -> None:
        await hung.begun.wait()
        playing.cancel()

    run(conductor, end)
    assert hung.cancelled
    invokes, acks = of(journal, records.Invoke), of(journal, records.Ack)
    assert [i.op for i in invokes] == [a.op for a in acks]
    assert (acks[2].outcome, acks[2].reason) == ("info", "cancelled")
    assert [p.edge for p in of(journal, records.Phase)] == ["start", "end"] * 3
    assert invokes[-1].by == "rollback"


def test_a_stop_before_the_first_swap_leaves_nothing_to_undo(tmp_path: Path) -> None:
    conductor, _, journal, _ = build(tmp_path)

    async def end(playing: asyncio.Task[None]) -> None:
        conductor.stop()

    run(conductor, end)
    assert [i.by for i in of(journal, records.Invoke)] == ["setup"]
    assert of(journal, records.Undo) == []


def test_an_operator_and_the_scenario_take_turns_and_none_comes_after_the_stop(tmp_path: Path) -> None:
    conductor, server, journal, _ = build(tmp_path)
    hung = Hung(server, 3)
    late: list[str] = []

    async def end(playing: asyncio.Task[None]) -> None:
        await hung.begun.wait()
        waiting = asyncio.create_task(conductor.hotfix("a", "v3"))
        await asyncio.sleep(0)  # it runs up to the lock
        before = len(of(journal, records.Invoke))
        conductor.stop()
        hung.release.set()
        try:
            await waiting
        except UsageError as e:
            late.append(str(e))
        assert len(of(journal, records.Invoke)) == before, "it had to wait, and then it was too late"

    run(conductor, end)
    assert late == ["the run is ending: hotfix while it runs"]
    spans = zip(of(journal, records.Invoke), of(journal, records.Ack), strict=True)
    ends = [(i.invoked_ns, a.acked_ns) for i, a in spans]
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(ends))


def test_a_real_swap_never_loads_what_an_operator_has_just_loaded(tmp_path: Path) -> None:
    phases = (PhasePlan(0, "real", "a", None, (SwapPlan(1.0, ""),) * 3),)
    conductor, _, journal, _ = build(tmp_path, phases=phases)

    async def main() -> None:
        await conductor.setup()
        await conductor.hotfix("a", "v1")
        await conductor.play()

    asyncio.run(main())
    assert [i.version for i in of(journal, records.Invoke)] == ["v0", "v1", "v2", "v3", "v0"]


def test_a_reload_goes_on_where_the_adapter_is_gone_already(tmp_path: Path) -> None:
    conductor, server, journal, _ = build(tmp_path, mode="reload", phases=PHASES[2:3])

    async def gone(name: str) -> Said:
        return Said("fail", 404, "not_found", "no such adapter", server.clock.ns)

    server.unload = gone  # type: ignore[method-assign]

    async def main() -> None:
        await conductor.setup()
        server.loaded.clear()
        await conductor.play()

    asyncio.run(main())
    acks = of(journal, records.Ack)
    assert [a.outcome for a in acks] == ["ok", "ok", "fail"], "the third finds the name loaded and does not replace it"
    assert acks[1].gone_ns == 0


def test_an_unload_that_timed_out_leaves_the_reload_open(tmp_path: Path) -> None:
    conductor, server, journal, _ = build(tmp_path, mode="reload", phases=PHASES[2:3])

    async def silent(name: str) -> Said:
        return Said("info", 0, "timeout", "", server.clock.ns)

    async def main() -> None:
        await conductor.setup()
        server.unload = silent  # type: ignore[method-assign]
        await conductor.play()

    asyncio.run(main())
    assert [a.outcome for a in of(journal, records.Ack)] == ["ok", "info", "info"]
    assert len(server.calls) == 1, "nothing is loaded on top of an unload that may still come"


def test_every_adapter_is_rolled_back_though_one_refuses(tmp_path: Path) -> None:
    conductor, server, journal, _ = build(tmp_path)
    more, _, _, _ = build(tmp_path / "more")
    conductor._adapters["b"] = more._adapters["a"]
    conductor._adapters["b"].name = "b"

    async def main() -> None:
        await conductor.setup()
        await conductor.hotfix("a")
        await conductor.hotfix("b")
        server.silent = {5}  # a's rollback
        await conductor.rollback()
        await conductor.rollback()  # a second try owes only what is left

    asyncio.run(main())
    undos = [(u.adapter, u.state) for u in of(journal, records.Undo)]
    assert undos == [("a", "planned"), ("b", "planned"), ("a", "failed"), ("b", "played"), ("a", "played")]


def test_bad_folders_are_made_of_a_version_that_does_not_serve_and_each_would_be_refused(tmp_path: Path) -> None:
    base = ensure_base(tmp_path / "cache")
    good = [make(base, tmp_path / f"v{k}", seed=k) for k in range(2)]
    hows = ("missing", "corrupt", "rank-too-high")
    phases = (
        PhasePlan(0, "real", "a", None, (SwapPlan(1.0, ""),)),
        PhasePlan(1, "bad", "a", None, tuple(SwapPlan(1.0, how) for how in hows)),
    )
    files = [VersionFile(f"v{k}", str(path), content_hash(path)) for k, path in enumerate(good)]
    conductor, _, journal, _ = build(tmp_path / "run", phases=phases, adapters={"a": files})
    whole_run(conductor)
    setup, real, missing, corrupt, high, rollback = of(journal, records.Invoke)
    for invoke, path in ((setup, good[0]), (real, good[1]), (rollback, good[0])):
        assert content_hash(Path(invoke.path)) == content_hash(path)
    assert not Path(missing.path).exists()
    assert refusals(Path(corrupt.path), max_rank=64, base=base)
    reasons = refusals(Path(high.path), max_rank=64, base=base)
    assert len(reasons) == 1
    assert "rank" in reasons[0]
    assert refusals(Path(high.path), max_rank=128, base=base) == []
    assert [i.version for i in (missing, corrupt, high)] == [f"bad:{how}" for how in hows]
    assert {i.content for i in (missing, corrupt, high)} == {"v0"}, "v1 serves"
    assert {i.content for i in (setup, real, rollback)} == {""}
    made, served = (read_stored(Path(p) / "adapter_model.safetensors") for p in (high.path, good[0]))
    assert all(np.array_equal(made[name][tuple(map(slice, t.shape))], t) for name, t in served.items())
