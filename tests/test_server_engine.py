"""The engine without HTTP: batching, prefix cache, and what each swap policy does to each token."""

from __future__ import annotations

import gc
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
from engine_kit import Kit, folders, oracle, schedule
from peft_maker import Recipe, make

from loadtest.server.base import ensure_base
from loadtest.server.batch import Limits
from loadtest.server.cache import BLOCK
from loadtest.server.lora import NoAdapter, Version, read_version
from loadtest.server.weights import Model, load_model

RNG = np.random.default_rng(11)
PROMPT = RNG.integers(0, 2000, 24).tolist()
OTHER = RNG.integers(0, 2000, 40).tolist()


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


# ---- batching ----


def test_a_crowd_of_mixed_lengths_equals_each_alone(model: Model, paths: list[Path], versions: list[Version]) -> None:
    """More streams than attend together: they are moved between slots as others leave, and keep what they have."""
    kit = Kit(model)
    kit.load("a", paths[0], inplace=False)
    streams = []
    for i in range(72):
        prompt, name = RNG.integers(0, 2000, int(RNG.integers(1, 90))).tolist(), "a" if i % 3 == 0 else ""
        streams.append((kit.submit(name, prompt, int(RNG.integers(1, 60))), versions[0] if name else None))
        kit.steps(i % 2)
    kit.finish()
    for stream, version in streams:
        assert kit.sent(stream) == oracle(model, stream.prompt, [version] * stream.params.max_tokens)


def test_streams_of_many_adapters_in_one_batch_equal_each_alone(
    model: Model, paths: list[Path], versions: list[Version]
) -> None:
    kit = Kit(model)
    for i in range(3):
        assert kit.load(f"a{i}", paths[i], inplace=False) == [None]
    prompts = [RNG.integers(0, 2000, int(n)).tolist() for n in RNG.integers(3, 60, 12)]
    streams = []
    for i, prompt in enumerate(prompts):
        name, version = [("", None), *((f"a{j}", versions[j]) for j in range(3))][i % 4]
        streams.append((kit.submit(name, prompt, 6 + 3 * i), version))
        kit.steps(i % 3)  # they join and leave at different times
    kit.finish()
    for stream, version in streams:
        wanted = oracle(model, stream.prompt, [version] * stream.params.max_tokens)
        assert kit.sent(stream) == wanted
        assert [e.finish for e in kit.got[id(stream)]] == [None] * (len(wanted) - 1) + ["length"]
    assert kit.engine.counts["generation_tokens"] == sum(s.params.max_tokens for s, _ in streams)
    assert kit.engine.counts["length"] == 12


def test_no_more_streams_than_max_num_seqs_and_in_order(model: Model) -> None:
    kit = Kit(model, limits=Limits(max_seqs=2))
    streams = [kit.submit("", PROMPT, 3) for _ in range(5)]
    kit.steps(1)
    assert kit.engine.running == streams[:2]
    assert list(kit.engine.waiting) == streams[2:]
    kit.finish()
    assert all(len(kit.sent(s)) == 3 for s in streams)


def test_no_more_adapters_in_the_batch_than_max_loras(model: Model, paths: list[Path]) -> None:
    kit = Kit(model, limits=Limits(max_loras=1))
    for i in range(2):
        kit.load(f"a{i}", paths[i])
    first, blocked, base = kit.submit("a0", PROMPT, 4), kit.submit("a1", PROMPT, 4), kit.submit("", PROMPT, 4)
    kit.steps(2)
    assert kit.engine.running == [first, base]
    kit.finish()
    assert len(kit.sent(blocked)) == 4


def test_an_aborted_stream_leaves_and_the_others_go_on(model: Model) -> None:
    kit = Kit(model)
    streams = [kit.submit("", [*PROMPT, i], 8) for i in range(3)]
    kit.steps(3)
    kit.engine.abort(streams[0])
    kit.engine.abort(streams[0])
    kit.finish()
    assert len(kit.sent(streams[0])) == 3
    assert [kit.sent(s) for s in streams[1:]] == [oracle(model, s.prompt, [None] * 8) for s in streams[1:]]
    assert kit.engine.counts["abort"] == 1


