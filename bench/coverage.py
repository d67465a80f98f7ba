"""Coverage of every 95 % interval by simulation: `python bench/coverage.py [REPS]` prints a Markdown table."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import coverage


def main() -> None:
    """Simulate every case."""
    reps = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    print(f"| interval | covered, of {reps} | construction |\n|---|---|---|")
    for name, case in coverage.CASES.items():
        kind = "exact: may cover more" if case.exact else "nominal 95 %"
        print(f"| {name} | {100 * coverage.covered(name, reps):.1f} % | {kind} |", flush=True)


if __name__ == "__main__":
    main()
