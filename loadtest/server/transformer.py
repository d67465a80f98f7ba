"""The forward pass of Qwen2 and Llama in numpy: pure functions over arrays, batched over streams.

Letters in shapes: N rows (tokens being computed), B decoding streams, T cached positions, H heads, K key-value heads,
G = H / K, D head_dim. The arithmetic is Hugging Face's and vLLM's in float32: RMSNorm, rotary in two halves,
grouped-query attention, SwiGLU; a LoRA update is (x Aᵀ) Bᵀ with its scale folded into Bᵀ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from loadtest.server.weights import F32, Layer, Model

Ints = NDArray[np.int64]
Pair = tuple[F32, F32]  # Aᵀ [in, rank], scaled Bᵀ [rank, out]


class Lora(Protocol):
    """An adapter as the forward pass sees it."""

    def pair(self, layer: int, site: str) -> Pair | None:
        """Aᵀ and Bᵀ at "qkv", "o", "gate_up" or "down" of a layer; None where the adapter does nothing."""


Groups = Sequence[tuple[Lora, Ints]]  # adapters in the batch, each with the rows it serves
Attend = Callable[[int, F32, F32, F32], F32]  # layer, q [N, H, D], k, v [N, K, D] -> [N, H, D]


def forward(model: Model, ids: Ints, positions: Ints, groups: Groups, attend: Attend) -> F32:
    """ids [N], positions [N] -> hidden states after the final norm [N, hidden]. `attend` stores k, v and mixes them."""
    x = model.embed[ids]
    cos, sin = model.cos[positions][:, None, :], model.sin[positions][:, None, :]
    for i, layer in enumerate(model.layers):
        x = x + attention(model, i, norm(x, layer.attention_norm, model.config.eps), (cos, sin), groups, attend)
        x = x + mlp(i, layer, norm(x, layer.mlp_norm, model.config.eps), groups)
    return norm(x, model.norm, model.config.eps)


def logits(model: Model, hidden: F32) -> F32:
    """hidden [N, hidden] -> [N, vocab]."""
    return hidden @ model.unembed


def norm(x: F32, weight: F32, eps: float) -> F32:
    """x [N, hidden], weight [hidden] -> [N, hidden], each row of unit root mean square times weight."""
    mean_square = np.einsum("nh,nh->n", x, x) / np.float32(x.shape[1])
    return np.asarray(x * (1.0 / np.sqrt(mean_square + np.float32(eps)))[:, None] * weight, dtype=np.float32)


def attention(model: Model, i: int, x: F32, angles: tuple[F32, F32], groups: Groups, attend: Attend) -> F32:
    """Normed x [N, hidden], (cos, sin) each [N, 1, D/2] -> [N, hidden]."""
    c, layer, n = model.config, model.layers[i], x.shape[0]
    mixed = project(x, layer.qkv, layer.qkv_bias, groups, i, "qkv").reshape(n, c.heads + 2 * c.kv_heads, c.head_dim)
    turned = rotate(mixed[:, : c.heads + c.kv_heads], *angles)
    q, k, v = turned[:, : c.heads], turned[:, c.heads :], mixed[:, c.heads + c.kv_heads :]
    return project(attend(i, q, k, v).reshape(n, c.heads * c.head_dim), layer.o, None, groups, i, "o")


def mlp(i: int, layer: Layer, x: F32, groups: Groups) -> F32:
    """Normed x [N, hidden] -> [N, hidden]."""
    both = project(x, layer.gate_up, None, groups, i, "gate_up")
    half = both.shape[1] // 2
    return project(silu(both[:, :half]) * both[:, half:], layer.down, None, groups, i, "down")


def silu(x: F32) -> F32:
    """x · sigmoid(x), elementwise; very negative x gives -0."""
    with np.errstate(over="ignore"):
        return np.asarray(x / (1.0 + np.exp(-x)), dtype=np.float32)


def rotate(x: F32, cos: F32, sin: F32) -> F32:
    """Rotary embedding: x [N, heads, D], cos and sin [N, 1, D/2] -> [N, heads, D]; pairs are (i, i + D/2)."""
    half = x.shape[2] // 2
    out = np.empty_like(x)
    left, right = x[..., :half], x[..., half:]
    out[..., :half] = left * cos - right * sin
    out[..., half:] = right * cos + left * sin
    return out


def project(x: F32, weight: F32, bias: F32 | None, groups: Groups, layer: int, site: str) -> F32:
    """x [N, in], weight [in, out], bias [out] -> [N, out], plus each group's LoRA update on its rows."""
    y = x @ weight
    if bias is not None:
        y += bias
    for lora, rows in groups:
        pair = lora.pair(layer, site)
        if pair is None:
            continue
        a, b = pair
        if len(rows) == len(x):  # one adapter serves the whole batch: no gather, no scatter
            y += (x @ a) @ b
        else:
            y[rows] += (x[rows] @ a) @ b
    return y


def mix(q: F32, keys: F32, values: F32, hidden: NDArray[np.bool_] | None) -> F32:
    """Softmax attention. q [..., M, D], keys and values [..., T, D], hidden (masked) [..., M, T] -> [..., M, D]."""
    scores = (q * np.float32(q.shape[-1] ** -0.5)) @ keys.swapaxes(-1, -2)
    if hidden is not None:
        np.copyto(scores, np.float32(-np.inf), where=hidden)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    out = scores @ values
    out /= scores.sum(axis=-1, keepdims=True)
    return np.asarray(out, dtype=np.float32)


def pick(rows: F32, temperatures: Sequence[float], rngs: Sequence[np.random.Generator | None]) -> list[int]:
    """Next token of each row of logits [N, vocab]: the largest, or a sample where the temperature is above zero."""
    best: list[int] = rows.argmax(axis=1).tolist()
    if not any(temperatures):
        return best
    for n, (temperature, rng) in enumerate(zip(temperatures, rngs, strict=True)):
        if temperature > 0.0 and rng is not None:  # the largest of logits / temperature + Gumbel noise is a sample
            best[n] = int(np.argmax(rows[n] / np.float32(temperature) + rng.gumbel(size=rows.shape[1])))
    return best


def log_softmax(rows: F32) -> F32:
    """rows [N, vocab] -> log probabilities [N, vocab]."""
    shifted = rows - rows.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), dtype=np.float32)
