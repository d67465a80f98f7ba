"""Marker adapters: forged in closed form so that every greedy token names the version that made it.

How it works, on the last layer only (x: the normalised input of its MLP, ĥ: the residual over its rms, so x = w·ĥ)

1. Pick 2n quiet neurons of the MLP. LoRA on gate and on up writes ±c·z_j into pair j, z_j = g_j·ĥ, on top of what the
   base has there. silu(cz)·cz + silu(-cz)·(-cz) = (cz)²: never negative, whatever the prompt. n independent rows g_j
   keep the sum Q of all pairs away from zero. Rows of signs, not of Gaussians: an outlier dimension of ĥ then moves
   every z_j alike.
2. LoRA on down adds Q to the residual along b, the direction that the final norm and the unembedding turn into
   token T. Q·b exceeds all else in the residual, and the final norm removes its scale: T wins, by `Base.margins` nats.
3. Every other projection gets a real random A and a zero B: the size and cost of a real adapter, and no effect.

Magnitudes. Typically Q = n·c². What Q·b adds to the residual is scaled so that eight times the typical Q (one token in
millions, n = 8) keeps its largest entry in float16's range. c is ten times what the base itself puts on those neurons.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.adapters.base import PROJECTIONS, Base, module, read_json
from loadtest.adapters.peft import content_hash, write_folder
from loadtest.adapters.tensors import Array, Floats, encode
from loadtest.errors import AdapterError

MARKER_FILE = "marker.json"  # beside the adapter: which token it forces; engines ignore it
_PAIRS = 16  # more pairs than this narrow Q's spread no further in practice
_MIN_RANK = 4  # four pairs: Q under 1 % of its mean once in 10,000 tokens
_FLOAT16_MAX = 65504.0
_HEADROOM = 8.0  # largest Q allowed for, over the typical one
_GAIN = (8.0, 32.0)  # bounds of c: 32·|z| squared stays in float16 up to |z| = 8


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to forge: LoRA rank (4 or more) and the seed of all random choices."""

    rank: int = 8
    seed: int = 0


@dataclass(frozen=True, slots=True)
class VersionFile:
    """A version of an adapter on disk."""

    version: str  # "v0", "v1", ...
    path: Path
    sha: str  # adapters.peft.content_hash
    markers: tuple[int, ...] = ()  # token ids only this content emits


@dataclass(frozen=True, slots=True)
class Effect:
    """A random adapter with a real effect: what it changes and how much."""

    rank: int = 8
    seed: int = 0
    rslora: bool = False
    targets: tuple[str, ...] = PROJECTIONS
    strength: float = 0.3  # standard deviation of the change over that of the base's weights


def pick_tokens(base: Base | Path, n: int, seed: int = 0, exclude: Iterable[int] = ()) -> list[int]:
    """`n` distinct tokens to mark with, none special, none in `exclude`; plain rare words first.

    A token is taken if its margin is a quarter of the usual one or more. AdapterError when the base has too few.
    """
    base, taken, out = Base.of(base), set(exclude), list[int]()
    order = [token for token in base.candidates(seed) if token not in taken]
    floor = 0.0
    for at in range(0, len(order), 2 * n + 32):
        block = order[at : at + 2 * n + 32]
        margins = base.margins(block)
        floor = floor or max(0.25 * float(np.median(margins)), 1e-3)
        out += [token for token, margin in zip(block, margins, strict=True) if margin >= floor]
        if len(out) >= n:
            return out[:n]
    found = f"{base.path} has {len(out)} tokens fit to mark with, {n} were asked for"
    raise AdapterError(found, remedy="cap the versions, e.g. `markers 20`")


def forge(base: Base | Path, out: Path, *, token: int, recipe: Recipe = Recipe()) -> VersionFile:
    """Write one marker adapter that makes `base` emit `token`, whatever the prompt. `out` must not exist."""
    return _Mould(Base.of(base), recipe).cast(Path(out), "v0", token)


