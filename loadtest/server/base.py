"""A small Qwen2 base in Hugging Face layout, written from a seed instead of shipped.

Random weights have near-tied logits unless told otherwise, and a near tie lets rounding pick the token. So the residual
stream is wide (embedding of unit variance), attention and MLP are strong enough that the context decides, and the
unembedding is scaled so that the mean gap between the best two logits is a nat or more.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from loadtest.errors import UsageError

FORMAT = 1  # part of the folder's name: raise it when the weights for a seed change
VOCAB = 2048
EOS = "<|endoftext|>"
EOS_ID = VOCAB - 1


@dataclass(frozen=True, slots=True)
class Shape:
    """Dimensions of a base."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int


SHAPES: dict[str, Shape] = {
    "tiny": Shape(layers=2, hidden=128, heads=4, kv_heads=2, head_dim=32, intermediate=256),
    # A rank-64 adapter on all projections is 16 MB here: reading one costs what it costs in earnest.
    "wide": Shape(layers=4, hidden=1024, heads=16, kv_heads=4, head_dim=64, intermediate=1536),
}


def ensure_base(cache_dir: Path, seed: int = 0, size: str = "tiny") -> Path:
    """Folder of the base for `seed` and `size` under `cache_dir`; written if absent, reused if present.

    Safe under concurrent callers: each writes a private folder and the first rename wins.
    Raises UsageError for an unknown size, OSError when `cache_dir` cannot be written.
    """
    if size not in SHAPES:
        raise UsageError(f"there is no base of size {size}", remedy=f"use one of {', '.join(SHAPES)}")
    shape = SHAPES[size]
    target = Path(cache_dir) / f"qwen2-{size}-s{seed}-f{FORMAT}"
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    private = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _write(private, shape, seed)
        private.chmod(0o755)
        try:
            os.rename(private, target)
        except OSError:  # another process was first; anything else is still an error
            if not (target / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return target


def _write(folder: Path, shape: Shape, seed: int) -> None:
    weights = folder / "model.safetensors"
    save_file(_weights(shape, seed), weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # like its neighbours: a server under another user may read it
    _tokenizer().save(str(folder / "tokenizer.json"))
    files = {
        "config.json": _config(shape),
        "generation_config.json": {"eos_token_id": EOS_ID, "pad_token_id": EOS_ID},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": EOS,
            "pad_token": EOS,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 2048,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "torch_dtype": "float32",
        "vocab_size": VOCAB,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "eos_token_id": EOS_ID,
        "pad_token_id": EOS_ID,
        "use_cache": True,
    }


def _weights(shape: Shape, seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng([seed, shape.hidden])

    def normal(rows: int, columns: int, gain: float) -> NDArray[np.float32]:
        values = rng.standard_normal((rows, columns), dtype=np.float32)
        return np.asarray(values * np.float32(gain / columns**0.5), dtype=np.float32)

    def around(centre: float, spread: float, n: int) -> NDArray[np.float32]:
        return np.asarray(centre + spread * rng.standard_normal(n), dtype=np.float32)

    h, q, kv = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    out = {"model.embed_tokens.weight": normal(VOCAB, h, h**0.5)}
    for i in range(shape.layers):
        layer, attention, mlp = f"model.layers.{i}", f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        out[f"{layer}.input_layernorm.weight"] = around(1.0, 0.1, h)
        for name, rows in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            out[f"{attention}.{name}.weight"] = normal(rows, h, 1.3)
            out[f"{attention}.{name}.bias"] = around(0.0, 0.1, rows)
        out[f"{attention}.o_proj.weight"] = normal(h, q, 2.0)
        out[f"{layer}.post_attention_layernorm.weight"] = around(1.0, 0.1, h)
        out[f"{mlp}.gate_proj.weight"] = normal(shape.intermediate, h, 1.5)
        out[f"{mlp}.up_proj.weight"] = normal(shape.intermediate, h, 1.5)
        out[f"{mlp}.down_proj.weight"] = normal(h, shape.intermediate, 1.5)
    out["model.norm.weight"] = around(1.0, 0.1, h)
    out["lm_head.weight"] = normal(VOCAB, h, 8.0)
    out["lm_head.weight"][EOS_ID] *= np.float32(0.1)  # a stream that honours eos should still get somewhere
    return out


def _tokenizer() -> Tokenizer:
    """Byte-level BPE whose merges are letter pairs, with and without a leading space, and digit pairs."""
    vocab = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []

    def merge(left: str, right: str) -> None:
        if len(vocab) < EOS_ID and left + right not in vocab:
            merges.append((left, right))
            vocab[left + right] = len(vocab)

    letters, digits, vowels, space = "abcdefghijklmnopqrstuvwxyz", "0123456789", "aeiou", "Ġ"
    for a in letters:
        for b in letters:
            merge(a, b)
    for a in letters:
        merge(space, a)
    for a in letters:
        for b in letters:
            merge(space, a + b)
    for a in digits:
        for b in digits:
            merge(a, b)
    for a in letters:
        for b in letters:
            for c in vowels:
                merge(a + b, c)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([EOS])
    return tokenizer
