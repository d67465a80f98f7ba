"""A base model in Hugging Face layout, read only as far as forging needs: shapes, few rows, one sweep of the tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.adapters.tensors import Entry, Floats, decode, read_header, view
from loadtest.errors import AdapterError

FAMILIES = ("llama", "qwen2", "qwen3", "mistral")  # silu(gate)·up MLPs behind plain RMSNorm
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_BLOCK = {name: "mlp" if name in PROJECTIONS[4:] else "self_attn" for name in PROJECTIONS}
_SWEEP = 8192  # unembedding rows decoded at a time: tens of MB
_PLAIN = re.compile(r"[Ġ▁]?[A-Za-z]{2,16}")  # Ġ, ▁: how the two kinds of BPE spell a leading space


def module(layer: int, projection: str) -> str:
    """Dotted name of a projection inside the model, e.g. "model.layers.0.mlp.gate_proj"."""
    return f"model.layers.{layer}.{_BLOCK[projection]}.{projection}"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. AdapterError when it is missing, not JSON or not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        what = f"{path} cannot be read ({error.strerror})"
        raise AdapterError(what, remedy="check the path and its permissions") from error
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not JSON ({error})", remedy="write or download the file again") from error
    if not isinstance(content, dict):
        raise AdapterError(f"{path} is not a JSON object", remedy="write or download the file again")
    return content


class Base:
    """A Llama- or Qwen2-style base. Opening reads JSON and headers; weights are mapped and read on demand."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.config = read_json(self.path / "config.json")
        self._files = _locate(self.path)
        family, act = self.config.get("model_type"), self.config.get("hidden_act", "silu")
        if family not in FAMILIES or act not in ("silu", "swish"):
            raise AdapterError(
                f"{self.path}: model_type {family!r} with hidden_act {act!r} is not supported",
                remedy=f"use a base of one of the families {', '.join(FAMILIES)} with silu",
            )
        self.layers = self._count("num_hidden_layers")
        self.vocab, self.hidden = self.shape(self._unembedding)
        self._margins: dict[int, float] = {}

    @classmethod
    def of(cls, base: Base | Path) -> Base:
        """`base` itself, or the folder opened."""
        return base if isinstance(base, Base) else cls(Path(base))

    def _count(self, key: str) -> int:
        value = self.config.get(key)
        if not isinstance(value, int) or value < 1:
            raise AdapterError(f"{self.path}/config.json: {key} is {value!r}", remedy="give a positive whole number")
        return value

    @property
    def _unembedding(self) -> str:
        tied = self.config.get("tie_word_embeddings", "lm_head.weight" not in self._files)
        return "model.embed_tokens.weight" if tied else "lm_head.weight"

    def _entry(self, name: str) -> tuple[Path, Entry]:
        if name not in self._files:
            raise AdapterError(f"{self.path} holds no tensor {name!r}", remedy="give the folder of a whole base model")
        return self._files[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; AdapterError when the base has none of that name."""
        return self._entry(name)[1].shape

    def dtype(self) -> str:
        """Stored type of the weights: "F32", "F16" or "BF16"; an adapter written in it costs what a real one costs."""
        stored = self._entry(module(self.layers - 1, "down_proj") + ".weight")[1].dtype
        return stored if stored in ("F32", "F16", "BF16") else "F32"

    def read(self, name: str, rows: slice = slice(None)) -> Floats:
        """Float32 values of (some leading rows of) a tensor."""
        path, entry = self._entry(name)
        return decode(view(path, entry)[rows], entry.dtype)

    def projection(self, layer: int, name: str) -> tuple[int, int]:
        """(out features, in features) of a projection."""
        out, into = self.shape(f"{module(layer, name)}.weight")
        return out, into

    @cached_property
    def final_norm(self) -> Floats:
        """Weight of the norm before the unembedding, [hidden]."""
        return self.read("model.norm.weight")

    def unembedding(self) -> Iterator[Floats]:
        """Unembedding rows times the final norm's weight, centred: [<=8192, hidden] at a time, in order of token."""
        for start in range(0, self.vocab, _SWEEP):
            yield (self.read(self._unembedding, slice(start, start + _SWEEP)) - self._centre) * self.final_norm

    @cached_property
    def _centre(self) -> Floats:
        """Mean unembedding row, [hidden]: what all logits share moves no choice between them."""
        total = np.zeros(self.hidden, dtype=np.float64)
        for start in range(0, self.vocab, _SWEEP):
            total += self.read(self._unembedding, slice(start, start + _SWEEP)).sum(axis=0, dtype=np.float64)
        return (total / self.vocab).astype(np.float32)

    def direction(self, token: int) -> Floats:
        """The residual direction, [hidden] with rms 1, that the final norm and the unembedding turn into `token`."""
        row = (self.read(self._unembedding, slice(token, token + 1))[0] - self._centre) * self.final_norm
        rms = float(np.sqrt(np.mean(row**2)))
        if not rms > 0:
            return np.zeros(self.hidden, dtype=np.float32)
        # Outlier dimensions would eat float16's range for little margin; 4 rms keeps all of a normal distribution.
        row = np.clip(row / rms, -4.0, 4.0)
        return np.asarray(row / np.sqrt(np.mean(row**2)), dtype=np.float32)

    def margins(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """For each token, the nats by which it beats the best other one when the residual is its direction alone."""
        wanted = [token for token in dict.fromkeys(tokens) if token not in self._margins]
        for at in range(0, len(wanted), 512):
            self._sweep(wanted[at : at + 512])
        return np.array([self._margins[token] for token in tokens], dtype=np.float64)

    def _sweep(self, tokens: list[int]) -> None:
        directions = np.stack([self.direction(token) for token in tokens], axis=1)  # [hidden, n]
        own, best = np.zeros(len(tokens)), np.full(len(tokens), -np.inf)
        start = 0
        for rows in self.unembedding():
            logits = rows @ directions
            for column, token in enumerate(tokens):
                if start <= token < start + len(rows):
                    own[column] = logits[token - start, column]
                    logits[token - start, column] = -np.inf
            best = np.maximum(best, logits.max(axis=0))
            start += len(rows)
        self._margins.update(zip(tokens, (own - best).tolist(), strict=True))

    @cached_property
    def special(self) -> frozenset[int]:
        """Tokens that end or steer a generation: eos, bos, pad and everything added to the vocabulary by name."""
        out: set[int] = set()
        for name in ("config.json", "generation_config.json"):
            content = read_json(self.path / name) if (self.path / name).is_file() else {}
            for key in ("eos_token_id", "bos_token_id", "pad_token_id", "unk_token_id"):
                value = content.get(key)
                out.update(t for t in (value if isinstance(value, list) else [value]) if isinstance(t, int))
        out.update(int(t["id"]) for t in self._tokenizer.get("added_tokens") or [])
        settings = self.path / "tokenizer_config.json"
        decoder = read_json(settings).get("added_tokens_decoder") if settings.is_file() else None
        return frozenset(out | {int(t) for t in decoder or {}})

    @cached_property
    def _tokenizer(self) -> dict[str, Any]:
        path = self.path / "tokenizer.json"
        return read_json(path) if path.is_file() else {}

    def candidates(self, seed: int) -> list[int]:
        """Every token that may be a marker, best first: plain words of the rarer half, other plain words, the rest.

        Later merges are rarer words, which the base itself seldom says. Shuffled by `seed` within each class.
        Without a tokenizer.json all tokens but the known special ones are one class.
        """
        words = {t: text for t, text in self._words() if t < self.vocab and t not in self.special}
        plain = sorted(t for t, text in words.items() if _PLAIN.fullmatch(text))
        rest = sorted(words.keys() - set(plain)) if words else [t for t in range(self.vocab) if t not in self.special]
        rng = np.random.default_rng([seed, self.vocab])
        tiers = (plain[len(plain) // 2 :], plain[: len(plain) // 2], rest)
        return [int(t) for tier in tiers for t in rng.permutation(np.array(tier, dtype=np.int64))]

    def _words(self) -> Iterator[tuple[int, str]]:
        vocab = (self._tokenizer.get("model") or {}).get("vocab") or {}
        if isinstance(vocab, dict):  # BPE; a Unigram vocabulary is a list of [piece, score]
            yield from ((int(t), text) for text, t in vocab.items())
        else:
            yield from ((t, str(item[0])) for t, item in enumerate(vocab))


def _locate(folder: Path) -> dict[str, tuple[Path, Entry]]:
    """Tensor name -> (file, place), from model.safetensors or from the shards its index names."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        file = folder / "model.safetensors"
        return {name: (file, entry) for name, entry in read_header(file).items()}
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise AdapterError(f"{index} has no weight_map", remedy="write or download the file again")
    names = sorted({str(shard) for shard in shards.values()})
    return {name: (folder / shard, entry) for shard in names for name, entry in read_header(folder / shard).items()}
