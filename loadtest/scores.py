"""What versions say about streams, asked after the traffic: the files of records.py's second list, read.

A line that cannot be used is dropped and named in `problems`, as in history.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from loadtest import records

FILE, MARGINS, REFERENCES = "scores.jsonl", "margins.f32", "references.i32"

Source = tuple[str, str]  # (adapter, version label); ("base", "base") for the base model
BASE: Source = ("base", "base")


@dataclass(frozen=True, slots=True)
class Scores:
    """Rows of all scored streams; a stream is named by its row in the stream table."""

    margins: Mapping[int, Mapping[Source, npt.NDArray[np.float32]]]  # each [tokens]
    references: Mapping[int, Mapping[Source, npt.NDArray[np.int32]]]
    adapters: tuple[str, ...]  # whose streams were to be scored; "base" may be among them
    incomplete: str  # why not all of them were, "" when they were
    problems: tuple[str, ...] = ()

    @property
    def sources(self) -> set[Source]:
        """Every version that said something."""
        return {s for rows in (self.margins, self.references) for found in rows.values() for s in found}


NONE = Scores({}, {}, (), "")


def read(folder: Path, names: list[str]) -> Scores:
    """The scores of a run's folder; `names` as in the stream table. NONE when nothing was scored."""
    path = folder / FILE
    if not path.is_file():
        return NONE
    values, ids = _column(folder / MARGINS, "<f4"), _column(folder / REFERENCES, "<i4")
    at = {name: i for i, name in enumerate(names)}
    margins: dict[int, dict[Source, Any]] = {}
    references: dict[int, dict[Source, Any]] = {}
    problems: list[str] = []
    end: dict[str, Any] = {"adapters": (), "incomplete": "the scoring was cut short"}
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            row = orjson.loads(line) if line else {"kind": ""}
            if row["kind"] == records.Scored.kind:
                end = row
            elif row["kind"] == records.Score.kind:
                column, rows = (values, margins) if row["method"] == "margins" else (ids, references)
                first, last = int(row["offset"]), int(row["offset"]) + int(row["tokens"])
                if not 0 <= first <= last <= len(column):
                    raise ValueError("it names values that the column does not hold")
                rows.setdefault(at[row["stream"]], {})[row["adapter"], row["version"]] = column[first:last]
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as e:
            problems.append(f"{FILE}:{number}: ignored ({type(e).__name__}: {e})")
    return Scores(margins, references, tuple(end["adapters"]), str(end["incomplete"]), tuple(problems))


def _column(path: Path, dtype: str) -> npt.NDArray[Any]:
    try:
        return np.fromfile(path, dtype=dtype, count=path.stat().st_size // 4)
    except OSError:
        return np.empty(0, dtype)
