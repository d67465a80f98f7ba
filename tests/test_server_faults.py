"""Every planted fault does what its name says, and only to its victims."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from engine_kit import Kit, folders, oracle, schedule
from peft_maker import Recipe, make

from loadtest.errors import UsageError
from loadtest.server.base import ensure_base
from loadtest.server.lora import Version, read_version
from loadtest.server.plant import KNOWN, parse
from loadtest.server.state import Stream
from loadtest.server.weights import Model, load_model

RNG = np.random.default_rng(12)
PROMPT = RNG.integers(0, 2000, 40).tolist()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def model(base: Path) -> Model:
    return load_model(base)


@pytest.fixture(scope="module")
def paths(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return folders(base, tmp_path_factory.mktemp("adapters"), 4)


@pytest.fixture(scope="module")
def versions(model: Model, paths: list[Path]) -> list[Version]:
    return [read_version(str(p), model.config, 64) for p in paths]


def kit_with(model: Model, paths: list[Path], fault: str, **params: object) -> Kit:
    """An engine with one planted fault; "a" is at v0, "b" at v3."""
    kit = Kit(model, plant=json.dumps([{"fault": fault, **params}]))
    kit.load("a", paths[0], inplace=False)
    kit.load("b", paths[3], inplace=False)
    return kit


def text(kit: Kit, adapter: str, tokens: int = 6) -> list[int]:
    stream = kit.submit(adapter, PROMPT, tokens)
    kit.finish()
    return kit.sent(stream)


def exposed(kit: Kit, path: Path, before: int = 4, tokens: int = 12) -> Stream:
    """A stream of "a" that lives through a swap to `path` after its token number `before`."""
    stream = kit.submit("a", PROMPT, tokens)
    kit.steps(before)
    kit.load("a", path)
    kit.finish()
    return stream


def test_torn(model: Model, paths: list[Path], versions: list[Version]) -> None:
    kit = kit_with(model, paths, "torn", at=6)
    stream = exposed(kit, paths[1])
    assert kit.sent(stream) == oracle(model, PROMPT, schedule((versions[0], 6), (versions[1], 6)))
    assert text(kit, "a") == oracle(model, PROMPT, [versions[1]] * 6)


def test_flip(model: Model, paths: list[Path], versions: list[Version]) -> None:
    kit = kit_with(model, paths, "flip", at=0, length=3)
    stream = exposed(kit, paths[1])
    assert kit.sent(stream) == oracle(model, PROMPT, schedule((versions[0], 4), (versions[1], 3), (versions[0], 5)))


def test_torn_every_second_exposed_stream(model: Model, paths: list[Path], versions: list[Version]) -> None:
    kit = kit_with(model, paths, "torn", every=2)
    streams = [kit.submit("a", [*PROMPT, i], 8) for i in range(4)]
    bystander = kit.submit("b", PROMPT, 8)
    kit.steps(3)
    kit.load("a", paths[1])
    kit.finish()
    torn = [kit.sent(s) != oracle(model, s.prompt, [versions[0]] * 8) for s in streams]
    assert torn == [False, True, False, True]
    assert kit.sent(bystander) == oracle(model, PROMPT, [versions[3]] * 8)


def test_stale_until_its_time_is_over(model: Model, paths: list[Path], versions: list[Version]) -> None:
    kit = kit_with(model, paths, "stale", ms=500)
    kit.load("a", paths[1])
    kit.wait(100)
    assert text(kit, "a") == oracle(model, PROMPT, [versions[0]] * 6)
    kit.wait(500)
    assert text(kit, "a") == oracle(model, PROMPT, [versions[1]] * 6)


def test_inversion_mixes_versions_before_the_ack(model: Model, paths: list[Path], versions: list[Version]) -> None:
    kit = kit_with(model, paths, "inversion", ms=300, p=0.0, every=2)
    assert kit.engine.faults.load_timing() == (0.0, 0.3)
    kit.load("a", paths[1])
    new, old = (oracle(model, PROMPT, [v] * 6) for v in (versions[1], versions[0]))
    assert [text(kit, "a") for _ in range(3)] == [new, old, new]
    kit.wait(300)
    assert text(kit, "a") == new


def test_prophetic_serves_a_folder_until_it_is_loaded(model: Model, paths: list[Path], versions: list[Version]) -> None:
    kit = kit_with(model, paths, "prophetic", path=str(paths[1]), adapter="a")
    assert text(kit, "a") == oracle(model, PROMPT, [versions[1]] * 6)
    assert text(kit, "b") == oracle(model, PROMPT, [versions[3]] * 6)
    kit.load("a", paths[1])
    kit.load("a", paths[2])
    assert text(kit, "a") == oracle(model, PROMPT, [versions[2]] * 6)


def test_aborted_and_wiped(model: Model, base: Path, paths: list[Path], tmp_path: Path) -> None:
    big = make(base, tmp_path / "big", 5, Recipe(rank=128))
    kit = kit_with(model, paths, "aborted")
    assert [r and r.status for r in kit.load("a", tmp_path / "missing")] == [404]
    assert text(kit, "a") == oracle(model, PROMPT, [read_version(str(paths[0]), model.config, 64)] * 6)
    assert [r and r.status for r in kit.load("a", big)] == [500]
    assert text(kit, "a") == oracle(model, PROMPT, [read_version(str(big), model.config, None)] * 6)
    kit = kit_with(model, paths, "wiped")
    assert [r and r.status for r in kit.load("a", big)] == [500]
    assert list(kit.engine.entries) == ["b"]


@pytest.mark.parametrize(("fault", "serves"), [("lost", 0), ("noop", None)])
def test_lost_and_noop_ack_and_show_the_new_path(
    model: Model, paths: list[Path], versions: list[Version], fault: str, serves: int | None
) -> None:
    kit = kit_with(model, paths, fault)
    assert kit.load("a", paths[1]) == [None]
    assert kit.engine.entries["a"].path == str(paths[1])
    assert text(kit, "a") == oracle(model, PROMPT, [versions[serves] if serves is not None else None] * 6)


def test_reverted(model: Model, paths: list[Path], versions: list[Version]) -> None:
    kit = kit_with(model, paths, "reverted", ms=200)
    kit.load("a", paths[1])
    assert text(kit, "a") == oracle(model, PROMPT, [versions[1]] * 6)
    kit.wait(200)
    assert text(kit, "a") == oracle(model, PROMPT, [versions[0]] * 6)


def test_leak_takes_single_tokens_from_another_adapter(
    model: Model, paths: list[Path], versions: list[Version]
) -> None:
    kit = kit_with(model, paths, "leak", every=4, adapter="a")
    a, b = versions[0], versions[3]
    assert text(kit, "a", 8) == oracle(model, PROMPT, [a, a, a, b, a, a, a, b])


def test_fallback_and_base_leak(model: Model, paths: list[Path], versions: list[Version]) -> None:
    kit = kit_with(model, paths, "fallback", every=2)
    answers = [text(kit, "a"), text(kit, "a"), text(kit, "")]
    assert answers == [oracle(model, PROMPT, [v] * 6) for v in (versions[0], None, None)]
    kit = kit_with(model, paths, "base_leak", adapter="b")
    answers = [text(kit, "a"), text(kit, "b"), text(kit, "")]
    assert answers == [oracle(model, PROMPT, [v] * 6) for v in (versions[0], versions[3], versions[3])]


def test_shared_prefix_reuses_blocks_of_another_version(
    model: Model, paths: list[Path], versions: list[Version]
) -> None:
    kit = kit_with(model, paths, "shared_prefix")
    text(kit, "a")
    kit.load("a", paths[1])
    assert text(kit, "a") != oracle(model, PROMPT, [versions[1]] * 6)
    assert kit.engine.prefix.hits == 32


def test_tokens_dropped_doubled_and_reordered(model: Model, paths: list[Path]) -> None:
    wanted = oracle(model, PROMPT, [None] * 6)
    a, b, c, d, e, f = wanted
    for fault, got in {
        "drop_token": [a, b, d, e],
        "dup_token": [a, b, c, c, d, e, f, f],
        "reorder": [a, b, d, c, e, f],
    }.items():
        kit = kit_with(model, paths, fault, every=3)
        assert text(kit, "") == got, fault
        stream = kit.submit("", PROMPT, 6)
        kit.finish()
        assert kit.got[id(stream)][-1].usage == 6


def test_ends_at_a_token(model: Model, paths: list[Path]) -> None:
    for fault, end, finish, usage in (
        ("cut", "cut", None, 3),
        ("error_frame", "error", None, 3),
        ("short", "", "length", 6),
    ):
        kit = kit_with(model, paths, fault, at=2)
        stream = kit.submit("", PROMPT, 6)
        kit.finish()
        third = kit.got[id(stream)][2]
        assert (third.end, third.finish, third.usage) == (end, finish, usage), fault


@pytest.mark.parametrize(("who", "moving"), [("all", []), ("bystanders", ["a"])])
def test_stall(model: Model, paths: list[Path], who: str, moving: list[str]) -> None:
    kit = kit_with(model, paths, "stall", ms=100, who=who)
    streams = {name: kit.submit(name, PROMPT, 20) for name in ("a", "b", "")}
    kit.steps(2)
    kit.load("a", paths[1])
    kit.steps(3)
    assert [name for name, s in streams.items() if len(kit.sent(s)) == 5] == moving
    assert all(len(kit.sent(s)) in (2, 5) for s in streams.values())
    kit.wait(100)
    kit.finish()
    assert kit.sent(streams[""]) == oracle(model, PROMPT, [None] * 20)


def test_hangover_costs_after_the_first_swap_only(model: Model, paths: list[Path]) -> None:
    kit = kit_with(model, paths, "hangover", percent=50)
    assert kit.engine.faults.extra_s(2.0) == 0.0
    kit.load("a", paths[1])
    assert kit.engine.faults.extra_s(2.0) == 1.0


def test_slow_and_hanging_loads() -> None:
    assert parse('[{"fault": "slow_load", "ms": 250}]').load_timing() == (0.25, 0.0)
    hang = parse('[{"fault": "hang_load", "ms": 40, "every": 2}]')
    assert [hang.load_timing() for _ in range(2)] == [(0.0, 0.0), (0.04, float("inf"))]


def test_chance_is_seeded_and_close_to_p(model: Model, paths: list[Path], versions: list[Version]) -> None:
    def hits(seed: int) -> list[bool]:
        kit = kit_with(model, paths, "fallback", p=0.3, seed=seed)
        pinned = oracle(model, PROMPT, [versions[0]])
        return [text(kit, "a", 1) != pinned for _ in range(60)]

    assert hits(1) == hits(1) != hits(2)
    assert 8 <= sum(hits(1)) <= 30


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        ("{", "not JSON"),
        ('{"fault": "torn"}', "not a list"),
        ('[{"fault": "tron"}]', "--plant[0].fault is 'tron'"),
        ('[{"fault": "torn", "ms": 3}]', "--plant[0].ms is not a parameter of torn"),
        ('[{"fault": "cut"}, {"fault": "stale", "ms": "x", "p": 2}]', "--plant[1].ms must be float"),
        ('[{"fault": "stall", "who": "me"}]', "who must be all or bystanders"),
        ('[{"fault": "leak", "p": 1.5}]', "p must be between 0 and 1"),
        ('[{"fault": "prophetic"}]', "path is missing"),
    ],
)
def test_a_bad_plant_is_refused_with_the_known_names(plant: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(plant)
    assert words in caught.value.message
    assert plant[0] == "{" or all(name in caught.value.remedy for name in KNOWN)
