"""Inside the engine: arrivals at their times, the chaos side's messages, the pulse."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rawserver import CHUNKED, LAST_CHUNK, Call, RawServer, completion

from loadtest import history, journal, records
from loadtest.errors import FeatureOff, LoadtestError, UsageError
from loadtest.traffic.client import StreamClient, open_session
from loadtest.traffic.director import Director, Emit, Message
from loadtest.traffic.pulse import Pulse
from loadtest.traffic.streams import Streams


@dataclass(frozen=True)
class Request:
    adapter: str
    prompt: tuple[int, ...]
    max_tokens: int


def header() -> records.Run:
    return records.Run(1, "r", "e0", "local", "b", 1, 0, time.monotonic_ns(), 0, "0")


async def complete(call: Call) -> None:
    await call.send(CHUNKED)
    await call.chunk(completion([1, 2, 3, 4]))
    await call.send(LAST_CHUNK)


def test_arrivals_leave_at_their_times_whatever_earlier_ones_do(tmp_path: Path) -> None:
    """Two shares of one plan; the server never answers, and every arrival is sent all the same."""
    planned = [0.0, 0.01, 0.011, 0.05, 0.1, 0.1, 0.15]

    def plan() -> Iterator[tuple[float, Request]]:
        for i, at in enumerate(itertools.chain(planned, itertools.repeat(1e6))):
            yield at, Request(f"a{i}", (1, 2), 4)

    async def silent(call: Call) -> None:
        await call.wait_left()

    async def main() -> None:
        results: list[Message] = []
        book = journal.Journal(tmp_path, header())
        async with RawServer(silent).running() as server, open_session({}, 5) as session:
            client = StreamClient(session, server.url, book)
            shares = []
            for share in range(2):
                streams = Streams(client, results.append, lambda: asyncio.sleep(0, True), lambda what, detail: None)
                streams._numbers = itertools.count(share * 100)
                streams.arrive(plan(), share, 2)
                shares.append(streams)
            while len(server.calls) < len(planned):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            for streams in shares:
                await streams.drain(0)
        book.close("complete", 1)
        assert {(m["id"], m["user"], m["reason"]) for m in results} == {(0, "arrivals", "cancelled")}

    asyncio.run(main())
    table = history.load(tmp_path).streams
    assert sorted(table.adapters) == [f"a{i}" for i in range(7)]
    for adapter, intended, sent in zip(table.adapter, table.intended, table.sent, strict=True):
        number = int(table.adapters[adapter][1:])
        assert sent >= intended
        first = min(i for a, i in zip(table.adapter, table.intended, strict=True) if (a - adapter) % 2 == 0)
        offset = (intended - first) / 1e9
        assert offset == pytest.approx(planned[number] - planned[number % 2], abs=1e-6)


def test_nothing_starts_after_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        results: list[Message] = []
        book = journal.Journal(tmp_path, header())
        async with RawServer(complete).running() as server, open_session({}, 5) as session:
            client = StreamClient(session, server.url, book)
            streams = Streams(client, results.append, lambda: asyncio.sleep(0, True), lambda what, detail: None)
            streams.close()
            streams.arrive(iter([(0.0, Request("a", (1,), 4))]), 0, 1)
            streams.ask({"id": 5, "adapter": "a", "prompt": [1], "max_tokens": 4})
            streams.cancel(77)
            await streams.drain(1)
        book.close("complete", 1)
        assert [(m["id"], m["outcome"], m["reason"]) for m in results] == [(5, "info", "cancelled")]

    asyncio.run(main())
    assert len(history.load(tmp_path).streams) == 0


@dataclass
class Conductor:
    """A conductor that swaps once for each call."""

    emit: Emit
    refuse: Exception | None = None
    calls: list[str] = field(default_factory=list)
    op: int = 0

    def swap(self, by: str, outcome: str = "ok") -> None:
        self.op += 1
        self.emit(records.Invoke(self.op, "a", "inplace", "v1", "/p", "real", by, 1_000_000), flush=True)
        self.emit(records.Ack(self.op, outcome, 3_000_000, 200, "", "words"))

    async def setup(self) -> None:
        self.calls.append("setup")
        self.swap("setup")
        if self.refuse:
            raise self.refuse

    async def play(self) -> None:
        self.emit(records.Phase(0, "real", "start", 5, "a"))
        self.swap("scenario", "info")
        self.emit(records.Phase(0, "real", "end", 6, "a"))

    async def hotfix(self, adapter: str, version: str | None) -> None:
        self.calls.append(f"{adapter} {version}")
        self.swap("operator")

    async def rollback(self) -> None:
        self.calls.append("rollback")
        self.swap("rollback")

    def stop(self) -> None:
        self.calls.append("stop")


def director(refuse: Exception | None = None) -> tuple[Director, list[Message], list[records.Record], list[Conductor]]:
    sent: list[Message] = []
    written: list[records.Record] = []
    made: list[Conductor] = []

    def make(script: Message, emit: Emit) -> Conductor:
        made.append(Conductor(emit, refuse))
        return made[0]

    def emit(record: records.Record, flush: bool = False) -> bool:
        written.append(record)
        return True

    return Director(make, emit, sent.append), sent, written, made


def test_the_host_hears_of_swaps_and_phases() -> None:
    found, sent, written, made = director()

    async def main() -> None:
        await found.setup({})
        await found.play()
        await found.hotfix(4, "a", "v1")
        found.stop()
        await found.rollback()
        await found.rollback()

    asyncio.run(main())
    assert [m["op"] for m in sent] == ["setup_done", "phase", "swap", "phase", "play_done", "swap", "hotfix_done"]
    assert sent[0] == {"op": "setup_done", "ok": True, "error": "", "exit_code": 0}
    swap = sent[2]
    assert (swap["adapter"], swap["version"], swap["arm"], swap["outcome"], swap["n"]) == ("a", "v1", "real", "info", 1)
    assert swap["ack_ms"] == 2.0
    assert sent[4]["reason"] == "complete"
    assert (sent[6]["id"], sent[6]["ok"], sent[6]["outcome"], sent[6]["ack_ms"]) == (4, True, "ok", 2.0)
    assert made[0].calls == ["setup", "a v1", "stop", "rollback"]
    assert len(written) == 10


def test_a_setup_that_cannot_be() -> None:
    found, sent, _, _ = director(FeatureOff("no load endpoint", remedy="set the flag"))
    asyncio.run(found.setup({}))
    assert sent == [{"op": "setup_done", "ok": False, "error": "no load endpoint: set the flag", "exit_code": 69}]


def test_a_hotfix_without_setup_is_answered() -> None:
    found, sent, _, _ = director()
    asyncio.run(found.hotfix(9, "a", None))
    assert (sent[0]["op"], sent[0]["id"], sent[0]["ok"]) == ("hotfix_done", 9, False)
    assert "came before" in sent[0]["message"]


def test_a_setup_that_breaks_is_said_and_passes_on() -> None:
    found, sent, _, _ = director(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        asyncio.run(found.setup({}))
    assert sent == [{"op": "setup_done", "ok": False, "error": "ZeroDivisionError: a bug", "exit_code": 70}]


def test_a_second_setup_is_refused_and_the_first_stays() -> None:
    found, sent, _, made = director()

    async def main() -> None:
        await found.setup({})
        await found.setup({})
        await found.rollback()

    asyncio.run(main())
    assert [(m["ok"], m["error"]) for m in sent] == [(True, ""), (False, "'setup' came twice")]
    assert made[0].calls == ["setup", "rollback"]


def test_a_play_that_cannot_be_ends_as_an_error() -> None:
    found, sent, _, _ = director()
    with pytest.raises(LoadtestError, match="came before 'setup'"):
        asyncio.run(found.play())
    assert sent == [{"op": "play_done", "reason": "error"}]


def test_a_refused_hotfix_says_why_and_each_hotfix_has_its_own_answer() -> None:
    found, sent, _, made = director()

    async def main() -> None:
        await found.setup({})
        await found.hotfix(1, "a", "v1")
        made[0].hotfix = broken
        await found.hotfix(2, "b", None)

    async def broken(adapter: str, version: str | None) -> None:
        raise UsageError("no such adapter")

    asyncio.run(main())
    assert (sent[2]["id"], sent[2]["ok"], "message" in sent[2], sent[2]["message"]) == (1, True, True, "words")
    assert {k: sent[3][k] for k in ("id", "ok", "adapter", "outcome", "reason", "message")} == {
        "id": 2,
        "ok": False,
        "adapter": "b",
        "outcome": "fail",
        "reason": "not_sent",
        "message": "no such adapter",
    }


def test_hotfixes_that_cross_are_each_told_of_their_own_swap() -> None:
    """Swaps of one adapter wait for each other; one that still waits at the end of the run was never sent."""
    found, sent, _, made = director()
    turn, over = asyncio.Lock(), asyncio.Event()

    async def hotfix(adapter: str, version: str | None) -> None:
        async with turn if adapter == "a" else contextlib.nullcontext():
            if made[0].op > 2:
                raise UsageError("the run is ending")
            made[0].op = op = made[0].op + 1
            found.emit(records.Invoke(op, adapter, "inplace", "v1", "/p", "real", "operator", 1_000_000))
            await over.wait()
            found.emit(records.Ack(op, "ok" if adapter == "a" else "fail", 3_000_000, 200, "", adapter))

    async def main() -> None:
        await found.setup({})
        made[0].hotfix = hotfix
        asking = [asyncio.ensure_future(found.hotfix(n, a, None)) for n, a in ((1, "a"), (2, "b"), (3, "a"))]
        for _ in range(3):
            await asyncio.sleep(0)
        over.set()
        await asyncio.gather(*asking)

    asyncio.run(main())
    told = {m["id"]: (m["ok"], m["adapter"], m["reason"], m["message"]) for m in sent if m["op"] == "hotfix_done"}
    assert told == {
        1: (True, "a", "", "a"),
        2: (False, "b", "", "b"),
        3: (False, "a", "not_sent", "the run is ending"),
    }


def test_what_the_disk_must_have_at_once_is_the_conductors_choice() -> None:
    asked: list[bool] = []

    def journal(record: records.Record, flush: bool = False) -> bool:
        asked.append(flush)
        return flush

    found = Director(lambda script, emit: Conductor(emit), journal, lambda message: None)
    phase = records.Phase(0, "real", "start", 5, "a")
    assert [found.emit(phase), found.emit(phase, True), found.emit(phase, flush=False)] == [False, True, False]
    assert asked == [False, True, False]


def test_a_swap_that_nobody_answered_has_no_latency() -> None:
    found, sent, _, _ = director()
    found.emit(records.Invoke(1, "a", "inplace", "v1", "/p", "real", "operator", 1_000_000))
    found.emit(records.Ack(1, "info", 0, 0, "timeout", ""))
    found.emit(records.Ack(1, "ok", 2_000_000, 200, "", ""))  # its second end is none
    found.emit(records.Ack(9, "ok", 2_000_000, 200, "", ""))
    assert [(m["op"], m["swap"], m["outcome"], m["ack_ms"], m["n"]) for m in sent] == [("swap", 1, "info", None, 1)]
    assert (sent[0]["invoked_ns"], sent[0]["acked_ns"], sent[0]["by"], sent[0]["mode"]) == (
        1_000_000,
        0,
        "operator",
        "inplace",
    )


def test_the_pulse_sees_a_late_loop() -> None:
    seen: list[records.Health] = []

    async def main() -> None:
        pulse = Pulse(seen.append, lambda: 3, lambda: 2)
        pulse.start()
        assert not gc.isenabled()
        await asyncio.sleep(0.05)
        time.sleep(0.08)  # noqa: ASYNC251  the loop is late on purpose
        await asyncio.sleep(0.05)
        await pulse.stop()

    asyncio.run(main())
    assert gc.isenabled()
    gc.unfreeze()
    health = seen[-1]
    assert health.lag_max_ms >= 50
    assert health.lag_p99_ms <= health.lag_max_ms
    assert max(health.lags_us) == pytest.approx(1000 * health.lag_max_ms, abs=1)
    assert health.from_ns < health.at_ns
    assert (health.open_streams, health.dropped) == (3, 2)
    assert health.cpu_s >= 0
