"""What Streams says of its streams: results, counts, a dead target, the end. The client answers by a script."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import pytest

from loadtest.records import Stream
from loadtest.traffic import streams
from loadtest.traffic.ask import Ask
from loadtest.traffic.fleet import Spread
from loadtest.traffic.streams import Message, Streams

MS = 1_000_000
OK = Stream(
    stream=0,
    adapter="a",
    user="u",
    intended_ns=0,
    sent_ns=1_000 * MS,
    max_tokens=4,
    ignore_eos=True,
    head_ns=0,
    first_ns=1_002 * MS,
    last_ns=1_004 * MS,
    ended_ns=1_005 * MS,
    status=200,
    outcome="ok",
    reason="",
    detail="",
    finish="length",
    done=True,
    tokens=4,
    offset=0,
    chunks=4,
    usage=4,
)
REFUSED = replace(OK, outcome="fail", reason="refused", detail="nobody there", status=0, first_ns=0, tokens=0)
STALLED = replace(REFUSED, outcome="info", reason="stalled")

Answer = Callable[[Ask], Awaitable[Stream]]


@dataclass
class Rig:
    """Streams, and what it said; `answer` is the client's, `healthy` the target's, `now` the clock."""

    answer: Answer
    healthy: list[bool] = field(default_factory=list)
    spread: Spread = field(default_factory=Spread)
    now: int = 0
    results: list[Message] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    asks: list[Ask] = field(default_factory=list)
    looks: int = 0

    def __post_init__(self) -> None:
        self.streams = Streams(self, self.results.append, self._health, self._note, lambda: self.now)

    async def stream(self, ask: Ask) -> Stream:
        self.asks.append(ask)
        return await self.answer(ask)

    async def _health(self) -> bool:
        self.looks += 1
        return self.healthy.pop(0)

    def _note(self, what: str, detail: str) -> None:
        self.notes.append((what, detail))

    def ask(self, number: int = 1, **more: object) -> None:
        self.streams.ask({"id": number, "adapter": "a", "prompt": [1], "max_tokens": 4, "user": "u", **more})

    async def each(self, *records: Stream) -> None:
        """One stream after another that ends with these records, and whatever follows from their ends."""
        for record in records:
            self.answer = always(record)
            self.ask()
            for _ in range(6):
                await asyncio.sleep(0)

    @property
    def died(self) -> list[Message]:
        return [m for m in self.results if m["op"] == "target_died"]


def run(main: Callable[[], Awaitable[None]]) -> None:
    """asyncio.run; what a callback raised counts as well."""
    raised: list[object] = []

    async def whole() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: raised.append(context))
        await main()

    asyncio.run(whole())
    assert raised == []


def always(record: Stream) -> Answer:
    async def answer(ask: Ask) -> Stream:
        return record

    return answer


async def for_ever(ask: Ask) -> Stream:
    await asyncio.Event().wait()
    raise AssertionError("it waits for ever")


def test_a_result_says_what_the_record_says() -> None:
    rig = Rig(always(OK))

    async def main() -> None:
        await rig.each(OK, replace(REFUSED, first_ns=0))

    run(main)
    good, refused = rig.results
    who = {"op": "result", "id": 1, "adapter": "a", "user": "u"}
    told = {"outcome": "ok", "reason": "", "detail": "", "tokens": 4, "ttft_ms": 2.0, "e2el_ms": 5.0}
    assert good == {**who, "stream": 1, **told}
    told = {"outcome": "fail", "reason": "refused", "detail": "nobody there", "tokens": 0, "ttft_ms": None}
    assert refused == {**who, "stream": 2, **told, "e2el_ms": 5.0}


def test_every_outcome_is_counted() -> None:
    rig = Rig(always(OK))

    async def main() -> None:
        await rig.each(OK, REFUSED, STALLED, OK, OK, REFUSED)
        rig.answer = for_ever
        rig.ask(1)
        assert rig.streams.open == 1
        await rig.streams.drain(0)
        assert rig.streams.open == 0

    run(main)
    counts = rig.streams.counts
    assert (counts.sent, counts.ok, counts.fail, counts.info, counts.tokens) == (7, 3, 2, 2, 12)


def test_what_a_message_may_leave_out_and_what_extra_says_of_the_rest() -> None:
    rig = Rig(always(OK), spread=Spread(("x", "y")))

    async def main() -> None:
        rig.streams.ask({"id": 1, "adapter": "a", "prompt": "text", "max_tokens": 4})
        extra = {"max_tokens": "9", "ignore_eos": 0, "temperature": "0.5", "top_p": 0.9}
        rig.ask(2, extra=extra, intended_ns=77)
        await rig.streams.drain(1)

    run(main)
    assert rig.asks == [
        Ask(1, "a", "text", 4, "", 0, ignore_eos=True, temperature=0.0, extra={}, replica=1),
        Ask(2, "a", [1], 9, "u", 77, ignore_eos=False, temperature=0.5, extra={"top_p": 0.9}, replica=0),
    ]


def test_a_cancelled_stream_has_its_result_and_its_time() -> None:
    rig = Rig(for_ever, now=2 * MS)

    async def main() -> None:
        rig.ask(7)
        await asyncio.sleep(0)
        rig.now = 5 * MS
        rig.streams.cancel(7)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        rig.streams.cancel(7)

    run(main)
    assert [(m["id"], m["outcome"], m["reason"], m["detail"]) for m in rig.results] == [
        (7, "info", "cancelled", "cancelled")
    ]
    assert (rig.results[0]["tokens"], rig.results[0]["ttft_ms"], rig.results[0]["e2el_ms"]) == (0, None, 3.0)
    assert rig.notes == []


def test_a_bug_of_ours_is_a_result_too_and_is_noted() -> None:
    async def bug(ask: Ask) -> Stream:
        raise KeyError("left out")

    rig = Rig(bug)

    async def main() -> None:
        rig.ask()
        await rig.streams.drain(1)

    run(main)
    assert rig.notes == [("error", "stream 1: KeyError: 'left out'")]
    assert [(m["outcome"], m["detail"]) for m in rig.results] == [("info", "a bug of the tester: 'left out'")]
    assert rig.streams.counts.info == 1


def test_a_target_is_dead_after_five_refusals_and_a_silent_health_and_that_is_said_once() -> None:
    rig = Rig(always(OK), healthy=[False])

    async def main() -> None:
        await rig.each(*[REFUSED] * 4)
        assert (rig.looks, rig.died) == (0, [])
        await rig.each(replace(REFUSED, detail="the fifth"))
        assert rig.looks == 1
        await rig.each(*[REFUSED] * 12)

    run(main)
    assert rig.looks == 1
    assert rig.died == [{"op": "target_died", "detail": "the fifth"}]
    assert rig.notes == [("target_died", "the fifth")]


@pytest.mark.parametrize(("between", "looks"), [(OK, 0), (replace(REFUSED, reason="cut", status=200), 0), (STALLED, 1)])
def test_only_an_answer_ends_a_row_of_refusals(between: Stream, looks: int) -> None:
    rig = Rig(always(OK), healthy=[True])

    async def main() -> None:
        await rig.each(*[REFUSED] * 4, between, *[REFUSED] * 4)

    run(main)
    assert rig.looks == looks


def test_a_target_that_answers_its_health_is_asked_again_after_five_more() -> None:
    rig = Rig(always(OK), healthy=[True, False])

    async def main() -> None:
        await rig.each(*[REFUSED] * 9)
        assert rig.looks == 1
        await rig.each(REFUSED)

    run(main)
    assert (rig.looks, len(rig.died)) == (2, 1)


def test_one_look_at_a_time_and_none_at_the_end() -> None:
    asked = asyncio.Event()

    async def slow() -> bool:
        rig.looks += 1
        asked.set()
        await asyncio.Event().wait()
        return False

    rig = Rig(always(OK))
    rig.streams = Streams(rig, rig.results.append, slow, rig._note)

    async def main() -> None:
        await rig.each(*[REFUSED] * 12)
        await asked.wait()
        assert rig.looks == 1
        rig.answer = for_ever
        rig.ask(3)
        await rig.streams.drain(0)
        await asyncio.sleep(0)

    run(main)
    assert rig.died == []


@dataclass(frozen=True)
class Request:
    adapter: str
    prompt: tuple[int, ...] = (1, 2)
    max_tokens: int = 4


def test_a_plan_is_played_once_and_by_shares() -> None:
    rig = Rig(always(OK), now=500)

    async def main() -> None:
        rig.streams.arrive(iter([(0.0, Request(f"a{i}")) for i in range(7)]), 1, 3)
        rig.streams.arrive(iter([(0.0, Request("again"))]), 0, 1)
        for _ in range(20):
            await asyncio.sleep(0)
        await rig.streams.drain(1)

    run(main)
    assert rig.asks == [Ask(n, f"a{i}", (1, 2), 4, "arrivals", 500) for n, i in ((1, 1), (2, 4))]
    assert [(m["id"], m["stream"], m["outcome"]) for m in rig.results] == [(0, 1, "ok"), (0, 2, "ok")]


def test_an_arrival_leaves_no_earlier_than_planned_and_the_end_stops_the_rest() -> None:
    """The clock is the rig's: a timer that fires before it has come so far waits again."""
    rig = Rig(always(OK))

    async def main() -> None:
        rig.streams.arrive(iter([(0.002, Request("first")), (1e6, Request("never"))]), 0, 1)
        await asyncio.sleep(0.02)
        rig.now = 2 * MS - 1
        await asyncio.sleep(0.01)
        assert rig.asks == []
        rig.now = 2 * MS
        await asyncio.sleep(0.02)
        assert [a.intended_ns for a in rig.asks] == [2 * MS]
        await rig.streams.drain(0)
        rig.now = 2 * 10**15
        await asyncio.sleep(0)

    run(main)
    assert [a.adapter for a in rig.asks] == ["first"]


