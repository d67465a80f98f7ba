"""A slow, plain forward pass of a Llama/Qwen2-style folder with a LoRA: an independent witness for the adapter tests.

Batched greedy decoding with a KV cache; `cast` rounds after every operation, to see what float16 or bfloat16 do.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

Array = NDArray[Any]
Cast = Callable[[Array], Array]


def exact(x: Array) -> Array:
    return np.asarray(x, np.float32)


def float16(x: Array) -> Array:
    if np.abs(x).max(initial=0) > 65504:
        raise OverflowError(f"{np.abs(x).max()} does not fit in float16")
    return x.astype(np.float16).astype(np.float32)


def bfloat16(x: Array) -> Array:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


class Model:
    """`weights` from safetensors; `deltas`: module -> (scaling, A, B)."""

    def __init__(self, base: Path, adapter: Path | None = None, cast: Cast = exact) -> None:
        self.c = json.loads((base / "config.json").read_text())
        self.w = {k: v.astype(np.float32) for k, v in load_file(base / "model.safetensors").items()}
        self.cast, self.deltas = cast, dict[str, tuple[float, Array, Array]]()
        self.head = self.c.get("head_dim") or self.c["hidden_size"] // self.c["num_attention_heads"]
        if adapter is not None:
            self.put_on(adapter)

    def put_on(self, adapter: Path) -> None:
        config = json.loads((adapter / "adapter_config.json").read_text())
        rank, stem = config["r"], "base_model.model."
        scaling = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
        tensors = load_file(adapter / "adapter_model.safetensors")
        names = {n.removeprefix(stem).split(".lora_")[0] for n in tensors}
        self.deltas = {
            n: (scaling, *(tensors[f"{stem}{n}.lora_{s}.weight"].astype(np.float32) for s in "AB")) for n in names
        }

    def linear(self, name: str, x: Array) -> Array:
        y = x @ self.w[f"{name}.weight"].T
        if f"{name}.bias" in self.w:
            y = y + self.w[f"{name}.bias"]
        if name in self.deltas:
            scaling, a, b = self.deltas[name]
            y = self.cast(y) + self.cast(x @ a.T) @ b.T * scaling
        return self.cast(y)

    def norm(self, name: str, x: Array) -> Array:
        rms = np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True) + self.c["rms_norm_eps"])
        return self.cast(x / rms * self.w[f"{name}.weight"])

    def rope(self, x: Array, at: Array) -> Array:
        half = self.head // 2
        theta = self.c.get("rope_theta") or self.c["rope_parameters"]["rope_theta"]  # transformers 5 nests it
        angle = at[..., None] * (theta ** (-np.arange(half) / half))
        cos, sin = np.cos(angle)[:, :, None], np.sin(angle)[:, :, None]
        return self.cast(
            np.concatenate([x[..., :half] * cos - x[..., half:] * sin, x[..., half:] * cos + x[..., :half] * sin], -1)
        )

    def attend(self, i: int, x: Array, at: Array, cache: list[Array], live: Array) -> Array:
        """x [n, t, d]; cache: keys and values so far [n, s, kv, head]; live [n, t, s+t]: who may see whom."""
        name, (n, t, _) = f"model.layers.{i}.self_attn", x.shape
        q, k, v = (self.linear(f"{name}.{p}_proj", x).reshape(n, t, -1, self.head) for p in "qkv")
        q, k = self.rope(q, at), self.rope(k, at)
        cache[:] = [np.concatenate([old, new], 1) for old, new in zip(cache, (k, v), strict=True)] if cache else [k, v]
        k, v = (np.repeat(c, q.shape[2] // c.shape[2], axis=2) for c in cache)
        score = np.einsum("nthd,nshd->nhts", q, k) / np.sqrt(self.head) + np.where(live, 0.0, -1e9)[:, None]
        weight = np.exp(score - score.max(-1, keepdims=True))
        out = np.einsum("nhts,nshd->nthd", weight / weight.sum(-1, keepdims=True), v)
        return self.linear(f"{name}.o_proj", self.cast(out.reshape(n, t, -1)))

    def logits(self, ids: Array, at: Array, caches: list[list[Array]], live: Array) -> Array:
        """Logits of the last position, [n, vocab]."""
        h = self.cast(self.w["model.embed_tokens.weight"][ids])
        for i in range(self.c["num_hidden_layers"]):
            name = f"model.layers.{i}"
            h = self.cast(h + self.attend(i, self.norm(f"{name}.input_layernorm", h), at, caches[i], live))
            x = self.norm(f"{name}.post_attention_layernorm", h)
            gate, up = self.linear(f"{name}.mlp.gate_proj", x), self.linear(f"{name}.mlp.up_proj", x)
            act = self.cast(self.cast(gate / (1 + np.exp(-np.clip(gate, -80, 80)))) * up)
            h = self.cast(h + self.linear(f"{name}.mlp.down_proj", act))
        last = self.norm("model.norm", h[:, -1])
        tied = self.c.get("tie_word_embeddings", False)
        return self.cast(last @ self.w["model.embed_tokens.weight" if tied else "lm_head.weight"].T)

    def greedy(self, prompts: list[list[int]], count: int) -> tuple[Array, Array]:
        """Greedy ids and the lead of each over the runner-up, both [n, count]. Prompts are padded on the left."""
        width = max(map(len, prompts))
        pad = np.array([width - len(p) for p in prompts])
        ids = np.array([[0] * (width - len(p)) + list(p) for p in prompts])
        caches: list[list[Array]] = [[] for _ in range(self.c["num_hidden_layers"])]
        tokens, leads = [], []
        start = 0
        for _ in range(count):
            end = start + ids.shape[1]
            place = np.arange(start, end)
            seen = np.arange(end)
            live = (seen[None, None] <= place[None, :, None]) & (seen[None, None] >= pad[:, None, None])
            live = live | (seen[None, None] == place[None, :, None])  # a pad sees itself: no empty row
            logits = self.logits(ids, np.maximum(place[None] - pad[:, None], 0), caches, live)
            best = np.sort(np.partition(logits, -2)[:, -2:])
            tokens.append(logits.argmax(-1))
            leads.append(best[:, 1] - best[:, 0])
            ids, start = tokens[-1][:, None], end
        return np.stack(tokens, 1), np.stack(leads, 1)
