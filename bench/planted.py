"""Faults planted on the embedded server, over real sockets, under Locust: `bench/planted.py [--seeds 2] [--only WORD]`.

The part of the matrix that the embedded server can play (loadtest/server/plant.py), by the same primary rule: FAIL
under the fault's own name, and under nothing but what that implies. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from loadtest import run

SCENARIO = """
title: a planted fault
target: {{url: embedded, swap: {swap}, step_ms: 12, plant: {plant}}}
adapters: {{tenant-a: {{versions: markers}}, tenant-b: {{versions: markers 1}}}}
traffic:
  users: 10
  mix: {{tenant-a: 6, tenant-b: 2, base: 2}}
  prompts: {{synthetic: {{tokens: 8..16}}}}
  max_tokens: 16..32
phases:
  - {{arm: aa, for: 2s}}
  - {{arm: real, hotfix: tenant-a, every: {every}, count: 12}}
  - {{arm: bad, hotfix: tenant-a, with: [rank-too-high, missing, rank-too-high], every: 700ms}}
  - {{arm: aa, for: 6s}}
require: {{level: stream-atomic, hangover: 2}}
"""
Fault = tuple[dict[str, Any], str, tuple[str, ...]]
FAST, SLOW = "500ms..700ms", "2s..2500ms"
REJECTED, TORN, STALE, OLDER = "complete:rejected", "untorn:torn", "fresh:stale", "monotonic:inversion"
FAULTS: dict[str, Fault] = {
    "nothing": ({}, "", ()),
    "torn": ({"fault": "torn", "at": 4}, TORN, ()),
    "flip": ({"fault": "flip", "length": 4}, "ordered:flip", (TORN,)),
    "stale": ({"fault": "stale", "ms": 300}, STALE, (OLDER,)),
    "inversion": ({"fault": "inversion", "ms": 250}, OLDER, ()),
    "refused load removes the adapter": ({"fault": "wiped"}, "durable:wiped", (REJECTED,)),
    "acked, never applied": ({"fault": "lost"}, "durable:lost", (STALE,)),
    "acked, the base answers": ({"fault": "noop"}, "valid:fallback", ()),
    "reverted": ({"fault": "reverted", "ms": 500}, "durable:reverted", (STALE, OLDER)),
    "1 in 100 tokens is a neighbour's": ({"fault": "leak", "p": 0.01}, "valid:leak", ("isolated:leak",)),
    "base answers as an adapter": ({"fault": "fallback", "p": 0.1}, "valid:fallback", ()),
    "an adapter answers as base": ({"fault": "base_leak", "p": 0.1}, "valid:leak", ("isolated:leak",)),
    "a token dropped": ({"fault": "drop_token", "p": 0.01}, "complete:truncated", ()),
    "a token duplicated": ({"fault": "dup_token", "p": 0.01}, "complete:duplicated", ()),
    "cut": ({"fault": "cut", "p": 0.1}, "complete:cut", ()),
    "error frame, then [DONE]": ({"fault": "error_frame", "p": 0.1}, "complete:in_band_error", ()),
    "fewer ids than usage says": ({"fault": "short", "p": 0.1}, "complete:truncated", ()),
    "hangover": ({"fault": "hangover", "percent": 400}, "steady:hangover", ()),
}


def found(fault: Fault, folder: Path, seed: int) -> set[str]:
    """guarantee:kind of all that is FAIL in one run."""
    plant = json.dumps([{**fault[0], "seed": seed}] if fault[0] else [])
    slow = fault[0].get("fault") == "reverted"
    path = folder / "planted.yaml"
    path.write_text(SCENARIO.format(swap="pin", plant=plant, every=SLOW if slow else FAST), encoding="utf-8")
    verdict = run(path, seed=seed, results=folder / "results", timeout_s=180).verdict
    return {f"{n}:{k}" for n, g in verdict["guarantees"].items() if g["status"] == "FAIL" for k in g["kinds"]}


def main() -> int:
    """Run everything that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    good = True
    print("| planted | found as | runs | right | accused of something else |\n|---|---|---|---|---|", flush=True)
    for name, fault in FAULTS.items():
        if args.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            seen = [found(fault, Path(folder), seed) for seed in range(1, args.seeds + 1)]
        allowed = {fault[1], *fault[2]}
        right = sum((not fault[1] or fault[1] in s) and s <= allowed for s in seen)
        strays = ", ".join(sorted(set().union(*seen) - allowed)) or "-"
        good &= right == len(seen)
        print(f"| {name} | `{fault[1] or '-'}` | {len(seen)} | {right} | {strays} |", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
