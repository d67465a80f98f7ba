"""Reads a Hugging Face folder of the Llama family into float32 arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from loadtest.errors import AdapterError

F32 = NDArray[np.float32]
BIASED = {"Qwen2ForCausalLM": True, "LlamaForCausalLM": False}  # architecture -> do q, k and v have biases
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


@dataclass(frozen=True, slots=True)
class Config:
    """What config.json says about the arithmetic."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    eps: float
    theta: float
    max_position: int
    eos: frozenset[int]
    tied: bool
    biased: bool


@dataclass(frozen=True, slots=True)
class Layer:
    """One block; q, k, v and gate, up are stacked so that each is one product, and transposed: y = x @ weight."""

    attention_norm: F32  # [hidden]
    qkv: F32  # [hidden, (heads + 2 kv_heads) * head_dim]
    qkv_bias: F32 | None  # [(heads + 2 kv_heads) * head_dim]
    o: F32  # [heads * head_dim, hidden]
    mlp_norm: F32  # [hidden]
    gate_up: F32  # [hidden, 2 * intermediate]
    down: F32  # [intermediate, hidden]


@dataclass(frozen=True, slots=True)
class Model:
    """A base model, ready to run."""

    config: Config
    embed: F32  # [vocab, hidden]
    layers: tuple[Layer, ...]
    norm: F32  # [hidden]
    unembed: F32  # [hidden, vocab]
    cos: F32  # [max_position, head_dim]
    sin: F32  # [max_position, head_dim]


def read_tensors(path: Path) -> dict[str, F32]:
    """All tensors of a safetensors file as float32. Raises ValueError when the file is corrupt or of an odd dtype."""
    try:
        entries: list[tuple[str, dict[str, Any]]] = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call,unused-ignore]
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error
    return {name: _array(name, entry) for name, entry in entries}


def _array(name: str, entry: Mapping[str, Any]) -> F32:
    raw, shape, dtype = entry["data"], entry["shape"], entry["dtype"]
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if dtype not in DTYPES:
        raise ValueError(f"tensor {name} has dtype {dtype}, expected one of {[*DTYPES, 'BF16']}")
    return np.frombuffer(raw, dtype=DTYPES[dtype]).reshape(shape).astype(np.float32)


def load_model(folder: Path) -> Model:
    """Read `folder` (config.json, model*.safetensors). Raises AdapterError when it is missing or unsupported."""
    config = read_config(folder)
    tensors: dict[str, F32] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        try:
            tensors.update(read_tensors(path))
        except ValueError as error:
            raise AdapterError(f"{path} cannot be read: {error}", remedy="fetch or generate the base again") from error
    try:
        return _assemble(config, tensors)
    except KeyError as error:
        raise AdapterError(f"{folder} lacks the tensor {error}", remedy="give a Qwen2 or Llama folder") from error


def read_config(folder: Path) -> Config:
    """Parse config.json. Raises AdapterError when it is absent or names something this engine does not compute."""
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{folder} has no readable config.json: {error}", remedy="give a model folder") from error
    architecture = (raw.get("architectures") or ["?"])[0]
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    found = (architecture, raw.get("hidden_act", "silu"), kind, bool(raw.get("use_sliding_window")))
    if architecture not in BIASED or found[1:] != ("silu", "default", False):
        raise AdapterError(
            f"{folder} is {found} (architecture, activation, rope, sliding window)",
            remedy=f"the embedded engine computes {sorted(BIASED)} with silu, default rope and no sliding window",
        )
    eos = raw.get("eos_token_id")
    heads = raw["num_attention_heads"]
    return Config(
        layers=raw["num_hidden_layers"],
        hidden=raw["hidden_size"],
        heads=heads,
        kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        intermediate=raw["intermediate_size"],
        vocab=raw["vocab_size"],
        eps=raw.get("rms_norm_eps", 1e-6),
        theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
        max_position=raw.get("max_position_embeddings", 2048),
        eos=frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos]),
        tied=bool(raw.get("tie_word_embeddings", False)),
        biased=BIASED[architecture],
    )


def _assemble(config: Config, tensors: Mapping[str, F32]) -> Model:
    embed = tensors["model.embed_tokens.weight"]
    cos, sin = rotary(config)
    return Model(
        config=config,
        embed=embed,
        layers=tuple(_layer(config, tensors, f"model.layers.{i}") for i in range(config.layers)),
        norm=tensors["model.norm.weight"],
        unembed=_turned(embed if config.tied else tensors["lm_head.weight"]),
        cos=cos,
        sin=sin,
    )


def _layer(config: Config, tensors: Mapping[str, F32], at: str) -> Layer:
    def stack(*names: str) -> F32:
        return _turned(np.concatenate([tensors[f"{at}.{name}.weight"] for name in names]))

    attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    return Layer(
        attention_norm=tensors[f"{at}.input_layernorm.weight"],
        qkv=stack(*attention),
        qkv_bias=np.concatenate([tensors[f"{at}.{name}.bias"] for name in attention]) if config.biased else None,
        o=stack("self_attn.o_proj"),
        mlp_norm=tensors[f"{at}.post_attention_layernorm.weight"],
        gate_up=stack("mlp.gate_proj", "mlp.up_proj"),
        down=stack("mlp.down_proj"),
    )


def _turned(weight: F32) -> F32:
    return np.ascontiguousarray(weight.T)  # a product with it is a fifth faster than with the transposed view


def rotary(config: Config) -> tuple[F32, F32]:
    """cos and sin of each position, rounded as float32 throughout, each [max_position, head_dim].

    A frequency turns the pair (i, i + head_dim / 2): cos stands at both, -sin at the first and sin at the second.
    """
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequency = (1.0 / np.power(np.float32(config.theta), exponent)).astype(np.float32)
    angle = np.outer(np.arange(config.max_position, dtype=np.float32), frequency)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([cos, cos], axis=1), np.concatenate([-sin, sin], axis=1)