def test_refusals_at_the_end_are_no_matter() -> None:
    go = asyncio.Event()

    async def refused(ask: Ask) -> Stream:
        await go.wait()
        return REFUSED

    rig = Rig(always(OK), healthy=[False])

    async def main() -> None:
        await rig.each(*[REFUSED] * 4)
        rig.answer = refused
        rig.ask()
        await asyncio.sleep(0)
        rig.streams.close()
        go.set()
        await rig.streams.drain(1)
        await asyncio.sleep(0)

    run(main)
    assert (rig.looks, rig.died) == (0, [])


def test_open_streams_have_the_patience_asked_for_and_then_are_cancelled_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once to be decoded in steps; whoever has not ended by then is hurried."""
    monkeypatch.setattr(streams, "CANCEL_S", 0.05)
    met: list[str] = []
    go = asyncio.Event()

    async def ends_late(ask: Ask) -> Stream:
        if ask.user == "patient":
            await go.wait()
            return OK
        for _ in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                met.append(ask.user)
        raise asyncio.CancelledError

    rig = Rig(ends_late)

    async def main() -> None:
        rig.ask(1, user="patient")
        rig.ask(2, user="slow")
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.02, go.set)
        await rig.streams.drain(0.2)

    run(main)
    assert met == ["slow", "slow"]
    assert [(m["user"], m["outcome"]) for m in rig.results] == [("patient", "ok"), ("slow", "info")]
