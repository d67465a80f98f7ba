"""The planted-fault matrix and the kinds of innocent histories: what is played, and what the verdict may say of it.

The primary rule: a fault is detected when its own kind of violation (`name`) is FAIL. The kinds in `implies` follow
from it by definition (docs/guarantees.md says why); any other FAIL is a false accusation.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import virtual_faults as f
from virtual import Fault, Shape, World

from loadtest.analysis.verdict import Require, Verdict, judge

REQUIRE = Require(level="stream-atomic", hangover=1.2, isolated_error_rate=0.0, isolated_stall=2.0)
LEVELS = (1.0, 0.1, 0.01)

SHORT = Shape()
# For faults of which a swap is the opportunity.
MANY = Shape(500, 300.0, (10.0, 40.0), users=(("a", 3), ("b", 1), ("base", 1)), tokens=(6, 12))


@dataclass(frozen=True)
class Cell:
    """A fault, the name under which it must be found, and the run in which it has 500 opportunities or more."""

    fault: type[Fault]
    name: str
    implies: tuple[str, ...] = ()
    shape: Shape = SHORT  # at 100 % and 10 %
    long: Shape = field(default=MANY)  # at 1 %
    levels: tuple[float, ...] = LEVELS


TORN, FLIP = "untorn:torn", "ordered:flip"
STALE, OLDER = "fresh:stale", "monotonic:inversion"
LEAKED = "isolated:leak"
REJECTED = "complete:rejected"
_BAD = replace(MANY, bad=2, swaps=240)
_MANY_BAD = replace(MANY, bad=2, swaps=1000)
_SLOW = replace(MANY, every=1400.0, swaps=120)
_STALLS = Shape(120, 4000.0, users=(("a", 1), ("b", 2), ("base", 1)), tokens=(12, 24))
_HUNDRED = replace(MANY, swaps=120)
_EXPOSED = replace(SHORT, swaps=110)  # about six streams of a live through each swap
_LONG = replace(SHORT, swaps=40, every=1500.0, tokens=(80, 160), users=(("a", 40), ("b", 20), ("base", 2)))

CELLS: dict[str, Cell] = {
    "torn at token j": Cell(f.Torn, TORN, (), SHORT, _EXPOSED),
    "flip v1 v2 v1": Cell(f.Flip, FLIP, (TORN,), SHORT, replace(_EXPOSED, swaps=220)),
    "stale by 0.1 s": Cell(f.Stale, STALE, (OLDER,), SHORT, replace(SHORT, swaps=300)),
    "stale by 1 s": Cell(f.Stale1s, STALE, (OLDER,), SHORT, _EXPOSED),
    "stale by 10 s": Cell(f.Stale10s, STALE, (OLDER,), replace(SHORT, swaps=60), _EXPOSED),
    "one of three replicas stale": Cell(f.Replica, STALE, (OLDER,), _HUNDRED),
    "new-old inversion": Cell(f.Inversion, OLDER, (), _HUNDRED),
    "live before its load": Cell(f.Prophetic, "valid:prophetic", (), _HUNDRED),
    "refused load takes effect": Cell(f.Aborted, "valid:aborted", (), _BAD, _MANY_BAD),
    "refused load wipes the adapter": Cell(f.Wiped, "durable:wiped", (REJECTED,), _BAD, _MANY_BAD),
    "acked and never applied": Cell(f.Lost, "durable:lost", (STALE,), _HUNDRED),
    "reverts after 0.6 s": Cell(f.Reverted, "durable:reverted", (STALE, OLDER), _SLOW, replace(_SLOW, swaps=500)),
    "1 in 1,000 tokens is a neighbour's": Cell(f.Leak, "valid:leak", (LEAKED,), _LONG, replace(_LONG, swaps=56)),
    "base answers as an adapter": Cell(f.Fallback, "valid:fallback"),
    "an adapter answers as base": Cell(f.BaseLeak, "valid:leak", (LEAKED,), SHORT, replace(SHORT, swaps=220)),
    "a token dropped": Cell(f.Drop, "complete:truncated", (), SHORT, _EXPOSED),
    "a token duplicated": Cell(f.Duplicate, "complete:duplicated", (), SHORT, _EXPOSED),
    "a token reordered (on a switching server)": Cell(f.Reorder, FLIP, (TORN,), SHORT, replace(_EXPOSED, swaps=160)),
    "cut without [DONE]": Cell(f.Cut, "complete:cut", (), SHORT, _EXPOSED),
    "error frame, then [DONE]": Cell(f.ErrorFrame, "complete:in_band_error", (), SHORT, _EXPOSED),
    "fewer ids than usage says": Cell(f.Short, "complete:truncated", (), SHORT, _EXPOSED),
    "hybrid: new weights on old cached keys": Cell(f.Hybrid, TORN, (), SHORT, _EXPOSED),
    "acked without effect (base answers)": Cell(f.Noop, "valid:fallback", (), _HUNDRED),
    "global stall of 500 ms": Cell(f.Stall, "isolated:stall", (), _STALLS, replace(_STALLS, swaps=500)),
    "stall of bystanders only": Cell(f.BystanderStall, "isolated:stall", (), _STALLS, replace(_STALLS, swaps=500)),
    "hangover of x": Cell(f.Hangover, "steady:hangover", (), SHORT, SHORT, (1.0, 0.5, 0.3)),
}


def make(fault: type[Fault], p: float, shape: Shape, seed: int) -> World:
    """A run with one fault."""
    return World(shape, seed, [fault(p, random.Random(seed * 7919 + 1))]).play()


def named(verdict: Verdict) -> set[str]:
    """guarantee:kind of all that is FAIL."""
    return {f"{g.name}:{kind}" for g in verdict.guarantees if g.status == "FAIL" for kind in g.kinds}


@dataclass(frozen=True)
class Outcome:
    """One case of a cell."""

    detected: bool
    strays: frozenset[str]  # accusations of something else
    opportunities: int
    hits: int
    streams: int


def case(cell: Cell, level: float, seed: int) -> Outcome:
    """Play and judge one case."""
    world = make(cell.fault, level, cell.long if level == LEVELS[-1] else cell.shape, seed)
    fault = world.faults[0]
    found = named(judge(world.history(), REQUIRE))
    strays = frozenset(found - {cell.name, *cell.implies})
    return Outcome(cell.name in found, strays, fault.seen, fault.hits, len(world.streams))


# Innocent kinds: name -> how a seed becomes a run. None of them may be FAIL.

_CALM = replace(SHORT, swaps=12)


def _with(fault: type[Fault], *levels: float, shape: Shape = _CALM) -> Callable[[int], World]:
    return lambda seed: make(fault, levels[seed % len(levels)], shape, seed)


INNOCENT: dict[str, Callable[[int], World]] = {
    "nothing at all": _with(Fault, 1.0),
    "a timed-out load that applies later": _with(f.LateTimeout, 0.1, 0.3, 1.0),
    "token drift of 1e-4 to 2e-2": _with(f.Drift, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 2e-2),
    "near-tie prompts": _with(f.NearTies, 0.02, 0.1),
    "a lagging client": _with(f.Lagging, 1.0),
    "wall clocks that step by 5 s": _with(f.WallClock, 1.0),
    "sham swaps": _with(Fault, 1.0, shape=replace(_CALM, arm="sham")),
    "chunks that coalesce": _with(f.Coalesced, 0.3, 0.9),
    "a tear within two tokens of an end, under drift": _with(f.EdgeTear, 3e-3, 1e-2, 2e-2),
    "a server restart under the streams": _with(f.Restart, 1.0),
}
LEGITIMATE = {"a server restart under the streams": {"complete:cut", "complete:refused", "isolated:error_rate"}}


def innocent(kind: str, seed: int) -> set[str]:
    """What an innocent history of this kind is accused of, beyond what did happen to its streams."""
    return named(judge(INNOCENT[kind](seed).history(), REQUIRE)) - LEGITIMATE.get(kind, set())
