"""Scenario + seed → what will be sent and swapped, and when. Pure: no clock, no I/O.

The same scenario and seed give the same plan, on every machine: `random.Random` seeded with text is specified.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadtest.errors import UsageError

if TYPE_CHECKING:
    from loadtest.scenario import Phase, Scenario

LOWEST_ID = 300  # below are bytes and special tokens in the vocabularies we know
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "it",
    "as",
    "was",
    "with",
    "be",
    "by",
    "on",
    "not",
    "he",
    "his",
    "but",
    "at",
    "are",
    "this",
    "have",
    "from",
    "or",
    "had",
    "an",
    "they",
]


@dataclass(frozen=True, slots=True)
class Request:
    """One stream to ask for."""

    adapter: str
    prompt: tuple[int, ...] | str
    max_tokens: int


@dataclass(frozen=True, slots=True)
class SwapPlan:
    """One swap of a phase."""

    gap_s: float  # since the previous invocation; of the first: since the phase's start
    how: str  # "" or, in a bad phase, "missing" | "corrupt" | "rank-too-high"


@dataclass(frozen=True, slots=True)
class PhasePlan:
    """One phase."""

    index: int
    arm: str
    adapter: str  # "" in aa
    duration_s: float | None  # None: until its swaps are made
    swaps: tuple[SwapPlan, ...]


def _rng(seed: int, *what: object) -> random.Random:
    return random.Random(f"loadtest/{seed}/" + "/".join(map(str, what)))


def requests(scenario: Scenario, seed: int, user: int, vocab: int) -> Iterator[Request]:
    """What user number `user` asks for, one after another, without end. `vocab` 0: prompts are text, not ids."""
    return _requests(scenario, _rng(seed, "user", user), _Prompts(scenario, seed, vocab))


def _requests(scenario: Scenario, rng: random.Random, prompts: _Prompts) -> Iterator[Request]:
    mix = scenario.mix
    names, weights = list(mix), list(mix.values())
    low, high = scenario.traffic.max_tokens.lo, scenario.traffic.max_tokens.hi
    while True:
        adapter = rng.choices(names, weights)[0]
        yield Request(adapter, prompts.draw(rng), rng.randint(low, high))


class _Prompts:
    """Draws prompts as the scenario describes them."""

    def __init__(self, scenario: Scenario, seed: int, vocab: int) -> None:
        from loadtest.scenario import Synthetic

        spec = scenario.traffic.prompts
        self.synthetic = spec.synthetic or Synthetic()
        self.texts: Sequence[str] = spec.texts or ()
        self.vocab = vocab if vocab > LOWEST_ID + 1 else 0
        self.prefix = self._tokens(_rng(seed, "prefix"), self.synthetic.tokens.hi)

    def _tokens(self, rng: random.Random, count: int) -> list[int]:
        top = self.vocab or len(WORDS)
        return [rng.randrange(LOWEST_ID if self.vocab else 0, top) for _ in range(count)]

    def draw(self, rng: random.Random) -> tuple[int, ...] | str:
        if self.texts:
            return rng.choice(self.texts)
        count = rng.randint(self.synthetic.tokens.lo, self.synthetic.tokens.hi)
        shared = int(count * self.synthetic.shared_prefix)
        ids = self.prefix[:shared] + self._tokens(rng, count - shared)
        return tuple(ids) if self.vocab else " ".join(WORDS[i] for i in ids)


def arrivals(scenario: Scenario, seed: int, vocab: int) -> Iterator[tuple[float, Request]]:
    """(seconds from the start, Request) of the open loop, without end. Needs traffic.arrivals."""
    spec = scenario.traffic.arrivals
    if spec is None:
        raise UsageError("the scenario has no traffic.arrivals", remedy="add e.g. arrivals: {poisson: 8/s}")
    rng = _rng(seed, "arrivals")
    at = 0.0
    for request in _requests(scenario, _rng(seed, "arriving"), _Prompts(scenario, seed, vocab)):
        at += rng.expovariate(spec.rate) if spec.poisson else 1.0 / spec.rate
        yield at, request


def phases(scenario: Scenario, seed: int) -> tuple[PhasePlan, ...]:
    """The scenario's phases with every gap drawn."""
    return tuple(_phase(p, i, _rng(seed, "phase", i)) for i, p in enumerate(scenario.phases))


def _phase(phase: Phase, index: int, rng: random.Random) -> PhasePlan:
    if phase.arm == "aa" or phase.every is None:
        return PhasePlan(index, phase.arm, "", phase.duration, ())
    count = phase.count if phase.count is not None or phase.duration is not None else len(phase.how)
    swaps: list[SwapPlan] = []
    total = 0.0
    while count is None or len(swaps) < count:
        gap = rng.uniform(phase.every.lo, phase.every.hi)
        total += gap
        if phase.duration is not None and total > phase.duration:
            break
        swaps.append(SwapPlan(gap, phase.how[len(swaps) % len(phase.how)] if phase.how else ""))
    return PhasePlan(index, phase.arm, phase.hotfix or "", phase.duration, tuple(swaps))


def duration_s(planned: Sequence[PhasePlan]) -> float:
    """How long the phases take when every swap is acked at once, seconds."""
    return sum(p.duration_s if p.duration_s is not None else sum(s.gap_s for s in p.swaps) for p in planned)