def test_eos_ends_a_stream_unless_ignored(model: Model) -> None:
    from dataclasses import replace

    text = oracle(model, PROMPT, [None] * 6)
    config = replace(model.config, eos=frozenset(text[3:4]))
    kit = Kit(replace(model, config=config))
    stream = kit.submit("", PROMPT, 6)
    stops = kit.submit("", PROMPT, 6)
    stops.params = replace(stops.params, ignore_eos=False)
    kit.finish()
    assert kit.sent(stream) == text
    assert kit.sent(stops) == text[:4]
    assert kit.got[id(stops)][-1].finish == "stop"


def test_sampling_repeats_with_a_seed_and_varies_without(model: Model) -> None:
    kit = Kit(model)
    streams = [kit.submit("", PROMPT, 12, temperature=3.0, seed=seed) for seed in (5, 5, 6)]
    kit.finish()
    a, b, c = (kit.sent(s) for s in streams)
    assert a == b != c


def test_scores_are_log_probabilities_of_the_text(model: Model) -> None:
    kit = Kit(model)
    stream = kit.submit("", PROMPT, 3, logprobs=2, prompt_logprobs=1)
    kit.finish()
    emissions = kit.got[id(stream)]
    assert [e.scored[0].token for e in emissions] == kit.sent(stream)
    assert all(e.scored[0].rank == 1 and e.scored[0].top[0] == (e.ids[0], e.scored[0].logprob) for e in emissions)
    scores = emissions[0].prompt_scored
    assert scores is not None
    assert [s.token for s in scores] == PROMPT[1:]
    assert all(s.logprob <= s.top[0][1] <= 0 for s in scores)
    assert all((s.rank == 1) == (s.token == s.top[0][0]) for s in scores)


# ---- prefix cache ----


