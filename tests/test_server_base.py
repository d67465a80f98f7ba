"""The generated base: deterministic, atomic, readable by the libraries that will read it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from loadtest.server.base import EOS_ID, VOCAB, ensure_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_base(tmp_path_factory.mktemp("bases"))


def test_same_seed_same_bytes_other_seed_other_bytes(base: Path, tmp_path: Path) -> None:
    twin, other = ensure_base(tmp_path), ensure_base(tmp_path, seed=1)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (twin / name).read_bytes() == (base / name).read_bytes()
    assert (other / "model.safetensors").read_bytes() != (base / "model.safetensors").read_bytes()


def test_an_existing_base_is_reused(base: Path) -> None:
    before = (base / "model.safetensors").stat().st_mtime_ns
    assert ensure_base(base.parent) == base
    assert (base / "model.safetensors").stat().st_mtime_ns == before


def test_processes_at_once_agree_and_leave_no_litter(tmp_path: Path) -> None:
    code = "import pathlib, sys; from loadtest.server.base import ensure_base as e; print(e(pathlib.Path(sys.argv[1])))"
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = {child.communicate(timeout=60)[0].strip() for child in children}
    assert len(said) == 1
    assert [p.name for p in tmp_path.iterdir()] == [Path(said.pop()).name]


def test_tokenizer_covers_all_bytes_and_the_whole_vocabulary(base: Path) -> None:
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == VOCAB
    assert tokenizer.token_to_id("<|endoftext|>") == EOS_ID
    text = "Hotfix 1999: ünïcode, 你好 🎉\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_weights_have_the_shapes_the_config_promises(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    weights = load_file(base / "model.safetensors")
    h, d = config["hidden_size"], config["head_dim"]
    assert weights["lm_head.weight"].shape == (VOCAB, h)
    assert weights["model.layers.1.self_attn.k_proj.weight"].shape == (config["num_key_value_heads"] * d, h)
    assert weights["model.layers.1.mlp.down_proj.weight"].shape == (h, config["intermediate_size"])
    assert all(w.dtype == np.float32 for w in weights.values())
    assert len(weights) == 3 + 12 * config["num_hidden_layers"]
