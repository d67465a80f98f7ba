"""Lines of one history file, parsed and checked: nothing a file holds can make this raise."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
import orjson

from loadtest import records
from loadtest.columns import LARGE, Column, Rows, believed

R = TypeVar("R", bound=records.Record)


@dataclass
class File:
    """What one history file holds, before columns are built."""

    engine: str
    folder: Path
    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # of all kinds but streams
    rows: Rows = field(default_factory=Rows)
    last: dict[str, dict[str, Any]] = field(default_factory=dict)  # kind -> its last line
    problems: list[str] = field(default_factory=list)
    blind: bool = False  # operations may be missing
    closed: bool = False  # its last line is its end
    latest: int = 0  # when the last of its streams ended

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
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line == b"\n":
                continue
            try:
                row = orjson.loads(line)
                _sort(out, row["kind"], row)
                out.closed = row["kind"] == "end"
            except (orjson.JSONDecodeError, KeyError, TypeError):
                whole = line.endswith(b"\n")
                out.blind |= whole
                out.problems.append(f"{path.name}:{number}: {'unreadable' if whole else 'torn last'} line ignored")
    return out


def _sort(file: File, kind: str, row: dict[str, Any]) -> None:
    file.last[kind] = row
    if kind == "stream":
        file.rows.stream(row)
    elif kind == "send":
        file.rows.send(row)
    else:
        file.lines.setdefault(kind, []).append(row)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value off the wire can stand in a field of that type, and numpy can hold it."""
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, get_args(hint)[0]) for v in value)
    if hint is int:
        return type(value) is int and abs(value) < LARGE
    if hint is float:
        return type(value) in (int, float) and abs(value) < LARGE
    return type(value) is hint


def typed(file: File, cls: type[R], problems: list[str]) -> list[R]:
    """The file's lines of one kind as records; those that do not fit are named in `problems`."""
    known = get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    out: list[R] = []
    for row in file.of(cls.kind):
        values = {k: (tuple(v) if isinstance(v, list) else v) for k, v in row.items() if k in names}
        wrong = [k for k, v in values.items() if not _fits(v, known[k])]
        try:
            if wrong:
                raise TypeError(f"{wrong[0]} has a wrong type or value")
            out.append(cls(**cast(Any, values)))
        except TypeError as e:
            problems.append(f"history-{file.engine}.jsonl: a {cls.kind} line cannot be used ({e}); ignored")
    return out


def stream_columns(file: File, arrivals: Column, prompts: int, problems: list[str]) -> dict[str, Column]:
    """Stream columns of one file: ended ones, then those that were sent and never ended."""
    where = f"history-{file.engine}.jsonl"
    columns = file.rows.finish()
    odd = [(p, f"{where}: a stream line lacks a field or has one of a wrong type; ignored") for p in file.rows.unusable]
    file.latest = int(columns["ended_ns"].max(initial=0))
    columns, doubts = believed(file.rows, columns, arrivals, prompts)
    odd += [(position, f"{where}: stream {number} {words}") for position, number, words in doubts]
    problems += [words for _, words in sorted(odd, key=lambda o: o[0])]
    return columns
