"""Teacher-forced margins of a real vLLM: what scoring (loadtest/scoring.py) rests on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from embedded import Embedded, embedded
from peft_maker import Recipe, make
from vllm_kit import MARKS

from loadtest.analysis.trust import FLOOR, LIMIT
from loadtest.asking import Asker, Refused
from loadtest.probe import cache_dir
from loadtest.server.base import ensure_base
from loadtest.traffic.client import open_session
from loadtest.traffic.words import Redactor

pytestmark = MARKS
NAMES = ("m0", "m1")
PROMPTS = [np.random.default_rng(7).integers(300, 2047, n).tolist() for n in (3, 17, 40)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    work, base = tmp_path_factory.mktemp("margins"), ensure_base(cache_dir())
    return [make(base, work / name, 30 + i, Recipe(gain=0.3)) for i, name in enumerate(NAMES)]


@pytest.fixture(scope="module")
def real(vllm_server: Embedded, folders: list[Path]) -> Iterator[Embedded]:
    for name, folder in zip(NAMES, folders, strict=True):
        assert vllm_server.load(name, folder).status == 200
    yield vllm_server
    for name in NAMES:
        vllm_server.unload(name)


def ask(server: Embedded) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(greedy ids of m0 for each prompt, margins of those ids under base, m0 and m1: [3, tokens] each)."""

    async def asked() -> tuple[list[np.ndarray], list[np.ndarray]]:
        async with open_session({}, 10.0) as session:
            asker = Asker(session, server.url, Redactor(server.url))
            ids = [await asker.greedy("m0", p, 48, True) for p in PROMPTS]
            rows = []
            for prompt, found in zip(PROMPTS, ids, strict=True):
                names = ("base", *NAMES)
                rows.append(np.stack(await asyncio.gather(*(asker.margins(n, prompt, found.tolist()) for n in names))))
            return ids, rows

    return asyncio.run(asked())


def test_a_version_explains_its_own_tokens_and_no_other_does(real: Embedded) -> None:
    _, margins = ask(real)
    for of_base, own, other in margins:
        assert own.max() < FLOOR
        assert of_base.max() > LIMIT
        assert other.max() > LIMIT


def test_margins_are_those_of_the_embedded_server(real: Embedded, folders: list[Path], tmp_path: Path) -> None:
    with embedded(ensure_base(cache_dir()), tmp_path) as ours:
        for name, folder in zip(NAMES, folders, strict=True):
            assert ours.load(name, folder).status == 200
        (ids, margins), (same, expected) = ask(real), ask(ours)
    for a, b in zip(ids, same, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(margins, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=0.02)


def test_a_question_that_is_refused_says_why(real: Embedded) -> None:
    async def asked() -> None:
        async with open_session({}, 10.0) as session:
            await Asker(session, real.url, Redactor(real.url)).greedy("nobody", [5, 6], 4, True)

    with pytest.raises(Refused, match="nobody answered 404"):
        asyncio.run(asked())
