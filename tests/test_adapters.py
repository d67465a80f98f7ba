"""PEFT folders: what is read, what is refused and why, and the copies made for swaps."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from reference_forward import Model
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from loadtest.adapters.marker import Effect, Recipe, forge, random_effect
from loadtest.adapters.peft import (
    CONFIG,
    WEIGHTS,
    content_hash,
    copy_fresh,
    corrupt_copy,
    inflate_rank,
    read_folder,
    refusals,
    write_folder,
)
from loadtest.errors import AdapterError
from loadtest.server.base import ensure_base

MUTATIONS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def sound(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_effect(base, tmp_path_factory.mktemp("sound") / "r8", Effect(rank=8)).path


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy of a sound adapter, to be spoiled."""
    return Path(shutil.copytree(sound, tmp_path / "folder"))


def edit(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / CONFIG).read_text()) | keys
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def only(folder: Path, base: Path, **limits: Any) -> str:
    """The one reason there is."""
    reasons = refusals(folder, **{"max_rank": 16, "base": base, **limits})
    assert len(reasons) == 1, reasons
    return reasons[0]


def retensor(folder: Path, change: dict[str, np.ndarray | None]) -> None:
    tensors = load_file(folder / WEIGHTS) | change
    save_file({n: t for n, t in tensors.items() if t is not None}, folder / WEIGHTS)


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def test_a_sound_folder_is_described_and_not_refused(sound: Path, base: Path) -> None:
    info = read_folder(sound)
    assert (info.rank, info.alpha, info.rslora, info.dtype, info.base) == (8, 16.0, False, "F32", base.name)
    assert info.bytes == (sound / WEIGHTS).stat().st_size
    assert refusals(sound, max_rank=8, base=base) == refusals(sound) == []


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"r": 64}, "rank 8"),
        ({"r": "8"}, "r is '8'"),
        ({"r": True}, "r is True"),
        ({"r": ...}, "r is missing"),
        ({"lora_alpha": ...}, "lora_alpha is missing"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"target_modules": ...}, "target_modules is missing"),
        ({"target_modules": None}, "target_modules is None"),
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern is"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern is"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ],
)
def test_a_config_is_refused_with_value_place_and_remedy(
    folder: Path, base: Path, keys: dict[str, Any], reason: str
) -> None:
    edit(folder, **keys)
    found = only(folder, base, max_rank=None)
    assert reason in found
    assert str(folder) in found
    assert ": " in found


def test_every_reason_is_given_at_once(folder: Path, base: Path) -> None:
    edit(folder, use_dora=True, bias="all")
    (folder / WEIGHTS).unlink()
    assert len(refusals(folder, base=base)) == 3


def test_missing_files_and_folders(folder: Path, base: Path, tmp_path: Path) -> None:
    assert "is not a folder" in only(tmp_path / "nowhere", base)
    assert "is not a folder" in only(folder / CONFIG, base)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    assert "a pickle that runs code" in only(folder, base)
    (folder / "adapter_model.bin").unlink()
    assert f"{WEIGHTS} is missing" in only(folder, base)
    (folder / CONFIG).unlink()
    assert [reason.split()[0] for reason in refusals(folder)] == [CONFIG, WEIGHTS]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"r"', "[" * 100_000, "\ud800"])
def test_a_config_that_is_no_json_object(folder: Path, base: Path, text: str) -> None:
    (folder / CONFIG).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert CONFIG in only(folder, base)
    with pytest.raises(AdapterError):
        read_folder(folder)
    with pytest.raises(AdapterError):
        content_hash(folder)


