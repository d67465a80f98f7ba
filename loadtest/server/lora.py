"""Reads PEFT folders as vLLM does, and refuses what vLLM refuses, in its words.

A folder becomes an immutable Version. Within a layer, q, k and v (and gate and up) share one product: their A are
stacked and their B laid out as a block diagonal, so an adapter costs two products per site whatever it targets.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.server.transformer import Pair
from loadtest.server.weights import F32, Config, read_tensors

NAME = re.compile(r"base_model\.model\.(model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+))\.lora_([AB])\.weight")
SITES = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
TARGETS = tuple(target for targets in SITES.values() for target in targets)
INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")  # set initial values only, so the file is a plain LoRA
UNSUPPORTED = {
    "use_dora": "vLLM does not yet support DoRA.",
    "lora_bias": "vLLM does not support LoRA bias (lora_bias).",
    "alora_invocation_tokens": "vLLM does not support Activated LoRA (aLoRA).",
    "layer_replication": "vLLM does not support layer_replication.",
    "use_bdlora": "vLLM does not support block-diagonal LoRA (BD-LoRA).",
    "use_qalora": "vLLM does not support QALoRA.",
}


class NoAdapter(Exception):
    """The path holds no adapter: not a folder, or one without adapter_config.json."""


class BadAdapter(Exception):
    """The folder is there and cannot be served; the message is vLLM's where vLLM has one."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Version:
    """One content of an adapter in memory; compared by identity, told apart by `sha`."""

    path: str
    sha: str  # of the configuration and the weights
    rank: int
    pairs: Mapping[tuple[int, str], Pair]

    def pair(self, layer: int, site: str) -> Pair | None:
        """Aᵀ [in, rank], scaled Bᵀ [rank, out] at a site of a layer; None where nothing is targeted."""
        return self.pairs.get((layer, site))


def read_version(path: str, config: Config, max_rank: int | None) -> Version:
    """Read and check the folder; `max_rank` None lifts the limit. Raises NoAdapter or BadAdapter."""
    folder = Path(path)
    try:
        raw = (folder / "adapter_config.json").read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise NoAdapter(path) from error
    try:
        peft = json.loads(raw)
    except ValueError as error:
        raise BadAdapter(str(error)) from error
    check(peft, max_rank)
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():  # a pickle beside it would run code when read: refused
        raise BadAdapter("<path> doesn't contain tensors")
    try:
        tensors = read_tensors(weights)
    except (OSError, ValueError) as error:
        raise BadAdapter(str(error)) from error
    sha = hashlib.sha256(raw + weights.read_bytes()).hexdigest()
    return Version(path=path, sha=sha, rank=peft["r"], pairs=_pairs(tensors, peft, config))


def check(peft: Any, max_rank: int | None) -> None:
    """Refuse a configuration that vLLM refuses. Raises BadAdapter with all reasons."""
    missing = {"r", "lora_alpha", "target_modules"} - set(peft if isinstance(peft, dict) else ())
    if missing:
        raise BadAdapter(f"Missing required configuration fields: {missing}")
    ranks = [peft["r"], *(peft.get("rank_pattern") or {}).values()]
    if not all(isinstance(r, int) and r > 0 for r in ranks):
        raise BadAdapter(f"LoRA rank `r` must be a positive integer, got {ranks[0]}.")
    reasons = []
    saved = [m for m in peft.get("modules_to_save") or [] if m not in ("classifier", "score")]
    if saved:
        reasons.append(
            "vLLM only supports modules_to_save being either None or "
            f'["classifier", "score"] for classification models. Unsupported modules_to_save: {saved}'
        )
    reasons += [message for key, message in UNSUPPORTED.items() if peft.get(key)]
    init = peft.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in INITS:
        reasons.append(f"vLLM does not support init_lora_weights={init!r}.")
    if max_rank is not None and max(ranks) > max_rank:
        reasons.append(f"LoRA rank {max(ranks)} is greater than max_lora_rank {max_rank}.")
    if peft.get("bias", "none") != "none":
        reasons.append("Adapter bias is not supported.")
    if reasons:
        raise BadAdapter(" ".join(reasons))


def _pairs(tensors: Mapping[str, F32], peft: Mapping[str, Any], config: Config) -> dict[tuple[int, str], Pair]:
    found: dict[tuple[int, str], dict[str, F32]] = {}
    unexpected = []
    for name, tensor in tensors.items():
        match = NAME.fullmatch(name)
        if match is None or match[3] not in TARGETS or int(match[2]) >= config.layers:
            unexpected.append(name.removeprefix("base_model.model.").partition(".lora_")[0])
            continue
        scaled = tensor * np.float32(scale(peft, match[1])) if match[4] == "B" else tensor
        found.setdefault((int(match[2]), match[3]), {})[match[4]] = scaled
    if unexpected:
        raise BadAdapter(
            f"While loading <path>, expected target modules in {set(TARGETS)} but received {unexpected}. "
            "Please verify that the loaded LoRA module is correct"
        )
    for (layer, target), ab in found.items():
        _check_shapes(f"model.layers.{layer}.{target}", ab, widths(config)[target])
    return {
        (layer, site): pair
        for layer in range(config.layers)
        for site, targets in SITES.items()
        if (pair := _stack({t: found[layer, t] for t in targets if (layer, t) in found}, targets, config)) is not None
    }


def scale(peft: Mapping[str, Any], module: str) -> float:
    """alpha / r, or alpha / sqrt(r) for rsLoRA, with PEFT's per-module patterns applied."""

    def of(pattern: Mapping[str, float] | None, default: float) -> float:
        hits = (value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", module))
        return next(hits, default)

    rank, alpha = of(peft.get("rank_pattern"), peft["r"]), of(peft.get("alpha_pattern"), peft["lora_alpha"])
    return float(alpha / rank**0.5 if peft.get("use_rslora") else alpha / rank)


def widths(config: Config) -> dict[str, tuple[int, int]]:
    """(out, in) of each projection."""
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    hidden, inner = config.hidden, config.intermediate
    return {
        "q_proj": (query, hidden),
        "k_proj": (key, hidden),
        "v_proj": (key, hidden),
        "o_proj": (hidden, query),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }


def _check_shapes(module: str, ab: Mapping[str, F32], width: tuple[int, int]) -> None:
    if set(ab) != {"A", "B"}:
        raise BadAdapter(f"{module} has only lora_{''.join(ab)}, expected lora_A and lora_B")
    a, b = ab["A"].shape, ab["B"].shape
    rank = a[0] if a else 0
    if a != (rank, width[1]) or b != (width[0], rank):
        raise BadAdapter(f"{module} has lora_A {a} and lora_B {b}, expected (r, {width[1]}) and ({width[0]}, r)")


def _stack(found: Mapping[str, Mapping[str, F32]], targets: tuple[str, ...], config: Config) -> Pair | None:
    if not found:
        return None
    outs = [widths(config)[target][0] for target in targets]
    a = np.concatenate([ab["A"] for ab in found.values()])
    b = np.zeros((len(a), sum(outs)), dtype=np.float32)
    row = column = 0
    for target, out in zip(targets, outs, strict=True):
        if target in found:
            part = found[target]["B"]
            b[row : row + part.shape[1], column : column + out] = part.T
            row += part.shape[1]
        column += out
    return np.ascontiguousarray(a.T), b
