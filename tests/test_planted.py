"""Faults planted on the embedded engine come out under their own name, from the engine's tokens to the verdict.

The engine runs on a clock of its own, its answers are written down in the mini-language, and the checker judges them.
bench/planted.py plays the same over sockets; what needs a conductor or a scoring does so here as well.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from engine_kit import Kit
from matrix import named
from minihistory import history

from loadtest.adapters.marker import VersionFile, forge_versions
from loadtest.adapters.peft import inflate_rank
from loadtest.analysis.verdict import Require, judge
from loadtest.probe import cache_dir
from loadtest.server.base import ensure_base
from loadtest.server.state import Stream
from loadtest.server.weights import Model, load_model

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import planted

USERS = ("a", "a", "a", "a", "b", "b", "")
REQUIRE = Require(level="stream-atomic", min_swaps=1, hangover=2.0, isolated_stall=2.0)
SWAPS = 7
OWN_PREFIX = "prefix blocks shared between versions, adapters without markers"


@dataclass(frozen=True)
class Forge:
    """A base and what the runs load."""

    folder: Path

    @cached_property
    def base(self) -> Path:
        return ensure_base(cache_dir())

    @cached_property
    def model(self) -> Model:
        return load_model(self.base)

    @cached_property
    def a(self) -> list[VersionFile]:
        return forge_versions(self.base, self.folder / "v", "a", SWAPS + 2)

    @cached_property
    def b(self) -> VersionFile:
        return forge_versions(self.base, self.folder / "v", "b", 1)[0]

    @cached_property
    def bad(self) -> Path:
        """What must be refused: the last version, which nothing else loads."""
        return inflate_rank(self.a[-1].path, self.folder / "bad", 128)


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    return Forge(tmp_path_factory.mktemp("forged"))


@dataclass
class Reader:
    """One user: a stream, and when each of its tokens was read."""

    adapter: str
    stream: Stream
    sent: float
    at: list[float] = field(default_factory=list)


@dataclass
class Play:
    """Users in a closed loop, a hotfix of "a" every `every` steps of 10 ms, a refused load at the end."""

    forge: Forge
    kit: Kit
    every: int = 30
    tail: int = 60
    lines: list[str] = field(default_factory=list)
    rng: random.Random = field(default_factory=lambda: random.Random(7))

    def run(self) -> set[str]:
        """What the verdict accuses."""
        a, b = self.forge.a, self.forge.b
        self._load("a", "v0", a[0].path, False)
        self._load("b", "v0", b.path, False)
        self.readers = [self._ask(name) for name in USERS]
        self._steps(60)
        for version in a[1 : SWAPS + 1]:
            self._load("a", version.version, version.path, True)
            self._steps(self.every)
        self._load("a", f"bad:rank-too-high|of={a[-1].version}", self.forge.bad, True)
        self._steps(self.tail)
        return named(judge(history("\n".join(self.lines)), REQUIRE))

    @property
    def ms(self) -> float:
        return self.kit.now / 1e6

    def _load(self, name: str, label: str, path: Path, inplace: bool) -> None:
        began, (label, _, content) = self.ms, label.partition("|")
        outcome = "ok" if self.kit.load(name, path, inplace) == [None] else "fail"
        self.kit.wait(1)
        self.lines.append(f"load {name} {label} {began} {self.ms} {outcome} {'bad' if content else ''} {content}")

    def _ask(self, adapter: str) -> Reader:
        prompt = [self.rng.randrange(300, 2000) for _ in range(8)]
        self.kit.wait(1)
        return Reader(adapter, self.kit.submit(adapter, prompt, self.rng.randint(12, 24)), self.ms)

    def _steps(self, count: int) -> None:
        for _ in range(count):
            self.kit.wait(10)
            self.kit.steps(1)
            for i, reader in enumerate(self.readers):
                got = len(self.kit.sent(reader.stream))
                reader.at += [self.ms] * (got - len(reader.at))
                if any(e.finish for e in self.kit.got[id(reader.stream)]):
                    self.lines.append(self._line(reader))
                    self.readers[i] = self._ask(reader.adapter)

    def _line(self, reader: Reader) -> str:
        names = {v.markers[0]: ("a", v.version) for v in self.forge.a} | {self.forge.b.markers[0]: ("b", "v0")}
        words = []
        for token, at in zip(self.kit.sent(reader.stream), reader.at, strict=True):
            owner, label = names.get(token, ("", "x"))
            words.append(f"{label if owner in ('', reader.adapter) else f'{owner}/{label}'}@{at}")
        return f"stream {reader.adapter or 'base'} {reader.sent}: {' '.join(words)}"


Plant = dict[str, Any]
ROWS: dict[str, tuple[Plant, str, set[str], set[str]]] = {  # plant, swap policy, must be found, may be found
    "nothing": ({}, "pin", set(), set()),
    "aborted": ({"fault": "aborted"}, "pin", {"valid:aborted"}, set()),
    "stale by 0.1 s": ({"fault": "stale", "ms": 100}, "pin", {"fresh:stale"}, {"monotonic:inversion"}),
    "stale beyond the next swap": ({"fault": "stale", "ms": 1500}, "pin", {"fresh:stale"}, {"monotonic:inversion"}),
    "leak": ({"fault": "leak", "every": 600}, "pin", {"valid:leak"}, {"isolated:leak"}),
    "hybrid": ({}, "switch", {"untorn:torn"}, set()),
    "reorder across a tear": ({"fault": "reorder"}, "switch", {"ordered:flip", "untorn:torn"}, set()),
    "reorder within a version": ({"fault": "reorder", "p": 0.1}, "pin", set(), set()),
    "prefix blocks that versions share": ({"fault": "shared_prefix"}, "pin", set(), set()),
}


def play(forge: Forge, plant: Plant, swap: str = "pin", every: int = 30) -> set[str]:
    kit = Kit(forge.model, swap, json.dumps([plant] if plant else []))
    return Play(forge, kit, every, 60 + int(plant.get("ms", 0) // 10)).run()


@pytest.mark.parametrize("name", ROWS)
def test_a_fault_of_the_engine_is_found_under_its_own_name_only(forge: Forge, name: str) -> None:
    plant, swap, must, may = ROWS[name]
    found = play(forge, plant, swap)
    assert must <= found <= must | may


def test_a_version_that_is_live_before_its_load_is_prophetic(forge: Forge) -> None:
    plant = {"fault": "prophetic", "adapter": "a", "p": 0.5, "path": str(forge.a[4].path)}
    assert play(forge, plant) == {"valid:prophetic"}


@pytest.mark.parametrize("who", ["all", "bystanders"])
def test_bystanders_that_a_swap_holds_up_are_stalled(forge: Forge, who: str) -> None:
    assert play(forge, {"fault": "stall", "ms": 300, "who": who}, every=80) == {"isolated:stall"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["refused load takes effect", OWN_PREFIX])
def test_over_sockets_too_where_the_conductor_or_the_scoring_has_a_part_in_it(tmp_path: Path, name: str) -> None:
    row = planted.FAULTS[name]
    short = replace(row, count=2, every="200ms..250ms", between="150ms", calm="800ms", tail="300ms")
    found = planted.found(short, tmp_path, seed=1, share=1.0)
    assert {row.name} <= found <= {row.name, *row.implies}
