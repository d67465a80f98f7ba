"""Every reason an engine such as vLLM would refuse a PEFT folder, or serve it wrongly, found before a server is asked.

Each reason is one sentence: the value found, where, and what to do. An empty list means "no reason known".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from loadtest.adapters.base import PROJECTIONS, read_json
from loadtest.adapters.tensors import Entry, read_header
from loadtest.errors import AdapterError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLES = ("adapter_model.bin", "adapter_model.pt")
_WHOLE_MODEL = ("embed_tokens", "lm_head")
_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+?)\.lora_(?:embedding_)?(?P<side>[AB])(?:\.weight)?")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_FLOATS = ("F64", "F32", "F16", "BF16")
# Key, the values that mean "off", what to do. Engines refuse the rest or ignore it, which is worse.
_UNSUPPORTED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("use_dora", (None, False), "merge it into a plain LoRA or train without DoRA"),
    ("bias", (None, "none"), 'train with bias="none"'),
    ("lora_bias", (None, False), "train without lora_bias"),
    ("modules_to_save", (None, []), "train without modules_to_save"),
    ("rank_pattern", (None, {}), "train all modules at one rank"),
    ("alpha_pattern", (None, {}), "train all modules with one alpha"),
    ("trainable_token_indices", (None, [], {}), "train without new token embeddings"),
    ("fan_in_fan_out", (None, False), "transpose the weights and switch it off"),
)


def refusals(path: Path, *, max_rank: int | None = None, base: Path | None = None) -> list[str]:
    """All reasons to refuse `path`; `max_rank`: the server's --max-lora-rank; `base`: the folder of its base model.

    AdapterError only when `base` itself cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        return [f"{path} is not a folder: give the folder that holds {CONFIG}"]
    shapes = _base_shapes(base) if base is not None else None
    config = _config_or_reason(path)
    out = [config] if isinstance(config, str) else [*_config_reasons(config, path, max_rank)]
    tensors = _tensors_or_reason(path)
    if isinstance(tensors, str):
        return [*out, tensors]
    rank = config.get("r") if isinstance(config, dict) else None
    return [*out, *_tensor_reasons(tensors, path, rank, max_rank), *_fit_reasons(tensors, path, shapes)]


def _config_or_reason(path: Path) -> dict[str, Any] | str:
    if not (path / CONFIG).is_file():
        return f"{CONFIG} is missing in {path}: copy it from where the adapter was trained"
    try:
        return read_json(path / CONFIG)
    except AdapterError as error:
        return str(error)


def _tensors_or_reason(path: Path) -> dict[str, Entry] | str:
    if not (path / WEIGHTS).is_file():
        pickles = [name for name in PICKLES if (path / name).is_file()]
        if pickles:
            return f"{path} holds {pickles[0]}, a pickle that runs code when loaded: save the adapter as {WEIGHTS}"
        return f"{WEIGHTS} is missing in {path}: copy it from where the adapter was trained"
    try:
        return read_header(path / WEIGHTS)
    except AdapterError as error:
        return str(error)


def _config_reasons(config: Mapping[str, Any], path: Path, max_rank: int | None) -> Iterator[str]:
    where = path / CONFIG
    for key in (key for key in ("r", "lora_alpha", "target_modules") if key not in config):
        yield f"{key} is missing in {where}: add it"
    if config.get("peft_type", "LORA") != "LORA":
        yield f"peft_type is {config['peft_type']!r} in {where}, not 'LORA': only LoRA adapters can be served"
    rank, alpha = config.get("r", 1), config.get("lora_alpha", 1)
    if not is_count(rank):
        yield f"r is {rank!r} in {where}: a rank is a whole number of 1 or more"
    elif max_rank is not None and rank > max_rank:
        yield _too_high(f"r is {rank} in {where}", rank, max_rank)
    if not is_alpha(alpha):
        yield f"lora_alpha is {alpha!r} in {where}: give a number"
    targets = config.get("target_modules", [])
    if not isinstance(targets, str) and not (isinstance(targets, list) and all(isinstance(t, str) for t in targets)):
        yield f"target_modules is {targets!r} in {where}: give a list of module names"
    for key, off, remedy in _UNSUPPORTED:
        if not any(config.get(key) == value for value in off):
            yield f"{key} is {config[key]!r} in {where}, which engines do not serve: {remedy}"


