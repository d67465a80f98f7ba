"""Lines of one history file, parsed and checked: nothing a file holds can make this raise."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import orjson

from loadtest import records

R = TypeVar("R", bound=records.Record)
OUTCOMES: dict[str, int] = {"ok": 0, "fail": 1, "info": 2}


@dataclass
class File:
    """What one history file holds, before columns are built."""

    engine: str
    folder: Path
    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return self.lines.get(kind, [])

    def column(self, name: str, dtype: str) -> npt.NDArray[Any]:
        path = self.folder / f"{name}-{self.engine}.{'u32' if dtype == '<u4' else 'i32'}"
        try:
            size = path.stat().st_size // 4
            return np.fromfile(path, dtype=dtype, count=size)
        except OSError:
            return np.empty(0, dtype)


def read(path: Path) -> File:
    """Parse one history file; what cannot be parsed is named in its `problems`."""
    out = File(path.stem.removeprefix("history-"), path.parent)
    raw = path.read_bytes().split(b"\n")
    for number, line in enumerate(raw, 1):
        if not line:
            continue
        try:
            row = orjson.loads(line)
            out.lines.setdefault(row["kind"], []).append(row)
        except (orjson.JSONDecodeError, KeyError, TypeError):
            what = "torn last line" if number == len(raw) else "unreadable line"
            out.problems.append(f"{path.name}:{number}: {what} ignored")
    return out


def _wire_type(annotation: str) -> Any:
    """The Python type that a field's annotation has on the wire; a Literal is a str."""
    if annotation.startswith("tuple"):
        return tuple
    return {"int": int, "float": (int, float), "bool": bool}.get(annotation, str)


def typed(file: File, cls: type[R], problems: list[str]) -> list[R]:
    """The file's lines of one kind as records; those that do not fit are named in `problems`."""
    known = {f.name: _wire_type(str(f.type)) for f in dataclasses.fields(cls)}
    out: list[R] = []
    for row in file.of(cls.kind):
        values = {k: (tuple(v) if isinstance(v, list) else v) for k, v in row.items() if k in known}
        wrong = [k for k, v in values.items() if not isinstance(v, known[k])]
        try:
            if wrong:
                raise TypeError(f"{wrong[0]} has a wrong type")
            out.append(cls(**cast(Any, values)))
        except TypeError as e:
            problems.append(f"history-{file.engine}.jsonl: a {cls.kind} line cannot be used ({e}); ignored")
    return out


_SENT = ("adapter", "user", "intended_ns", "sent_ns", "max_tokens", "ignore_eos")
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
_REQUIRED = ("stream", *_SENT)
_OPTIONAL: dict[str, Any] = {"replica": 0}
_TYPES = {k: type(v) for k, v in (_NEVER | _OPTIONAL).items()} | {
    "stream": int,
    "adapter": str,
    "user": str,
    "intended_ns": int,
    "sent_ns": int,
    "max_tokens": int,
    "ignore_eos": bool,
}


def _usable(row: dict[str, Any]) -> bool:
    return (
        all(k in row for k in _REQUIRED)
        and all(isinstance(row[k], t) for k, t in _TYPES.items() if k in row)
        and row.get("outcome", "info") in OUTCOMES
    )


def stream_rows(file: File, tokens: int, prompts: int, problems: list[str]) -> list[dict[str, Any]]:
    """Stream rows of one file: ended ones, then those that were sent and never ended."""
    where = f"history-{file.engine}.jsonl"
    rows = []
    seen = set()
    for row in file.of("stream"):
        if not _usable(row):
            problems.append(f"{where}: a stream line lacks a field or has one of a wrong type; ignored")
            continue
        row = {**_OPTIONAL, **_NEVER, **row}
        if row["offset"] + row["tokens"] > tokens or row["prompt_offset"] + row["prompt"] > prompts:
            problems.append(f"{where}: stream {row['stream']} names tokens that the column files do not hold")
            row.update(_NEVER)
        seen.add(row["stream"])
        rows.append(row)
    for row in file.of("send"):
        if _usable(row) and row["stream"] not in seen:
            rows.append({**_OPTIONAL, **row, **_NEVER})
    return rows