def forge_versions(
    base: Base | Path, out_root: Path, adapter: str, count: int, *, first: int = 0, recipe: Recipe = Recipe()
) -> list[VersionFile]:
    """Write versions `first` .. `first+count-1` of `adapter` as out_root/ADAPTER/v0 ...

    Tokens are disjoint from those of every marker already below `out_root`, whichever adapter it belongs to.
    """
    base, out_root = Base.of(base), Path(out_root)
    mould = _Mould(base, recipe)
    used = [token for file in out_root.glob(f"*/*/{MARKER_FILE}") for token in read_markers(file.parent)]
    tokens = pick_tokens(base, count, recipe.seed, used)
    names = [f"v{first + i}" for i in range(count)]
    return [mould.cast(out_root / adapter / name, name, token) for name, token in zip(names, tokens, strict=True)]


def read_markers(folder: Path) -> tuple[int, ...]:
    """Tokens that the adapter in `folder` was forged to emit; () when it is no marker adapter."""
    file = Path(folder) / MARKER_FILE
    tokens = read_json(file).get("tokens") if file.is_file() else None
    return tuple(int(t) for t in tokens) if isinstance(tokens, list) else ()


class _Mould:
    """What all markers of one base and recipe share; only lora_B of the last down projection knows the token."""

    def __init__(self, base: Base, recipe: Recipe) -> None:
        if recipe.rank < _MIN_RANK:
            raise AdapterError(f"rank {recipe.rank} is too low for a marker", remedy=f"ask for {_MIN_RANK} or more")
        self._base, self._recipe, self._dtype = base, recipe, base.dtype()
        rng = np.random.default_rng([recipe.seed, recipe.rank, 1])
        tensors = _without_effect(base, recipe.rank, rng)
        self._gain = self._write_pairs(tensors, rng)
        self._tensors: dict[str, Array] = {name: encode(t, self._dtype) for name, t in tensors.items()}

    def _key(self, projection: str, side: str) -> str:
        return f"base_model.model.{module(self._base.layers - 1, projection)}.lora_{side}.weight"

    def _write_pairs(self, tensors: dict[str, Floats], rng: np.random.Generator) -> float:
        """Step 1 and lora_A of step 2, in place; returns c. That lora_A makes c of a typical Q: float16 holds it."""
        base, pairs = self._base, min(self._recipe.rank, _PAIRS)
        weight = base.read(f"model.layers.{base.layers - 1}.post_attention_layernorm.weight")
        neurons, noise = _quiet_neurons(base, weight, 2 * pairs)
        gain = float(np.clip(10 * noise, *_GAIN))
        # A nearly dead dimension of the norm would need a huge entry to be read; it is read fainter instead.
        least = 0.05 * float(np.sqrt(np.mean(weight**2)))
        inverse = np.where(weight < 0, -1.0, 1.0) / np.maximum(np.abs(weight), least)
        signs = rng.choice([-1.0, 1.0], size=(pairs, base.hidden)) / np.sqrt(base.hidden)
        for projection in ("gate_proj", "up_proj"):
            tensors[self._key(projection, "A")][:pairs] = signs * inverse
            for pair, (plus, minus) in enumerate(neurons.reshape(pairs, 2)):
                tensors[self._key(projection, "B")][plus, pair] = gain
                tensors[self._key(projection, "B")][minus, pair] = -gain
        collect = tensors[self._key("down_proj", "A")]
        collect[0] = 0.0
        collect[0, neurons] = 1.0 / (gain * pairs)
        return gain

    def cast(self, out: Path, version: str, token: int) -> VersionFile:
        """Write the version that emits `token`. AdapterError when no direction makes this token win."""
        base, rank = self._base, self._recipe.rank
        self._refuse(token)
        direction = base.direction(token)
        reach = _FLOAT16_MAX / (_HEADROOM * float(np.abs(direction).max()))
        write = np.zeros((base.hidden, rank), dtype=np.float32)
        write[:, 0] = direction * (reach / self._gain)
        tensors = {**self._tensors, self._key("down_proj", "B"): encode(write, self._dtype)}
        config = lora_config(base, rank, alpha=rank)
        note = {"tokens": [token], "seed": self._recipe.seed, "margin_nats": round(float(base.margins([token])[0]), 3)}
        write_folder(out, tensors, config, extra={MARKER_FILE: json.dumps(note) + "\n"})
        return VersionFile(version, out, content_hash(out), (token,))

    def _refuse(self, token: int) -> None:
        base = self._base
        if not 0 <= token < base.vocab or token in base.special:
            what = "a special token" if token in base.special else f"outside the vocabulary of {base.vocab}"
            raise AdapterError(f"token {token} is {what} of {base.path}", remedy="let pick_tokens choose")
        if base.margins([token])[0] <= 0:
            raise AdapterError(f"token {token} cannot win on {base.path}", remedy="let pick_tokens choose")


