"""The whole planted-fault matrix and the innocent kinds on the virtual-time model: `make matrix`.

    python bench/matrix.py [--seeds 60] [--rare-seeds 30] [--innocent 3000] [--only WORD] [--out FILE]

Prints two Markdown tables; exits with 1 when a cell misses its target.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import matrix

from loadtest.analysis.stats import none_seen


def cell_row(name: str, cell: matrix.Cell, seeds: int, rare_seeds: int) -> tuple[str, bool]:
    """One row of the table of faults, and whether it meets the target."""
    parts, good = [], True
    strays: Counter[str] = Counter()
    for level in cell.levels:
        count = rare_seeds if level == matrix.LEVELS[-1] else seeds
        found = [matrix.case(cell, level, seed) for seed in range(count)]
        right = sum(o.detected for o in found)
        only = sum(o.detected and not o.strays for o in found)
        for o in found:
            strays.update(o.strays)
        opportunities = sum(o.opportunities for o in found) / count
        parts.append(f"{right}/{count} ({only} only; {opportunities:.0f})")
        good &= only >= (0.95 if level == matrix.LEVELS[-1] else 59 / 60) * count
    allowed = ", ".join(cell.implies) or "-"
    told = ", ".join(f"{kind} {n}" for kind, n in strays.items()) or "-"
    head = f"| {name} | `{cell.name}` | {allowed} | "
    return head + " | ".join(parts) + f" | {told} |", good


def innocent_row(kind: str, count: int) -> tuple[str, bool]:
    """One row of the table of innocent kinds."""
    accused: Counter[str] = Counter()
    fails = 0
    for seed in range(count):
        found = matrix.innocent(kind, seed)
        accused.update(found)
        fails += bool(found)
    bound = f"{none_seen(count):.2e}" if not fails else "-"
    told = ", ".join(f"{name} {n}" for name, n in accused.items()) or "-"
    return f"| {kind} | {count} | {fails} | {bound} | {told} |", fails == 0


def main() -> int:
    """Play everything that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=60, help="at 100 %% and 10 %%")
    parser.add_argument("--rare-seeds", type=int, default=30, help="at 1 %%")
    parser.add_argument("--innocent", type=int, default=3000, help="histories of each innocent kind")
    parser.add_argument("--only", default="", help="rows whose name holds this word")
    args = parser.parse_args()
    good = True
    if args.seeds:
        print(
            "| fault | found as | may imply | 100 % | 10 % | 1 % | other accusations |\n|---|---|---|---|---|---|---|"
        )
        for name, cell in matrix.CELLS.items():
            if args.only in name:
                row, met = cell_row(name, cell, args.seeds, args.rare_seeds)
                good &= met
                print(row, flush=True)
    if args.innocent:
        print("\n| innocent | histories | FAIL | 95 % bound of the rate | accused of |\n|---|---|---|---|---|")
        for kind in matrix.INNOCENT:
            if args.only in kind:
                row, met = innocent_row(kind, args.innocent)
                good &= met
                print(row, flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
