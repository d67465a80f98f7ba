"""Folders a swap names: a path never loaded before, with the content the arm calls for. Blocking file I/O."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

BAD: dict[str, Callable[[Path, Path, int], None]] = {}


def _missing(source: Path, path: Path, max_rank: int) -> None:
    """The server is told a path where nothing is."""


def _corrupt(source: Path, path: Path, max_rank: int) -> None:
    from loadtest.adapters.peft import corrupt_copy

    corrupt_copy(source, path)


def _rank_too_high(source: Path, path: Path, max_rank: int) -> None:
    from loadtest.adapters.peft import inflate_rank

    inflate_rank(source, path, 2 * max_rank)


BAD.update({"missing": _missing, "corrupt": _corrupt, "rank-too-high": _rank_too_high})


def fresh(source: Path, path: Path) -> None:
    """The content of `source` at a path of its own."""
    from loadtest.adapters.peft import copy_fresh

    path.parent.mkdir(parents=True, exist_ok=True)
    copy_fresh(source, path)


def bad(how: str, source: Path, path: Path, max_rank: int) -> None:
    """A folder that a server must refuse, made from `source`; or none at all for "missing"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    BAD[how](source, path, max_rank)
