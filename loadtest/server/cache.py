"""Keys and values: one preallocated array per layer for running streams, and shared blocks of earlier prompts.

Rules
1. Slots 0..B-1 belong to the B running streams, so that a decode step reads views, not copies: when a stream leaves,
   the last one moves into its slot.
2. Arrays grow by doubling, in slots and in positions.
3. A prefix block is found by its namespace (which weights computed it), its parent block and its tokens. Two versions
   of an adapter never share a block unless somebody gives them one namespace.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.server.transformer import Attend, Ints, mix
from loadtest.server.weights import F32, Config

BLOCK = 16  # tokens
# Measured on the tiny base; half or twice as much costs up to 5 % more.
PART = 16  # slots that attend together, at least
PARTS = 8  # such groups in a batch, at most
PADDING = 500  # positions of padding that cost what another group costs


class Cache:
    """Keys and values of the running streams; `keys[layer]` is [slots, kv_heads, positions, head_dim]."""

    def __init__(self, config: Config, slots: int = 8, positions: int = 256) -> None:
        self._config = config
        shape = (slots, config.kv_heads, positions, config.head_dim)
        self.keys = [np.zeros(shape, dtype=np.float32) for _ in range(config.layers)]
        self.values = [np.zeros(shape, dtype=np.float32) for _ in range(config.layers)]
        self.lengths = np.zeros(slots, dtype=np.int64)  # positions computed so far

    def reserve(self, slots: int, positions: int) -> None:
        """Make room for `slots` streams of `positions` tokens; keeps what is there."""
        have = self.keys[0].shape
        want = (_grown(have[0], slots), have[1], _grown(have[2], positions), have[3])
        if want == have:
            return
        self.lengths = np.concatenate([self.lengths, np.zeros(want[0] - have[0], dtype=np.int64)])
        for arrays in (self.keys, self.values):
            for i, old in enumerate(arrays):
                arrays[i] = np.zeros(want, dtype=np.float32)
                arrays[i][: have[0], :, : have[2]] = old

    def vacate(self, slot: int, last: int) -> list[tuple[int, int]]:
        """Fill `slot`, of the slots 0..`last`, from behind, so that neighbours stay alike in length.

        Returns the moves made, as (source, target) in order; after them `last` is free. Each part passes its longest
        stream on to the part before it, unless the last stream is as long.
        """
        moves: list[tuple[int, int]] = []
        size = part_size(last + 1)
        while slot != last:
            begin = (slot // size + 1) * size
            following = self.lengths[begin : min(begin + size, last + 1)]
            source = begin + int(following.argmax()) if len(following) else last
            if self.lengths[source] <= self.lengths[last]:
                source = last
            self._move(source, slot)
            moves.append((source, slot))
            slot = source
        return moves

    def _move(self, source: int, target: int) -> None:
        length = self.lengths[target] = self.lengths[source]
        for arrays in (self.keys, self.values):
            for array in arrays:
                array[target, :, :length] = array[source, :, :length]

    def decode(self, slots: Ints, positions: Ints) -> Attend:
        """One new token for each of `slots` [B], at `positions` [B]; slots 0..B-1 cost no copy."""
        count, lengths = len(slots), positions + 1
        self.lengths[slots] = lengths
        dense = int(slots[-1]) == count - 1
        parts = []
        for begin, end, length in alike(lengths):
            rows = slice(begin, end)
            ahead = np.arange(length) >= lengths[rows, None]  # [rows, T]
            hidden = ahead[:, None, None, :] if ahead.any() else None
            parts.append((rows, rows if dense else slots[rows], length, hidden))

        def attend(layer: int, q: F32, k: F32, v: F32) -> F32:
            keys, values = self.keys[layer], self.values[layer]
            keys[slots, :, positions] = k
            values[slots, :, positions] = v
            grouped = q.reshape(count, k.shape[1], -1, q.shape[2])  # [B, K, G, D]
            out = np.empty_like(grouped)
            for rows, part, length, hidden in parts:
                out[rows] = mix(grouped[rows], keys[part, :, :length], values[part, :, :length], hidden)
            return out.reshape(q.shape)

        return attend

    def prefill(self, spans: Sequence[tuple[int, int, int]]) -> Attend:
        """Several new tokens of some streams, packed: spans of (slot, first position, end position)."""
        for slot, _, end in spans:
            self.lengths[slot] = end

        def attend(layer: int, q: F32, k: F32, v: F32) -> F32:
            out, row = np.empty_like(q), 0
            for slot, start, end in spans:
                rows = slice(row, row + end - start)
                row = rows.stop
                keys, values = self.keys[layer][slot], self.values[layer][slot]  # [K, positions, D]
                keys[:, start:end] = k[rows].swapaxes(0, 1)
                values[:, start:end] = v[rows].swapaxes(0, 1)
                out[rows] = _causal(q[rows], keys[:, :end], values[:, :end], start)
            return out

        return attend

    def both(self, slots: Ints, positions: Ints, spans: Sequence[tuple[int, int, int]]) -> Attend:
        """One new token for each of `slots`, then the new tokens of `spans`; either may be empty."""
        if not spans:
            return self.decode(slots, positions)
        prompts, count = self.prefill(spans), len(slots)
        if not count:
            return prompts
        running = self.decode(slots, positions)

        def attend(layer: int, q: F32, k: F32, v: F32) -> F32:
            one = running(layer, q[:count], k[:count], v[:count])
            return np.concatenate([one, prompts(layer, q[count:], k[count:], v[count:])])

        return attend

    def block(self, slot: int, start: int) -> F32:
        """A copy of BLOCK positions of a slot: [2, layers, kv_heads, BLOCK, head_dim]."""
        part = slice(start, start + BLOCK)
        return np.stack([np.stack([a[slot, :, part] for a in arrays]) for arrays in (self.keys, self.values)])

    def put(self, slot: int, start: int, block: F32) -> None:
        """Write a copied block back at `start` of a slot."""
        for arrays, content in zip((self.keys, self.values), block, strict=True):
            for array, layer in zip(arrays, content, strict=True):
                array[slot, :, start : start + BLOCK] = layer


def block_bytes(config: Config) -> int:
    """Memory of one cached block."""
    return 2 * config.layers * config.kv_heads * BLOCK * config.head_dim * 4


def part_size(count: int) -> int:
    """Slots that attend together when there are `count`: few enough to be alike, and not too many parts."""
    return max(PART, -(-count // PARTS))


def alike(lengths: Ints) -> list[tuple[int, int, int]]:
    """Neighbours [B] that attend together, as (first, end, longest): parted where padding costs more than a call."""
    size = part_size(len(lengths))
    longest = np.maximum.reduceat(lengths, np.arange(0, len(lengths), size)).tolist()
    found: list[tuple[int, int, int]] = []
    for n, length in enumerate(longest):
        begin, end = n * size, min((n + 1) * size, len(lengths))
        if found:
            first, middle, before = found[-1]
            both = max(length, before)
            if (both - before) * (middle - first) + (both - length) * (end - begin) < PADDING:
                found[-1] = first, end, both
                continue
        found.append((begin, end, length))
    return found


def _grown(have: int, want: int) -> int:
    while have < want:
        have *= 2
    return have


def _causal(q: F32, keys: F32, values: F32, start: int) -> F32:
    """q [n, H, D] at positions from `start`, keys and values [K, T, D] -> [n, H, D]."""
    n, heads, dim = q.shape
    kv, length = keys.shape[0], keys.shape[1]
    grouped = q.reshape(n, kv, heads // kv, dim).transpose(1, 2, 0, 3)  # [K, G, n, D]
    hidden = np.arange(length) > (start + np.arange(n))[:, None]  # [n, T]
    return mix(grouped, keys[:, None], values[:, None], hidden).transpose(2, 0, 1, 3).reshape(n, heads, dim)


@dataclass(frozen=True, slots=True)
class Block:
    """A cached block; `number` is its identity as the parent of the next one."""

    number: int
    content: F32


class PrefixCache:
    """Least recently used blocks of prompts, at most `limit` of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._blocks: OrderedDict[tuple[str, int, tuple[int, ...]], Block] = OrderedDict()
        self._made = 0
        self.queries = 0  # tokens looked up
        self.hits = 0  # tokens found

    def find(self, namespace: str, prompt: Sequence[int]) -> list[Block]:
        """The longest chain of cached blocks that starts `prompt`, leaving at least its last token to compute."""
        found: list[Block] = []
        self.queries += len(prompt)
        parent = 0
        for start in range(0, len(prompt) - BLOCK, BLOCK):
            key = (namespace, parent, tuple(prompt[start : start + BLOCK]))
            block = self._blocks.get(key)
            if block is None:
                break
            self._blocks.move_to_end(key)
            found.append(block)
            parent = block.number
        self.hits += BLOCK * len(found)
        return found

    def store(self, namespace: str, prompt: Sequence[int], cache: Cache, slot: int) -> None:
        """Keep the full blocks of a prompt that has just been computed in `slot`."""
        parent = 0
        for start in range(0, len(prompt) - BLOCK + 1, BLOCK):
            key = (namespace, parent, tuple(prompt[start : start + BLOCK]))
            block = self._blocks.get(key)
            if block is None:
                self._made += 1
                block = self._blocks[key] = Block(self._made, cache.block(slot, start))
                if len(self._blocks) > self._limit:
                    self._blocks.popitem(last=False)
            parent = block.number