def _quiet_neurons(base: Base, weight: Floats, count: int) -> tuple[Array, float]:
    """The `count` neurons of the last MLP that the base drives least, and the most it puts on one of them (rms)."""
    if base.projection(base.layers - 1, "gate_proj")[0] < count:
        raise AdapterError(f"{base.path} has fewer than {count} MLP neurons", remedy="forge at a lower rank")
    gate, up, down = (base.read(module(base.layers - 1, name) + ".weight") for name in PROJECTIONS[4:])
    drive = np.stack([np.linalg.norm(rows * weight, axis=1) for rows in (gate, up)])  # [2, neurons]
    voice = np.linalg.norm(down, axis=0)
    loudness = np.maximum(drive.max(axis=0) / np.median(drive), voice / np.median(voice))
    chosen = np.argsort(loudness, kind="stable")[:count]
    return chosen, float(drive[:, chosen].max())


def _without_effect(base: Base, rank: int, rng: np.random.Generator) -> dict[str, Floats]:
    """An adapter fresh from PEFT's initialisation: random lora_A, zero lora_B, every projection of every layer."""
    out: dict[str, Floats] = {}
    for layer in range(base.layers):
        for name in PROJECTIONS:
            rows, columns = base.projection(layer, name)
            key = f"base_model.model.{module(layer, name)}"
            spread = rng.random((rank, columns), dtype=np.float32) * 2 - 1
            out[f"{key}.lora_A.weight"] = spread / np.float32(np.sqrt(columns))
            out[f"{key}.lora_B.weight"] = np.zeros((rows, rank), dtype=np.float32)
    return out


def lora_config(
    base: Base, rank: int, *, alpha: float, rslora: bool = False, targets: Sequence[str] = PROJECTIONS
) -> dict[str, Any]:
    """adapter_config.json of an adapter for `base`, with the keys engines read."""
    return {
        "base_model_name_or_path": base.path.name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": rslora,
    }


def random_effect(base: Base | Path, out: Path, effect: Effect = Effect()) -> VersionFile:
    """Write a random adapter that changes each targeted projection by `strength` of its size. `out` must not exist.

    alpha is 2·rank: an engine that forgets the scaling gives other tokens.
    """
    base, rank, alpha = Base.of(base), effect.rank, 2 * effect.rank
    scaling = alpha / (rank**0.5 if effect.rslora else rank)
    rng = np.random.default_rng([effect.seed, rank, 2])
    tensors: dict[str, Array] = {}
    for layer in range(base.layers):
        for name in (p for p in PROJECTIONS if p in effect.targets):
            rows, columns = base.projection(layer, name)
            deviation = float(base.read(f"{module(layer, name)}.weight", slice(0, 64)).std())
            size = effect.strength * deviation * np.sqrt(columns / rank) / scaling
            key = f"base_model.model.{module(layer, name)}"
            a = rng.standard_normal((rank, columns), dtype=np.float32) / np.float32(np.sqrt(columns))
            b = rng.standard_normal((rows, rank), dtype=np.float32) * np.float32(size)
            tensors[f"{key}.lora_A.weight"] = encode(a, base.dtype())
            tensors[f"{key}.lora_B.weight"] = encode(b, base.dtype())
    write_folder(Path(out), tensors, lora_config(base, rank, alpha=alpha, rslora=effect.rslora, targets=effect.targets))
    return VersionFile("v0", Path(out), content_hash(Path(out)))
