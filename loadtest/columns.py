"""Streams of one history file as columns, filled line by line: a million streams never exist as a million dicts.

Rules
1. A line whose fields have the types of `records.Stream` is taken as it is; an absent field that `_NEVER` names has
   its value. Everything else is a named problem, and so is a number that its column cannot hold.
2. A stream that was sent and never ended is a row too, after the ended ones; a `send` whose stream ended is forgotten.
3. A line that contradicts itself or another one leaves its stream unfinished: nobody can say how it ended. So does a
   `stream` that says of its request what its `send` did not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtest.records import REASONS_FAIL, REASONS_INFO

OUTCOMES: dict[str, int] = {"ok": 0, "fail": 1, "info": 2}
BATCH = 20_000  # rows held as Python objects
LARGE = 2**61  # nanoseconds: 73 years of uptime; sums of two still fit into int64

_SENT: dict[str, type] = {
    "stream": int,
    "adapter": str,
    "user": str,
    "intended_ns": int,
    "sent_ns": int,
    "max_tokens": int,
    "ignore_eos": bool,
}
_OPTIONAL: dict[str, Any] = {"replica": 0}  # of both kinds of lines
_NEVER: dict[str, Any] = {
    "head_ns": 0,
    "first_ns": 0,
    "last_ns": 0,
    "ended_ns": 0,
    "status": 0,
    "outcome": "info",
    "reason": "unfinished",
    "detail": "the history ends before this stream does",
    "finish": "",
    "done": False,
    "tokens": 0,
    "offset": 0,
    "chunks": 0,
    "usage": -1,
    "prompt": 0,
    "prompt_offset": 0,
    "text_only": False,
}
_ASKED: dict[str, type] = _SENT | {k: type(v) for k, v in _OPTIONAL.items()}
_TYPES: dict[str, type] = _ASKED | {k: type(v) for k, v in _NEVER.items()}
KEYS = tuple(_TYPES)
_NARROW = ("max_tokens", "status", "chunks", "replica")  # int32 in the table
_KINDS = tuple(_TYPES.values())
_ASKED_KINDS = tuple(_ASKED.values())
_REPEATED = len(_ASKED)  # the first columns of both
_OUTCOME = KEYS.index("outcome")
_pick, _pick_asked = itemgetter(*KEYS), itemgetter(*_ASKED)
_stream_of = itemgetter(0)

Column = npt.NDArray[Any]


@dataclass
class Coded:
    """A column of repeating words: `words[codes[i]]`."""

    words: list[str]
    codes: npt.NDArray[np.int32]

    def texts(self, order: npt.NDArray[np.int64]) -> list[str]:
        """The words in an order; equal ones are one object."""
        if not self.words:
            return []
        out: list[str] = np.array(self.words, dtype=object)[self.codes[order]].tolist()
        return out


def usable(row: dict[str, Any]) -> bool:
    """Whether a line says what a stream needs, in types that fit."""
    return (
        all(k in row for k in _SENT)
        and all(type(row[k]) is t for k, t in _TYPES.items() if k in row)
        and row.get("outcome", "info") in OUTCOMES
        and all(abs(v) < LARGE for k in KEYS if _TYPES[k] is int and (v := row.get(k, 0)) is not None)
        and all(-(2**31) <= row.get(k, 0) < 2**31 for k in _NARROW)
        and row["sent_ns"] > 0
    )


@dataclass
class Rows:
    """What the `stream` and `send` lines of a file have said so far."""

    streams: list[tuple[Any, ...]] = field(default_factory=list)  # not packed yet
    sends: list[tuple[Any, ...]] = field(default_factory=list)  # not known to have ended
    packed: list[dict[str, Column]] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)
    unusable: list[int] = field(default_factory=list)  # positions among the stream lines
    changed: list[int] = field(default_factory=list)  # positions of those that repeat their `send` wrongly
    positions: list[int] = field(default_factory=list)  # of `streams`
    index: dict[str, dict[str, int]] = field(default_factory=lambda: {k: {} for k in KEYS if _TYPES[k] is str})
    seen: int = 0  # stream lines

    def stream(self, row: dict[str, Any]) -> None:
        """One `stream` line."""
        try:
            values = _pick(row)
            fits = tuple(map(type, values)) == _KINDS and values[_OUTCOME] in OUTCOMES
        except KeyError:
            fits = False
        if not fits:
            if not usable(row):
                self.unusable.append(self.seen)
                self.seen += 1
                return
            values = _pick({**_OPTIONAL, **_NEVER, **row})
        self.streams.append(values)
        self.positions.append(self.seen)
        self.seen += 1
        if len(self.streams) >= BATCH:
            self._pack()

    def send(self, row: dict[str, Any]) -> None:
        """One `send` line."""
        row = _OPTIONAL | row
        try:
            values = _pick_asked(row)
        except KeyError:
            return
        if (tuple(map(type, values)) != _ASKED_KINDS or len(row) != len(_ASKED) + 1) and not usable(row):
            return
        self.sends.append(values)
        if len(self.sends) >= 2 * BATCH:
            self._forget()

    def _forget(self) -> None:
        self._pack()
        ended = self.ended
        self.sends = [s for s in self.sends if s[0] not in ended]

    def _pack(self) -> None:
        """Turn the rows that wait into columns."""
        rows, self.streams = self.streams, []
        at, self.positions = self.positions, []
        if not rows:
            return
        asked = {s[0]: s for s in self.sends}
        self.changed += [p for p, r in zip(at, rows, strict=True) if asked.get(r[0], r)[:_REPEATED] != r[:_REPEATED]]
        try:
            columns = self._columns(rows)
        except OverflowError:
            good = [usable(dict(zip(KEYS, r, strict=True))) for r in rows]
            self.unusable += [p for p, ok in zip(at, good, strict=True) if not ok]
            rows = [r for r, ok in zip(rows, good, strict=True) if ok]
            at = [p for p, ok in zip(at, good, strict=True) if ok]
            columns = self._columns(rows)
        columns["position"] = np.array(at, np.int64)
        self.packed.append(columns)
        self.ended.update(map(_stream_of, rows))

    def _columns(self, rows: Sequence[tuple[Any, ...]]) -> dict[str, Column]:
        """Raises OverflowError when a number does not fit its column."""
        out: dict[str, Column] = {}
        for key, values in zip(KEYS, zip(*rows, strict=True) if rows else [()] * len(KEYS), strict=True):
            kind = _TYPES[key]
            if kind is str:
                out[key] = _coded(values, self.index[key])
            elif kind is bool:
                out[key] = np.array(values, np.bool_)
            else:
                out[key] = column = np.array(values, np.int32 if key in _NARROW else np.int64)
                low = 0 if key == "sent_ns" else -LARGE
                if column.max(initial=0) >= LARGE or column.min(initial=1) <= low:
                    raise OverflowError(key)
        return out

    def finish(self) -> dict[str, Column]:
        """All columns: ended streams, then those that never ended (`position` -1). Nothing may be added afterwards."""
        self._forget()
        never = tuple(_NEVER.values())
        fit = [s for s in self.sends if usable(dict(zip(_ASKED, s, strict=True)))]
        lost = self._columns([(*s, *never) for s in fit])
        lost["position"] = np.full(len(fit), -1, np.int64)
        parts = [*self.packed, lost]
        self.packed, self.sends = [], []
        return {key: np.concatenate([p[key] for p in parts]) for key in (*KEYS, "position")}

    def words(self, key: str) -> list[str]:
        """What the codes of a column of texts mean."""
        return list(self.index[key])

    def code(self, key: str, word: str) -> int:
        """The code of a word, which is made when there is none."""
        return self.index[key].setdefault(word, len(self.index[key]))


def _coded(values: Iterable[str], index: dict[str, int]) -> npt.NDArray[np.int32]:
    return np.array([index.setdefault(v, len(index)) for v in values], np.int32)


Doubts = list[tuple[int, int, str]]  # (position among the stream lines, number of the stream, what is wrong)


def believed(
    rows: Rows, columns: dict[str, Column], arrivals: Column, prompts: int
) -> tuple[dict[str, Column], Doubts]:
    """The columns without what cannot be (rule 3), given the arrivals of all tokens and the number of prompt ids."""
    doubts: Doubts = []
    tests = {
        "names tokens that the column files do not hold": _outside(columns, len(arrivals), prompts),
        "ended more than once": _again(columns),
        "has a reason that does not belong to its outcome": _mismatched(rows, columns),
        "ended before its last token, or before it was sent": _backwards(columns),
        "names tokens of another stream": _shared(columns),
        "says of its request what its `send` does not": np.isin(columns["position"], rows.changed),
        "has tokens that were read before those in front of them": _falling(columns, arrivals),
    }
    unsure = np.zeros(len(columns["stream"]), bool)
    again = tests["ended more than once"]
    for words, bad in tests.items():
        found = np.flatnonzero(bad & ~unsure & (columns["position"] >= 0))
        doubts += [(int(columns["position"][r]), int(columns["stream"][r]), words) for r in found.tolist()]
        unsure[found] = True
    for key, value in _NEVER.items():
        columns[key][unsure] = rows.code(key, value) if isinstance(value, str) else value
    if again.any():
        first = np.unique(columns["stream"], return_index=True)[1]
        columns = {k: v[np.sort(first)] for k, v in columns.items()}
    return columns, doubts


def _outside(columns: dict[str, Column], tokens: int, prompts: int) -> Column:
    over = columns["offset"] > tokens - columns["tokens"]  # a sum of two could wrap round
    over |= columns["prompt_offset"] > prompts - columns["prompt"]
    for key in ("offset", "tokens", "prompt_offset", "prompt"):
        over |= columns[key] < 0
    return over


def _again(columns: dict[str, Column]) -> Column:
    _, code, count = np.unique(columns["stream"], return_inverse=True, return_counts=True)
    out: Column = count[code] > 1
    return out


def _mismatched(rows: Rows, columns: dict[str, Column]) -> Column:
    """ok goes with no reason, fail with none of REASONS_INFO, info with none of REASONS_FAIL."""
    reasons = np.array(rows.words("reason") or [""], dtype=object)
    wrong = {
        "ok": reasons != "",
        "fail": np.isin(reasons, ("", *REASONS_INFO)),
        "info": np.isin(reasons, ("", *REASONS_FAIL)),
    }
    table = np.array([wrong[word] for word in rows.words("outcome")] or [reasons != ""], np.bool_)
    out: Column = table[columns["outcome"], columns["reason"]]
    return out


def _backwards(columns: dict[str, Column]) -> Column:
    last = np.maximum(columns["sent_ns"], np.maximum(columns["first_ns"], columns["last_ns"]))
    return columns["ended_ns"] < last


def _shared(columns: dict[str, Column]) -> Column:
    """Streams whose tokens begin before those of the stream that lies before them end; and that stream."""
    held = np.flatnonzero(columns["tokens"] > 0)
    held = held[np.argsort(columns["offset"][held], kind="stable")]
    out = np.zeros(len(columns["stream"]), bool)
    if len(held) > 1:
        start = columns["offset"][held]
        reach = np.maximum.accumulate(start + columns["tokens"][held])
        late = np.flatnonzero(start[1:] < reach[:-1]) + 1
        out[held[late]] = out[held[np.searchsorted(reach, reach[late - 1])]] = True
    return out


def _falling(columns: dict[str, Column], arrivals: Column) -> Column:
    block = 4_000_000
    parts = [np.empty(0, np.int64)]
    for i in range(0, len(arrivals), block):
        some = arrivals[i : i + block + 1]
        parts.append(np.flatnonzero(some[1:] < some[:-1]) + i + 1)
    falls, start = np.concatenate(parts), columns["offset"]
    inside = np.searchsorted(falls, start + columns["tokens"]) > np.searchsorted(falls, start, side="right")
    out: Column = inside & (columns["tokens"] > 0)
    return out


def merged(words: Sequence[Sequence[str]], codes: Sequence[npt.NDArray[np.int32]]) -> Coded:
    """One coding for the columns of several files."""
    index: dict[str, int] = {}
    out = [np.append(_coded(w, index), 0).astype(np.int32)[c] for w, c in zip(words, codes, strict=True)]
    return Coded(list(index), np.concatenate(out))
