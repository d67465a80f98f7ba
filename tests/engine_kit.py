"""An Engine driven step by step, and an oracle that says what a stream must say under a schedule of versions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from peft_maker import make

from loadtest.server.batch import Engine, Limits
from loadtest.server.cache import Cache
from loadtest.server.lora import Version
from loadtest.server.plant import parse
from loadtest.server.state import Emission, Params, Refusal, Stream
from loadtest.server.transformer import forward, logits
from loadtest.server.weights import Model


class Kit:
    """An engine with a clock of its own: each look at it takes a microsecond, and `wait` moves it."""

    def __init__(self, model: Model, swap: str = "pin", plant: str = "", limits: Limits | None = None) -> None:
        self.now = 0
        self.model = model
        self.engine = Engine(model, limits or Limits(), swap, parse(plant), self._tick)
        self.got: dict[int, list[Emission]] = {}

    def _tick(self) -> int:
        self.now += 1000
        return self.now

    def wait(self, ms: float) -> None:
        self.now += int(ms * 1_000_000)

    def load(self, name: str, folder: Path, inplace: bool = True) -> list[Refusal | None]:
        """The answers so far: one when it is acked at once, none while it is held."""
        answers: list[Refusal | None] = []
        self.engine.load(name, str(folder), inplace, answers.append)
        return answers

    def submit(self, adapter: str, prompt: Sequence[int], tokens: int, **params: object) -> Stream:
        stream = Stream(adapter, list(prompt), Params(tokens, ignore_eos=True, **params), lambda e: None)  # type: ignore[arg-type]
        self.got[id(stream)] = []
        self.engine.submit(stream)
        return stream

    def steps(self, n: int) -> None:
        for _ in range(n):
            for emission in self.engine.step():
                self.got[id(emission.stream)].append(emission)

    def finish(self) -> None:
        """Step until nothing is left; a thousand steps without an end are a failure."""
        for _ in range(1000):
            if not self.engine.busy:
                return
            self.steps(1)
        raise AssertionError("the engine does not come to an end")

    def sent(self, stream: Stream) -> list[int]:
        """The ids a client would have read."""
        return [i for e in self.got[id(stream)] for i in e.ids]


def oracle(model: Model, prompt: Sequence[int], versions: Sequence[Version | None]) -> list[int]:
    """Greedy ids when versions[i] computes token i (the first also the prompt), keys and values kept throughout."""
    cache = Cache(model.config, slots=1, positions=64)
    cache.reserve(1, len(prompt) + len(versions))
    out: list[int] = []
    for i, version in enumerate(versions):
        ids = np.array(prompt if i == 0 else out[-1:])
        start = 0 if i == 0 else len(prompt) + i - 1
        positions = np.arange(start, start + len(ids))
        groups = [] if version is None else [(version, np.arange(len(ids)))]
        attend = cache.prefill([(0, start, start + len(ids))])
        out.append(int(logits(model, forward(model, ids, positions, groups, attend)[-1:]).argmax()))
    return out


def folders(base: Path, out: Path, count: int) -> list[Path]:
    """Some adapters with different contents."""
    return [make(base, out / f"v{i}", 100 + i) for i in range(count)]


def schedule(*parts: tuple[Version | None, int]) -> list[Version | None]:
    """(version, number of tokens) pairs, spelt out."""
    return list(itertools.chain.from_iterable([version] * n for version, n in parts))
