"""The pulse by a clock of its own: what an interval says, and when garbage is collected."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from loadtest.records import Health
from loadtest.traffic import pulse
from loadtest.traffic.pulse import Pulse

S = 1_000_000_000


@pytest.fixture(autouse=True)
def _gc() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def test_an_interval_says_how_late_its_samples_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock makes sample n late by (37 n mod 200) us; each second one is a due time."""
    monkeypatch.setattr(pulse, "SAMPLE_NS", 1000)
    looks, seen = [0], list[Health]()
    late = [37 * n % 200 for n in range(200)]
    over = asyncio.Event()

    def now() -> int:
        looks[0] += 1
        n = looks[0] - 2  # the first look is the pulse's start
        if n >= 2 * len(late):
            over.set()
        return S + max(0, n // 2) * 10_000 + (1000 + late[n // 2 % 200] * 1000 if n >= 0 and n % 2 else 0)

    async def main() -> None:
        found = Pulse(seen.append, lambda: 3, lambda: 2, now)
        found.start()
        await over.wait()
        await found.stop()
        assert gc.isenabled()

    asyncio.run(main())
    (health,) = seen
    assert health.lags_us[:200] == tuple(late)
    assert health.lag_p99_ms == pytest.approx(sorted(health.lags_us)[int(0.99 * len(health.lags_us))] / 1000)
    assert health.lag_max_ms == pytest.approx(max(health.lags_us) / 1000)
    assert (health.from_ns, health.open_streams, health.dropped) == (S, 3, 2)


def test_intervals_follow_each_other_and_an_empty_one_is_not_late() -> None:
    times = iter([5, 17, 40])
    found = Pulse(lambda health: None, lambda: 0, lambda: 0, lambda: next(times))
    first, second = found.take(), found.take()
    assert [(h.from_ns, h.at_ns, h.lag_p99_ms, h.lag_max_ms, h.lags_us) for h in (first, second)] == [
        (5, 17, 0, 0, ()),
        (17, 40, 0, 0, ()),
    ]
    assert 0 <= second.cpu_s < first.cpu_s + 5


@dataclass
class Collector:
    """A pulse whose seconds are short, with the clock and the open streams of the test."""

    now: int = S
    open: int = 0
    seconds: int = 0
    collected: list[int] = field(default_factory=list)  # generations

    def _second(self, health: Health) -> None:
        self.seconds += 1

    def _watch(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self.collected.append(info["generation"])

    async def play(self, *moments: tuple[float, int]) -> list[list[int]]:
        """At each (second, open streams): the generations that a tick of the pulse collects."""
        found = Pulse(self._second, lambda: self.open, lambda: 0, lambda: self.now)
        found.start()
        gc.callbacks.append(self._watch)
        out: list[list[int]] = []
        try:
            for at_s, self.open in moments:
                self.now, self.collected = S + int(at_s * S), []
                until = self.seconds + 1
                while self.seconds < until:  # noqa: ASYNC110
                    await asyncio.sleep(0)
                out.append(self.collected)
        finally:
            gc.callbacks.remove(self._watch)
            await found.stop()
        return out


Play = Callable[..., list[list[int]]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    monkeypatch.setattr(pulse, "INTERVAL_S", 0.001)
    return lambda *moments: asyncio.run(Collector().play(*moments))


def test_nothing_is_collected_before_streams_ran(play: Play) -> None:
    assert play((1, 0), (100, 0), (200, 0)) == [[], [], []]


def test_all_is_collected_when_the_last_stream_has_ended_and_once(play: Play) -> None:
    assert play((1, 2), (2, 0), (3, 0), (4, 1), (4.5, 0)) == [[], [2], [], [], [2]]


def test_with_few_streams_the_young_are_collected_each_five_seconds_and_all_each_tenth_time(play: Play) -> None:
    assert play((5, 64), (5.1, 64), (10, 64), (10.2, 1)) == [[], [1], [], [1]]
    assert play(*((6 * n, 1) for n in range(1, 21))) == [*[[1]] * 9, [2], *[[1]] * 9, [2]]


def test_with_many_streams_it_waits_for_a_minute(play: Play) -> None:
    assert play((6, 65), (60, 65), (60.1, 65), (66, 65), (121, 65)) == [[], [], [1], [], [1]]
