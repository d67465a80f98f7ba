"""Random PEFT folders with a visible effect, deterministic by seed: what the server tests load."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Recipe:
    """What goes into a folder; `gain` is the RMS of the update relative to an input of RMS 1."""

    rank: int = 8
    alpha: float = 16.0
    rslora: bool = False
    targets: Sequence[str] = ALL
    gain: float = 1.0
    dtype: str = "float32"
    extra: Mapping[str, object] | None = None  # overrides in adapter_config.json


def make(base: Path, out: Path, seed: int, recipe: Recipe | None = None) -> Path:
    """Write a PEFT folder at `out` for the base folder `base`, A and B random; returns `out`."""
    recipe = recipe or Recipe()
    config = json.loads((base / "config.json").read_text())
    rng = np.random.default_rng([seed, recipe.rank])
    scale = recipe.alpha / (recipe.rank**0.5 if recipe.rslora else recipe.rank)
    tensors: dict[str, np.ndarray] = {}
    for layer in range(config["num_hidden_layers"]):
        for target in recipe.targets:
            rows, columns = _shape(config, target)
            where = "mlp" if target in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            name = f"base_model.model.model.layers.{layer}.{where}.{target}"
            a = rng.standard_normal((recipe.rank, columns)) / columns**0.5
            b = rng.standard_normal((rows, recipe.rank)) * (recipe.gain / (scale * recipe.rank**0.5))
            tensors[f"{name}.lora_A.weight"] = a.astype(recipe.dtype)
            tensors[f"{name}.lora_B.weight"] = b.astype(recipe.dtype)
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
    (out / "adapter_config.json").write_text(json.dumps(_config(base, recipe), indent=2))
    return out


def _shape(config: Mapping[str, int], target: str) -> tuple[int, int]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    query, key = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    return {
        "q_proj": (query, hidden),
        "k_proj": (key, hidden),
        "v_proj": (key, hidden),
        "o_proj": (hidden, query),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }[target]


def _config(base: Path, recipe: Recipe) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": recipe.rank,
        "lora_alpha": recipe.alpha,
        "use_rslora": recipe.rslora,
        "target_modules": list(recipe.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "modules_to_save": None,
        "use_dora": False,
        "inference_mode": True,
        **(recipe.extra or {}),
    }
