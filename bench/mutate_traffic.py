"""Mutation score of the parsers of what a server sends: sse, decode and admin, by bench/mutate.py's mutants.

python bench/mutate_traffic.py sse|decode|usual|admin|words|capture [--sample 400] [--seed 1]
"""

from __future__ import annotations

import argparse
import importlib
import random
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import mutate

WAIT_S = 60  # of the child: a mutant that waits for what never comes takes no CPU time
TESTS = {
    "sse": ("test_sse",),
    "decode": ("test_client_decode",),
    "usual": ("test_client_decode",),
    "admin": ("test_admin",),
    "words": ("test_client_decode", "test_admin"),
    "capture": ("test_client_capture",),
}
CHILD = mutate._child


class Finder(mutate.Finder):
    """The same in another package."""

    def __init__(self, mutant: mutate.Mutant) -> None:
        self.name, self.tree = f"loadtest.traffic.{mutant.module}", mutant.tree


def _child(mutant: mutate.Mutant | None, module: str) -> None:
    signal.alarm(WAIT_S)
    CHILD(mutant, module)


def main() -> int:
    """Sample, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", choices=TESTS)
    parser.add_argument("--sample", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    mutate.PACKAGE = mutate.ROOT / "loadtest" / "traffic"
    mutate.COMMON, mutate.FIRST, mutate.Finder = TESTS[args.module], {}, Finder
    mutate._child = _child
    sys.dont_write_bytecode = False  # compiling the rewritten tests is most of a killed mutant's time
    for name in ("pytest", "hypothesis", "numpy", "aiohttp", "orjson"):  # once for all children
        importlib.import_module(name)
    everything = mutate.mutants(args.module)
    chosen = random.Random(args.seed).sample(everything, min(args.sample, len(everything)))
    if mutate.killed(None, args.module):
        print("the tests fail without any mutant")
        return 1
    survivors = 0
    for n, mutant in enumerate(chosen, 1):
        if not mutate.killed(mutant, args.module):
            survivors += 1
            print(f"survived: {args.module}.py:{mutant.line}: {mutant.what}", flush=True)
        if n % 20 == 0:
            print(f"{n} of {len(chosen)}: {survivors} survived", flush=True)
    score = 1 - survivors / len(chosen)
    print(f"{len(chosen) - survivors} of {len(chosen)} killed ({len(everything)} in all): {100 * score:.1f} %")
    return 0 if score >= 0.9 else 1


if __name__ == "__main__":
    sys.exit(main())