def test_the_prefix_cache_changes_nothing_but_the_work(model: Model, paths: list[Path]) -> None:
    texts = []
    for blocks in (4096, 0):
        kit = Kit(model, limits=Limits(prefix_blocks=blocks))
        kit.load("a", paths[0])
        streams = [kit.submit("a", [*OTHER, i], 8) for i in range(3)]
        kit.finish()
        streams += [kit.submit("a", [*OTHER, i], 8) for i in range(3)]
        kit.finish()
        texts.append([kit.sent(s) for s in streams])
        hits = kit.engine.prefix.hits
        assert hits == (3 * BLOCK * (len(OTHER) // BLOCK) if blocks else 0)
    assert texts[0] == texts[1]


def test_versions_names_and_salts_never_share_blocks(model: Model, paths: list[Path], versions: list[Version]) -> None:
    kit = Kit(model)
    kit.load("a", paths[0])
    kit.submit("a", OTHER, 1)
    kit.submit("", OTHER, 1)
    kit.submit("", OTHER, 1, salt="s")
    kit.finish()
    kit.load("a", paths[1])
    stream = kit.submit("a", OTHER, 8)
    kit.finish()
    assert kit.engine.prefix.hits == 0
    assert kit.sent(stream) == oracle(model, OTHER, [versions[1]] * 8)


def test_a_fully_cached_prompt_still_computes_its_last_token(model: Model) -> None:
    kit = Kit(model)
    prompt = OTHER[: 2 * BLOCK]
    texts = []
    for _ in range(2):
        stream = kit.submit("", prompt, 4)
        kit.finish()
        texts.append(kit.sent(stream))
    assert texts[0] == texts[1]
    assert kit.engine.prefix.hits == BLOCK


# ---- policies ----


def swapped_midway(model: Model, paths: list[Path], swap: str) -> tuple[Kit, list[int], list[int]]:
    """A stream of 12 tokens whose adapter goes from v0 to v1 after its 5th; then another one that starts after that."""
    kit = Kit(model, swap)
    kit.load("a", paths[0], inplace=False)
    first = kit.submit("a", PROMPT, 12)
    kit.steps(5)
    kit.load("a", paths[1])
    second = kit.submit("a", OTHER, 6)
    kit.finish()
    return kit, kit.sent(first), kit.sent(second)


def test_pin_keeps_a_stream_on_its_version(model: Model, paths: list[Path], versions: list[Version]) -> None:
    _, first, second = swapped_midway(model, paths, "pin")
    assert first == oracle(model, PROMPT, [versions[0]] * 12)
    assert second == oracle(model, OTHER, [versions[1]] * 6)


def test_switch_changes_running_streams_at_the_ack(model: Model, paths: list[Path], versions: list[Version]) -> None:
    _, first, second = swapped_midway(model, paths, "switch")
    torn = oracle(model, PROMPT, schedule((versions[0], 5), (versions[1], 7)))
    assert first == torn != oracle(model, PROMPT, [versions[0]] * 12)
    assert second == oracle(model, OTHER, [versions[1]] * 6)


def test_a_queued_stream_is_admitted_with_the_version_of_that_moment(
    model: Model, paths: list[Path], versions: list[Version]
) -> None:
    kit = Kit(model, limits=Limits(max_seqs=1))
    kit.load("a", paths[0])
    kit.submit("", PROMPT, 4)
    queued = kit.submit("a", PROMPT, 4)
    kit.steps(1)
    kit.load("a", paths[1])
    kit.finish()
    assert kit.sent(queued) == oracle(model, PROMPT, [versions[1]] * 4)


@pytest.mark.parametrize("swap", ["pin", "switch", "sticky", "drain"])
def test_unload_forgets_the_name_and_streams_finish(
    model: Model, paths: list[Path], versions: list[Version], swap: str
) -> None:
    kit = Kit(model, swap)
    kit.load("a", paths[0], inplace=False)
    stream = kit.submit("a", PROMPT, 6)
    kit.steps(2)
    kit.engine.unload("a")
    kit.load("a", paths[1], inplace=False)
    again = kit.submit("a", PROMPT, 6)
    kit.finish()
    assert kit.sent(stream) == oracle(model, PROMPT, [versions[0]] * 6)
    assert kit.sent(again) == oracle(model, PROMPT, [versions[1]] * 6)


@pytest.mark.parametrize("swap", ["pin", "switch", "sticky", "drain"])
def test_a_stream_whose_name_is_unloaded_while_it_queues_is_still_served(
    model: Model, paths: list[Path], versions: list[Version], swap: str
) -> None:
    kit = Kit(model, swap, limits=Limits(max_seqs=1))
    kit.load("a", paths[0], inplace=False)
    kit.submit("", PROMPT, 4)
    queued = kit.submit("a", PROMPT, 4)
    kit.steps(1)
    kit.engine.unload("a")
    kit.finish()
    assert kit.sent(queued) == oracle(model, PROMPT, [versions[0]] * 4)


def test_superseded_weights_are_let_go(model: Model, paths: list[Path]) -> None:
    for swap in ("pin", "switch", "sticky", "drain"):
        kit = Kit(model, swap)
        seen = []
        for i in range(12):
            kit.load("a", paths[i % 4])
            seen.append(weakref.ref(kit.engine.entries["a"].version))
            kit.submit("a", PROMPT, 2)
            kit.finish()
            kit.got.clear()
        gc.collect()
        assert sum(ref() is not None for ref in seen) <= 5, swap
        kit.engine.unload("a")
        gc.collect()
        assert sum(ref() is not None for ref in seen) == 0, swap


def test_drain_waits_for_running_streams_and_queues_new_ones(
    model: Model, paths: list[Path], versions: list[Version]
) -> None:
    kit = Kit(model, "drain")
    kit.load("a", paths[0], inplace=False)
    first = kit.submit("a", PROMPT, 6)
    kit.steps(2)
    answers = kit.load("a", paths[1])
    behind = kit.submit("a", PROMPT, 4)
    bystander = kit.submit("", PROMPT, 3)
    kit.steps(3)
    assert answers == []
    assert behind in kit.engine.waiting
    assert len(kit.sent(bystander)) == 3
    kit.finish()
    assert answers == [None]
    assert kit.sent(first) == oracle(model, PROMPT, [versions[0]] * 6)
    assert kit.sent(behind) == oracle(model, PROMPT, [versions[1]] * 4)


def test_drain_refuses_a_bad_load_at_once_and_acks_an_idle_one_at_once(
    model: Model, paths: list[Path], tmp_path: Path
) -> None:
    kit = Kit(model, "drain")
    kit.load("a", paths[0])
    assert kit.load("a", paths[1]) == [None]
    kit.submit("a", PROMPT, 4)
    kit.steps(1)
    assert [r.status for r in kit.load("a", tmp_path / "none") if r] == [404]
    waiting = kit.load("a", paths[2])
    kit.steps(3)
    assert waiting == []
    kit.engine.step()  # nothing runs any more: a step of its own lets the load through
    assert waiting == [None]
    assert not kit.engine.busy


def test_sticky_the_last_to_enter_decides_for_all(model: Model, paths: list[Path], versions: list[Version]) -> None:
    v0, v1, v2, _ = versions
    kit = Kit(model, "sticky")
    kit.load("a", paths[0], inplace=False)
    early = kit.submit("a", PROMPT, 16)
    kit.steps(4)
    kit.load("a", paths[1])  # the slot is overwritten: the early stream is torn although it carries v0
    kit.steps(3)
    late = kit.submit("a", OTHER, 9)  # carries v1, read again from disk at each step
    kit.steps(2)
    kit.load("a", paths[2])  # acked, and undone by the next step, since the late stream carries v1
    kit.steps(3)
    last = kit.submit("a", PROMPT[:9], 4)  # carries v2 and decides
    kit.finish()
    assert kit.sent(early) == oracle(model, PROMPT, schedule((v0, 4), (v1, 3), (v1, 2), (v1, 3), (v2, 4)))
    assert kit.sent(late) == oracle(model, OTHER, schedule((v1, 5), (v2, 4)))
    assert kit.sent(last) == oracle(model, PROMPT[:9], [v2] * 4)


def test_sticky_serves_new_streams_by_the_old_version_after_the_ack(
    model: Model, paths: list[Path], versions: list[Version]
) -> None:
    """A request that arrived before the ack but enters the batch after it takes everybody back."""
    kit = Kit(model, "sticky", limits=Limits(max_seqs=2))
    kit.load("a", paths[0], inplace=False)
    kit.load("a", paths[1])
    kit.submit("", PROMPT, 2)
    kit.submit("", PROMPT, 3)
    carries_v1 = kit.submit("a", PROMPT, 6)
    kit.load("a", paths[2])
    carries_v2 = kit.submit("a", OTHER, 6)
    kit.finish()
    assert kit.sent(carries_v1)[:1] == oracle(model, PROMPT, [versions[1]])
    assert kit.sent(carries_v2) == oracle(model, OTHER, [versions[2]] * 6)


def test_sticky_reads_the_folder_at_every_step_until_unload_and_load(
    model: Model, base: Path, paths: list[Path], tmp_path: Path
) -> None:
    kit = Kit(model, "sticky")
    reads: list[str] = []
    inner = kit.engine.policy._read  # type: ignore[attr-defined]
    kit.engine.policy._read = lambda path: reads.append(path) or inner(path)  # type: ignore[attr-defined]
    kit.load("a", paths[0], inplace=False)
    kit.submit("a", PROMPT, 5)
    kit.finish()
    assert reads == []
    copy = shutil.copytree(paths[1], tmp_path / "copy")
    kit.load("a", Path(copy))
    kit.submit("a", PROMPT, 5)
    kit.finish()
    assert reads == [str(copy)] * 5
    kit.engine.unload("a")
    kit.load("a", paths[2], inplace=False)
    kit.submit("a", PROMPT, 5)
    kit.finish()
    assert len(reads) == 5


def test_sticky_dies_when_the_folder_of_a_served_version_is_gone(
    model: Model, paths: list[Path], tmp_path: Path
) -> None:
    kit = Kit(model, "sticky")
    kit.load("a", paths[0], inplace=False)
    copy = Path(shutil.copytree(paths[1], tmp_path / "copy"))
    kit.load("a", copy)
    kit.submit("a", PROMPT, 5)
    kit.steps(1)
    shutil.rmtree(copy)
    with pytest.raises(NoAdapter):
        kit.steps(1)


@pytest.mark.parametrize("swap", ["pin", "switch", "sticky", "drain"])
def test_a_refused_swap_changes_nothing(
    model: Model, base: Path, paths: list[Path], versions: list[Version], tmp_path: Path, swap: str
) -> None:
    kit = Kit(model, swap)
    kit.load("a", paths[0], inplace=False)
    stream = kit.submit("a", PROMPT, 8)
    kit.steps(2)
    big = make(base, tmp_path / "big", 1, Recipe(rank=128))
    assert [r and r.status for r in kit.load("a", big)] == [500]
    assert [r and r.status for r in kit.load("a", tmp_path / "none")] == [404]
    assert [r and r.status for r in kit.load("a", paths[1], inplace=False)] == [400]
    kit.finish()
    assert kit.sent(stream) == oracle(model, PROMPT, [versions[0]] * 8)
    assert kit.engine.entries["a"].path == str(paths[0])