def test_rank_above_the_servers(sound: Path, folder: Path, base: Path) -> None:
    assert "above the server's maximum of 4" in only(sound, base, max_rank=4)
    edit(folder, r=4)  # the config understates what the tensors hold
    assert any("has rank 8, above the server's maximum of 4" in r for r in refusals(folder, max_rank=4, base=base))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({f"{Q0}.lora_B.weight": None}, "has lora_A but not its other half"),
        ({f"{Q0}.lora_B.weight": np.zeros((128, 4), np.float32)}, "lora_A [8, 128] and lora_B [128, 4]"),
        ({f"{Q0}.lora_A.weight": np.zeros((8, 64), np.float32)}, "has 64 features where the base has 128"),
        ({f"{Q0}.weight": np.zeros((8, 8), np.float32)}, "is not a LoRA tensor"),
        ({f"{Q0}.lora_magnitude_vector": np.zeros(8, np.float32)}, "is not a LoRA tensor"),
        ({f"{Q0}.lora_A.weight": np.zeros((8, 128), np.int32)}, "is I32"),
    ],
)
def test_tensors_that_do_not_fit(folder: Path, base: Path, change: dict[str, np.ndarray | None], reason: str) -> None:
    retensor(folder, change)
    assert reason in only(folder, base)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("model.layers.0.mlp.router", "is not a module engines adapt"),
        ("model.layers.2.mlp.up_proj", "is not in a base of 2 layers"),
    ],
)
def test_modules_the_base_does_not_have(folder: Path, base: Path, module: str, reason: str) -> None:
    stem = f"base_model.model.{module}.lora_"
    retensor(folder, {f"{stem}A.weight": np.zeros((8, 128), np.float32)})
    retensor(folder, {f"{stem}B.weight": np.zeros((256, 8), np.float32)})
    assert all(reason in r for r in refusals(folder, base=base))
    assert refusals(folder, base=base)


def test_an_adapter_of_another_base(folder: Path, tmp_path: Path) -> None:
    wide = ensure_base(tmp_path, size="wide")
    reasons = refusals(folder, base=wide)
    assert all("use the base it was trained on" in reason for reason in reasons)
    assert reasons
    with pytest.raises(AdapterError, match=r"config\.json"):
        refusals(folder, base=tmp_path)


