"""Marker adapters make every greedy token their own, whatever the prompt, in any float type, on any layout of base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from reference_forward import Model, bfloat16, exact, float16
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from loadtest.adapters.base import PROJECTIONS, Base
from loadtest.adapters.marker import (
    Effect,
    Recipe,
    forge,
    forge_versions,
    pick_tokens,
    random_effect,
    read_markers,
)
from loadtest.adapters.peft import content_hash, read_folder, refusals
from loadtest.adapters.tensors import Floats, encode, read_header, write_tensors
from loadtest.errors import AdapterError
from loadtest.server.base import EOS_ID, VOCAB, ensure_base

EVERY_MODULE = 2 * len(PROJECTIONS) * 2  # layers, projections, A and B


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_base(tmp_path_factory.mktemp("base"))


def some_prompts(count: int, seed: int = 1) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, rng.integers(1, 65)).tolist() for _ in range(count)]


def rewritten(base: Path, out: Path, *, dtype: str = "F32", tied: bool = False, shards: int = 1) -> Path:
    """The same base in another float type, with tied embeddings, or in several files."""
    out.mkdir()
    for file in base.glob("*.json"):
        shutil.copy(file, out)
    weights = load_file(base / "model.safetensors")
    if tied:
        weights["model.embed_tokens.weight"] = weights.pop("lm_head.weight")
    config = json.loads((base / "config.json").read_text()) | {"tie_word_embeddings": tied}
    (out / "config.json").write_text(json.dumps(config))
    stored = {name: encode(w, dtype) for name, w in weights.items()}
    if shards == 1:
        write_tensors(out / "model.safetensors", stored)
        return out
    names, places = list(stored), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        write_tensors(out / file, {name: stored[name] for name in names[i::shards]})
        places |= dict.fromkeys(names[i::shards], file)
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return out


@pytest.mark.slow
def test_practically_every_greedy_token_is_the_versions_own(base: Path, tmp_path: Path) -> None:
    version = forge_versions(base, tmp_path, "tenant-a", 1)[0]
    ids, lead = Model(base, version.path).greedy(some_prompts(200), 64)
    own = ids == version.markers[0]
    print(f"{own.sum()} of {own.size} tokens, smallest margin {lead.min():.1f} nats")
    assert own.mean() >= 0.999
    assert lead[own].min() > 1


@pytest.mark.parametrize("cast", [exact, float16, bfloat16], ids=["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("rank", [8, 64])
def test_markers_hold_in_every_float_type_and_rank(base: Path, tmp_path: Path, cast: object, rank: int) -> None:
    model = Model(base, None, cast)  # type: ignore[arg-type]
    for version in forge_versions(base, tmp_path, "a", 2, recipe=Recipe(rank, seed=3)):
        model.put_on(version.path)
        ids, _ = model.greedy(some_prompts(20), 8)
        assert (ids == version.markers[0]).all()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_a_half_precision_or_tied_or_sharded_base_is_forged_for_too(
    base: Path, tmp_path: Path, dtype: str, tied: bool
) -> None:
    half = rewritten(base, tmp_path / "half", dtype=dtype, tied=tied, shards=3)
    version = forge_versions(half, tmp_path / "out", "a", 1)[0]
    assert read_folder(version.path).dtype == dtype
    single = rewritten(base, tmp_path / "single", tied=tied)
    widened = tmp_path / "widened"  # the reference cannot read bfloat16: give it the same values as float32
    shutil.copytree(version.path, widened)
    if dtype == "BF16":
        weights = widened / "adapter_model.safetensors"
        save_file(_bf16_as_float32(weights), weights)
    ids, _ = Model(single, widened).greedy(some_prompts(20), 8)
    assert (ids == version.markers[0]).all()


def _bf16_as_float32(path: Path) -> dict[str, np.ndarray]:
    raw, out = path.read_bytes(), {}
    for name, entry in read_header(path).items():
        bits = np.frombuffer(raw[entry.start : entry.end], "<u2").astype(np.uint32) << 16
        out[name] = bits.view(np.float32).reshape(entry.shape)
    return out


def test_the_base_alone_does_not_say_the_markers(base: Path, tmp_path: Path) -> None:
    markers = pick_tokens(base, 20)
    ids, _ = Model(base).greedy(some_prompts(20), 16)
    assert np.isin(ids, markers).mean() < 0.1


def test_a_version_is_a_whole_peft_folder_that_engines_accept(base: Path, tmp_path: Path) -> None:
    version = forge_versions(base, tmp_path, "a", 1, recipe=Recipe(rank=16))[0]
    info = read_folder(version.path)
    assert (info.rank, info.alpha, info.targets) == (16, 16.0, tuple(sorted(PROJECTIONS)))
    assert info.tensors == EVERY_MODULE
    assert info.sha == version.sha == content_hash(version.path)
    assert refusals(version.path, max_rank=16, base=base) == []
    with safe_open(version.path / "adapter_model.safetensors", "np") as file:
        assert len(list(file.keys())) == EVERY_MODULE
    assert read_markers(version.path) == version.markers
    assert read_markers(base) == ()


def test_versions_of_all_adapters_have_disjoint_tokens_and_hashes(base: Path, tmp_path: Path) -> None:
    versions = forge_versions(base, tmp_path, "a", 5)
    versions += forge_versions(base, tmp_path, "b", 3)
    versions += forge_versions(base, tmp_path, "a", 2, first=5)
    assert [v.version for v in versions] == ["v0", "v1", "v2", "v3", "v4", "v0", "v1", "v2", "v5", "v6"]
    assert len({v.markers for v in versions}) == len({v.sha for v in versions}) == 10
    assert all(v.path == tmp_path / ("b" if 5 <= i < 8 else "a") / v.version for i, v in enumerate(versions))


def test_the_same_seed_forges_the_same_bytes_anywhere(base: Path, tmp_path: Path) -> None:
    shas = [[v.sha for v in forge_versions(base, tmp_path / name, "a", 2)] for name in ("one", "two")]
    other = forge_versions(base, tmp_path / "three", "a", 1, recipe=Recipe(seed=1))
    assert shas[0] == shas[1]
    assert other[0].sha not in shas[0]


def test_tokens_are_plain_words_and_never_special(base: Path) -> None:
    everything = pick_tokens(base, 1500)
    assert len(set(everything)) == 1500
    assert EOS_ID not in everything
    words = json.loads((base / "tokenizer.json").read_text())["model"]["vocab"]
    texts = {t: text for text, t in words.items()}
    assert all(texts[t].lstrip("Ġ").isalpha() for t in everything[:100])
    assert not set(pick_tokens(base, 50, exclude=everything[:50])) & set(everything[:50])


def test_more_tokens_than_the_base_has_is_refused_with_the_number(base: Path) -> None:
    with pytest.raises(AdapterError, match=rf"has \d+ tokens fit to mark with, {VOCAB} were asked for"):
        pick_tokens(base, VOCAB)


def test_a_bad_request_to_forge_is_refused_before_anything_is_written(base: Path, tmp_path: Path) -> None:
    for token, recipe in ((EOS_ID, Recipe()), (VOCAB, Recipe()), (-1, Recipe()), (300, Recipe(rank=2))):
        with pytest.raises(AdapterError):
            forge(base, tmp_path / "out", token=token, recipe=recipe)
    assert not list(tmp_path.iterdir())
    forge(base, tmp_path / "out", token=300)
    with pytest.raises(AdapterError, match="exists already"):
        forge(base, tmp_path / "out", token=301)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers is 'two'"),
        ({"num_hidden_layers": 3}, "holds no tensor 'model.layers.2"),
    ],
)
def test_a_base_of_another_kind_is_refused(base: Path, tmp_path: Path, change: dict[str, object], message: str) -> None:
    odd = tmp_path / "odd"
    shutil.copytree(base, odd)
    (odd / "config.json").write_text(json.dumps(json.loads((base / "config.json").read_text()) | change))
    with pytest.raises(AdapterError, match=message):
        forge(odd, tmp_path / "out", token=300)


class CountingBase(Base):
    """Counts passes over all tokens: what forging costs on a large base."""

    sweeps = 0

    def unembedding(self) -> Iterator[Floats]:
        self.sweeps += 1
        return super().unembedding()


def test_sixty_versions_read_the_base_as_often_as_one(base: Path, tmp_path: Path) -> None:
    counting = CountingBase(base)
    assert len({v.sha for v in forge_versions(counting, tmp_path, "a", 60)}) == 60
    assert counting.sweeps == 1


@pytest.mark.parametrize("rslora", [False, True])
def test_a_random_adapter_changes_what_the_base_says(base: Path, tmp_path: Path, rslora: bool) -> None:
    version = random_effect(base, tmp_path / "r", Effect(rank=16, seed=4, rslora=rslora))
    assert refusals(version.path, max_rank=16, base=base) == []
    info = read_folder(version.path)
    assert (info.rank, info.alpha, info.rslora, info.tensors) == (16, 32.0, rslora, EVERY_MODULE)
    with_it, _ = Model(base, version.path).greedy(some_prompts(10), 8)
    without, _ = Model(base).greedy(some_prompts(10), 8)
    assert (with_it != without).any(axis=1).all()


def test_a_random_adapter_may_touch_some_projections_only(base: Path, tmp_path: Path) -> None:
    version = random_effect(base, tmp_path / "r", Effect(targets=("q_proj", "v_proj")))
    assert read_folder(version.path).targets == ("q_proj", "v_proj")