def is_count(value: Any) -> TypeGuard[int]:
    """A whole number of 1 or more, as a rank is."""
    return type(value) is int and value >= 1


def is_alpha(value: Any) -> TypeGuard[int | float]:
    """A number that float32 holds."""
    return type(value) in (int, float) and abs(value) < 3e38


def _too_high(what: str, rank: int, max_rank: int) -> str:
    return f"{what}, above the server's maximum of {max_rank}: raise its --max-lora-rank or train a smaller adapter"


def _tensor_reasons(tensors: Mapping[str, Entry], path: Path, rank: Any, max_rank: int | None) -> Iterator[str]:
    """What is wrong with the tensors by themselves: names, pairs, ranks, dtypes."""
    where = path / WEIGHTS
    if not tensors:
        yield f"{where} holds no tensor: save the adapter again after training"
    sides: dict[str, dict[str, Entry]] = {}
    for name, entry in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            yield f"{name} in {where} is not a LoRA tensor: save the adapter with PEFT, without other weights"
        else:
            sides.setdefault(match["module"], {})[match["side"]] = entry
        if entry.dtype not in _FLOATS:
            yield f"{name} in {where} is {entry.dtype}: convert it to float32, float16 or bfloat16"
    ranks: dict[int, str] = {}
    for module, pair in sides.items():
        yield from _pair_reasons(module, pair, where, ranks)
    if is_count(rank):
        for found in (found for found in ranks if found != rank):
            yield f"{ranks[found]} in {where} has rank {found}, {CONFIG} says r {rank}: make them agree"
    if max_rank is not None and ranks and max(ranks) > max_rank and max(ranks) != rank:
        yield _too_high(f"{ranks[max(ranks)]} in {where} has rank {max(ranks)}", max(ranks), max_rank)


def _pair_reasons(module: str, pair: Mapping[str, Entry], where: Path, ranks: dict[int, str]) -> Iterator[str]:
    """lora_A is [rank, in] and lora_B is [out, rank]; notes the first module of each rank in `ranks`."""
    if len(pair) < 2:
        yield f"{module} in {where} has lora_{min(pair)} but not its other half: save the adapter again"
        return
    a, b = pair["A"].shape, pair["B"].shape
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or 0 in (*a, *b):
        found = f"lora_A {list(a)} and lora_B {list(b)}"
        yield f"{module} in {where} has {found}, not [rank, in] and [out, rank]: save the adapter again"
        return
    ranks.setdefault(a[0], module)


def _base_shapes(base: Path) -> dict[str, Any]:
    """config.json of the base: the dimensions an adapter must have."""
    config = read_json(Path(base) / "config.json")
    for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size"):
        if not is_count(config.get(key)):
            what = f"{base}/config.json: {key} is {config.get(key)!r}"
            raise AdapterError(what, remedy="give the folder of a base model")
    return config


def _dimensions(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Module's last name -> (out, in) features."""
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    kv = (config.get("num_key_value_heads") or heads) * head
    return {
        "q_proj": (heads * head, hidden),
        "k_proj": (kv, hidden),
        "v_proj": (kv, hidden),
        "o_proj": (hidden, heads * head),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
        "lm_head": (config["vocab_size"], hidden),
        "embed_tokens": (hidden, config["vocab_size"]),
    }


def _fit_reasons(tensors: Mapping[str, Entry], path: Path, config: Mapping[str, Any] | None) -> Iterator[str]:
    """Modules and shapes against the base; without a base only the modules' names."""
    where, dimensions = path / WEIGHTS, _dimensions(config) if config else {}
    for name, entry in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            continue
        module, kind = match["module"], match["module"].rpartition(".")[2]
        if kind not in PROJECTIONS and kind not in _WHOLE_MODEL:
            yield f"{module} in {where} is not a module engines adapt: train only {', '.join(PROJECTIONS)}"
            continue
        layer = _LAYER.search(module)
        if config and layer and int(layer[1]) >= config["num_hidden_layers"]:
            layers = config["num_hidden_layers"]
            yield f"{module} in {where} is not in a base of {layers} layers: use the base it was trained on"
            continue
        side, place = (1, -1) if match["side"] == "A" else (0, 0)
        if kind in dimensions and len(entry.shape) == 2 and entry.shape[place] != dimensions[kind][side]:
            found, needed = entry.shape[place], dimensions[kind][side]
            yield f"{name} in {where} has {found} features where the base has {needed}: use the base it was trained on"