def a_loader_refuses(folder: Path) -> bool:
    """What an engine does first, with libraries of others: parse the config, open every tensor."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config["r"], config["lora_alpha"], config["target_modules"]
        with safe_open(folder / WEIGHTS, "np") as file:
            names = list(file.keys())
            for name in names:
                file.get_tensor(name)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError, RecursionError):
        return True
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # the Rust library's own crash counts as a refusal
            raise
        return True
    return not names


def check_mutant(folder: Path, base: Path) -> None:
    reasons = refusals(folder, max_rank=16, base=base)
    assert reasons or not a_loader_refuses(folder)
    assert all(isinstance(reason, str) and len(reason) > 20 for reason in reasons)
    for reader in (read_folder, content_hash):
        with contextlib.ExitStack() as stack:
            if reasons:  # then reading may fail, but only so
                stack.enter_context(contextlib.suppress(AdapterError))
            reader(folder)


@MUTATIONS
@given(share=st.floats(0, 1), file=st.sampled_from([CONFIG, WEIGHTS]))
@example(0.0, WEIGHTS)
@example(0.0, CONFIG)
def test_a_truncated_folder_is_refused(sound: Path, base: Path, tmp_path: Path, share: float, file: str) -> None:
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    size = (sound / file).stat().st_size
    os.truncate(tmp_path / file, min(int(size * share), size - 2))
    check_mutant(tmp_path, base)
    assert refusals(tmp_path, base=base)


@MUTATIONS
@given(at=st.integers(0, 4000), bits=st.integers(1, 255), file=st.sampled_from([CONFIG, WEIGHTS]))
def test_a_flipped_byte_never_surprises(sound: Path, base: Path, tmp_path: Path, at: int, bits: int, file: str) -> None:
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    raw = bytearray((sound / file).read_bytes())
    raw[at % len(raw)] ^= bits
    (tmp_path / file).write_bytes(raw)
    check_mutant(tmp_path, base)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=2),
    max_leaves=4,
)


@MUTATIONS
@given(key=st.sampled_from(["dtype", "shape", "data_offsets", None]), value=values)
def test_a_header_with_any_value_anywhere_never_surprises(
    sound: Path, base: Path, tmp_path: Path, key: str | None, value: Any
) -> None:
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    raw = (sound / WEIGHTS).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    if key is None:
        header[f"{Q0}.lora_A.weight"] = value
    else:
        header[f"{Q0}.lora_A.weight"][key] = value
    text = json.dumps(header).encode()
    (tmp_path / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    check_mutant(tmp_path, base)


@MUTATIONS
@given(keys=st.dictionaries(st.sampled_from(["r", "lora_alpha", "target_modules", "bias", "peft_type", "x"]), values))
def test_a_config_with_any_value_anywhere_never_surprises(
    sound: Path, base: Path, tmp_path: Path, keys: dict[str, Any]
) -> None:
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    edit(tmp_path, **keys)
    check_mutant(tmp_path, base)


def test_the_hash_is_of_contents_not_of_paths_or_layout(sound: Path, folder: Path) -> None:
    before = content_hash(sound)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(dict(reversed(config.items())), indent=8))
    (folder / "README.md").write_text("an adapter")
    assert content_hash(folder) == before
    edit(folder, lora_alpha=17)
    assert content_hash(folder) != before
    edit(folder, lora_alpha=16)
    retensor(folder, {f"{Q0}.lora_A.weight": np.zeros((8, 128), np.float32)})
    assert content_hash(folder) != before


def test_a_fresh_copy_shares_its_bytes_under_a_new_path(sound: Path, tmp_path: Path) -> None:
    copy = copy_fresh(sound, tmp_path / "deep" / "er" / "copy")
    assert content_hash(copy) == content_hash(sound)
    assert (copy / WEIGHTS).stat().st_ino == (sound / WEIGHTS).stat().st_ino
    assert copy.stat().st_mode & 0o755 == 0o755
    with pytest.raises(AdapterError, match="exists already"):
        copy_fresh(sound, copy)
    with pytest.raises(AdapterError, match="is not a folder"):
        copy_fresh(tmp_path / "nowhere", tmp_path / "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep"]


def test_a_copy_of_a_download_cache_follows_its_links(sound: Path, tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    for file in sound.iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    copy = copy_fresh(tmp_path / "snapshot", tmp_path / "copy")
    assert not (copy / WEIGHTS).is_symlink()
    assert content_hash(copy) == content_hash(sound)


@pytest.mark.skipif(sys.platform != "linux" or not os.access("/dev/shm", os.W_OK), reason="needs a second device")
def test_a_copy_to_another_device_is_a_copy(sound: Path) -> None:
    target = Path("/dev/shm") / f"loadtest-test-{os.getpid()}"
    try:
        assert content_hash(copy_fresh(sound, target)) == content_hash(sound)
    finally:
        shutil.rmtree(target, ignore_errors=True)


def test_a_corrupt_copy_is_refused_by_every_loader_and_spares_its_source(
    sound: Path, base: Path, tmp_path: Path
) -> None:
    before = content_hash(sound)
    bad = corrupt_copy(sound, tmp_path / "bad")
    assert a_loader_refuses(bad)
    assert "corrupt safetensors header" in only(bad, base)
    assert content_hash(sound) == before
    again = corrupt_copy(copy_fresh(sound, tmp_path / "linked"), tmp_path / "bad2")
    assert a_loader_refuses(again)
    assert content_hash(sound) == before


@pytest.mark.parametrize("rslora", [False, True])
def test_an_inflated_adapter_is_valid_and_does_the_same(base: Path, tmp_path: Path, rslora: bool) -> None:
    small = random_effect(base, tmp_path / "small", Effect(rank=8, rslora=rslora)).path
    large = inflate_rank(small, tmp_path / "large", 32)
    assert refusals(large, max_rank=32, base=base) == []
    assert "r is 32" in only(large, base, max_rank=16)
    prompts = [[5, 6, 7], [300, 400]]
    ids, _ = Model(base, small).greedy(prompts, 8)
    same, _ = Model(base, large).greedy(prompts, 8)
    assert (ids == same).all()
    with pytest.raises(AdapterError, match="already has rank 32"):
        inflate_rank(large, tmp_path / "x", 32)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    class Unlucky(dict[str, np.ndarray]):
        def values(self) -> Any:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "out", Unlucky(a=np.zeros(2, np.float32)), {})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match="cannot be written"):
        write_folder(tmp_path / "file" / "out", {}, {})


def test_a_marker_is_inflated_like_any_adapter(base: Path, tmp_path: Path) -> None:
    version = forge(base, tmp_path / "m", token=300, recipe=Recipe(rank=8))
    large = inflate_rank(version.path, tmp_path / "large", 64)
    ids, _ = Model(base, large).greedy([[1, 2, 3]], 4)
    assert (ids == 300).all()
