"""The forward pass of Qwen2 and Llama in numpy: pure functions over arrays, batched over streams.

Letters in shapes: N rows (tokens being computed), B decoding streams, T cached positions, H heads, K key-value heads,
G = H / K, D head_dim. The arithmetic is Hugging Face's and vLLM's in float32: RMSNorm, rotary in two halves,
grouped-query attention, SwiGLU; a LoRA update is (x Aᵀ) Bᵀ with its scale folded into Bᵀ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from loadtest.server.weights import F32, Layer, Model

SMALL = 100**3  # multiplications up to which OpenBLAS copies nothing on x86-64 with AVX-512 (its permit function)
TILE = 64  # columns: of 16, 32, 64 and 128 the fastest on the tiny base, 1.4 times as fast as one product at 64 rows
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
    angles = model.cos[positions][:, None, :], model.sin[positions][:, None, :]
    for i, layer in enumerate(model.layers):
        x += attention(model, i, norm(x, layer.attention_norm, model.config.eps), angles, groups, attend)
        x += mlp(i, layer, norm(x, layer.mlp_norm, model.config.eps), groups)
    return norm(x, model.norm, model.config.eps)


def logits(model: Model, hidden: F32) -> F32:
    """hidden [N, hidden] -> [N, vocab]."""
    return product(hidden, model.unembed)


def product(x: F32, weight: F32) -> F32:
    """x [N, in], weight [in, out] -> [N, out], by tiles small enough for OpenBLAS to read its operands where they are.

    For the few rows of a step, copying a wide weight into its buffers costs as much as the multiplications do.
    """
    rows, (wide, out) = len(x), weight.shape
    most = SMALL // (wide * TILE)  # rows of a tile
    if rows * wide * out <= SMALL or out % TILE or rows == 1 or most < min(rows, TILE // 2):
        return x @ weight
    tiles = weight.reshape(wide, -1, TILE).swapaxes(0, 1)
    y = np.empty((rows, out // TILE, TILE), dtype=np.float32)
    step = -(-rows // -(-rows // most))
    for begin in range(0, rows, step):
        np.matmul(x[begin : begin + step], tiles, out=y[begin : begin + step].swapaxes(0, 1))
    return y.reshape(rows, out)


def norm(x: F32, weight: F32, eps: float) -> F32:
    """x [N, hidden], weight [hidden] -> [N, hidden], each row of unit root mean square times weight."""
    mean_square = np.einsum("nh,nh->n", x, x) / np.float32(x.shape[1])
    y = x * (1.0 / np.sqrt(mean_square + np.float32(eps)))[:, None]
    y *= weight
    return np.asarray(y, dtype=np.float32)


def attention(model: Model, i: int, x: F32, angles: tuple[F32, F32], groups: Groups, attend: Attend) -> F32:
    """Normed x [N, hidden], (cos, sin) each [N, 1, D] -> [N, hidden]."""
    c, layer, n = model.config, model.layers[i], x.shape[0]
    mixed = project(x, layer.qkv, layer.qkv_bias, groups, i, "qkv").reshape(n, c.heads + 2 * c.kv_heads, c.head_dim)
    turned = rotate(mixed[:, : c.heads + c.kv_heads], *angles)
    q, k, v = turned[:, : c.heads], turned[:, c.heads :], mixed[:, c.heads + c.kv_heads :]
    return project(attend(i, q, k, v).reshape(n, c.heads * c.head_dim), layer.o, None, groups, i, "o")


def mlp(i: int, layer: Layer, x: F32, groups: Groups) -> F32:
    """Normed x [N, hidden] -> [N, hidden]."""
    both = project(x, layer.gate_up, None, groups, i, "gate_up")
    half = both.shape[1] // 2
    gated = silu(both[:, :half])
    gated *= both[:, half:]
    return project(gated, layer.down, None, groups, i, "down")


def silu(x: F32) -> F32:
    """x · sigmoid(x), elementwise; very negative x gives -0."""
    y = np.negative(x)
    with np.errstate(over="ignore"):
        np.exp(y, out=y)
    y += np.float32(1.0)
    return np.divide(x, y, out=y)


def rotate(x: F32, cos: F32, sin: F32) -> F32:
    """Rotary embedding: x [N, heads, D], cos and signed sin [N, 1, D] -> [N, heads, D]; pairs are (i, i + D/2)."""
    half = x.shape[2] // 2
    partners = np.empty_like(x)
    partners[..., :half], partners[..., half:] = x[..., half:], x[..., :half]
    partners *= sin
    out = x * cos
    out += partners
    return np.asarray(out, dtype=np.float32)


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


def pick(rows: F32, draws: Mapping[int, tuple[float, np.random.Generator]]) -> list[int]:
    """Next token of each row of logits [N, vocab]: the largest, or a sample where `draws` has a row's temperature."""
    best: list[int] = rows.argmax(axis=1).tolist()
    for n, (temperature, rng) in draws.items():
        # the largest of logits / temperature + Gumbel noise is a sample
        best[n] = int(np.argmax(rows[n] / np.float32(temperature) + rng.gumbel(size=rows.shape[1])))
    return best


def log_softmax(rows: F32) -> F32:
    """rows [N, vocab] -> log probabilities [N, vocab]."""
    shifted = rows - rows.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), dtype=np.float32)
