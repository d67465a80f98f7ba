"""Whole verdict documents, pinned: `python tests/pinned.py` writes tests/golden/verdicts.json.gz anew.

Any change of a figure shows; keys that are new do not. A change here changes earlier verdicts: CHANGELOG says so.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matrix
from minihistory import history as mini
from virtual import Shape, World

from loadtest import history
from loadtest.analysis.verdict import Require, judge, to_json
from loadtest.history import History

GOLDEN = Path(__file__).parent / "golden"
FILE = GOLDEN / "verdicts.json.gz"
EVERYTHING = Require(
    min_swaps=4, swap_ack_p99_ms=45.0, hangover=1.2, isolated_error_rate=0.0, isolated_stall=2.0, clock_error_ns=1000
)


def worlds() -> Iterator[tuple[str, World]]:
    """Every fault in a small run, and every innocent kind."""
    small = Shape(swaps=10, quiet=700.0)
    for name, cell in matrix.CELLS.items():
        shape = replace(small, bad=cell.shape.bad, every=900.0 if "durable" in cell.name else 400.0)
        for p in (1.0, 0.3):
            yield f"{name}, {p}", World(shape, 5, [cell.fault(p, random.Random(11))]).play()
    for kind, made in matrix.INNOCENT.items():
        yield kind, made(4)


def unpacked(name: str, folder: Path) -> Path:
    """A golden run's files in `folder`."""
    for path in (GOLDEN / name).glob("*.gz"):
        (folder / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    return folder


def histories() -> Iterator[tuple[str, History]]:
    """Name and history of every pinned verdict."""
    for name in ("pass", "fail", "unknown"):
        yield name, mini((GOLDEN / f"{name}.txt").read_text())
    with tempfile.TemporaryDirectory() as folder:
        yield "vllm-torn", history.load(unpacked("vllm-torn", Path(folder)))
    for name, world in worlds():
        yield name, world.history()


def document(found: History) -> dict[str, Any]:
    """The verdict as it is written, witnesses cut to three."""
    out: dict[str, Any] = json.loads(json.dumps(to_json(judge(found, EVERYTHING)), allow_nan=False))
    for g in out["guarantees"].values():
        g["witnesses"] = g["witnesses"][:3]
    return out


def differences(pinned: Any, found: Any, where: str = "") -> list[str]:
    """Where `found` departs from `pinned`; keys that only `found` has are no difference."""
    if isinstance(pinned, dict) and isinstance(found, dict):
        return [d for k in pinned for d in differences(pinned[k], found.get(k, "missing"), f"{where}.{k}")]
    if isinstance(pinned, list) and isinstance(found, list) and len(pinned) == len(found):
        pairs = enumerate(zip(pinned, found, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}[{i}]")]
    if isinstance(pinned, float | int) and isinstance(found, float | int) and not isinstance(pinned, bool):
        close = math.isclose(pinned, found, rel_tol=1e-4, abs_tol=1e-9)
        return [] if close else [f"{where}: {pinned} is now {found}"]
    return [] if pinned == found else [f"{where}: {pinned!r} is now {found!r}"]


def main() -> None:
    """Write all documents."""
    documents = {name: document(found) for name, found in histories()}
    FILE.write_bytes(gzip.compress(json.dumps(documents, separators=(",", ":")).encode(), 9, mtime=0))


if __name__ == "__main__":
    sys.exit(main())
