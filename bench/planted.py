"""Faults planted on the embedded server, over real sockets, under Locust: `bench/planted.py [--seeds 2] [--only WORD]`.

The part of the matrix that the embedded server can play (loadtest/server/plant.py), by the same primary rule: FAIL
under the fault's own name, and under nothing but what that implies. Prints a Markdown table. `--share 0.1`: at a tenth
of each fault's opportunities, or of its own rate. `--keep FOLDER` leaves the runs there. A run uses a third of a core.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest import run
from loadtest.adapters.marker import Effect, random_effect
from loadtest.probe import cache_dir
from loadtest.scenario import Target as Spec
from loadtest.server.base import ensure_base
from loadtest.target import forge, open_target

FAST, SLOW = "500ms..700ms", "2s..2500ms"
STEP_MS = 12
REJECTED, TORN, STALE, OLDER = "complete:rejected", "untorn:torn", "fresh:stale", "monotonic:inversion"
STALLED, LEAKED, LOST = "isolated:stall", "isolated:leak", "durable:lost"


@dataclass(frozen=True)
class Row:
    """A fault, what it must be found as ("": nothing), what that may imply, and what its run needs beside the usual."""

    plant: Mapping[str, Any]
    name: str
    implies: tuple[str, ...] = ()
    by: str = "p"  # how a share of the opportunities is drawn: "p", "every" n-th where they are few, or "-" for all
    hits: int = 1  # of the few opportunities, that it takes to be found
    swap: str = "pin"
    count: int = 12  # hotfixes
    every: str = FAST
    between: str = "700ms"  # bad loads
    calm: str = "2s"  # before the first hotfix
    tail: str = "4s"
    adapters: str = "forged"  # "listed": forged beforehand, so that a fault can name one; "own": without markers
    replicas: int = 0
    swaps: str = ""  # phase options beside the usual
    require: Mapping[str, Any] = field(default_factory=dict)


# Stalls may strike at any time: where windows are an eighth of it, three are no chance (isolated.py: RARE).
_STALL = {"every": "1500ms..2s", "by": "every", "hits": 3, "require": {"isolated": {"stall": "2x"}}}
_OWN = {"adapters": "own", "tail": "2s"}
FAULTS: dict[str, Row] = {
    "nothing": Row({}, "", by="-", require={"isolated": {"stall": "3x", "error_rate": 0}}),
    "torn": Row({"fault": "torn", "at": 4}, TORN),
    "flip": Row({"fault": "flip", "length": 4}, "ordered:flip", (TORN,)),
    "stale by 0.1 s": Row({"fault": "stale", "ms": 100}, STALE, (OLDER,)),
    "stale by 0.3 s": Row({"fault": "stale", "ms": 300}, STALE, (OLDER,)),
    "stale by 10 s": Row({"fault": "stale", "ms": 10_000}, STALE, (OLDER,), tail="14s"),
    "one of three replicas stale": Row({"fault": "stale", "ms": 300}, STALE, (OLDER,), replicas=3),
    "inversion": Row({"fault": "inversion", "ms": 250, "p": 0.5}, OLDER),
    "live before its load": Row(
        {"fault": "prophetic", "adapter": "tenant-a", "p": 0.5}, "valid:prophetic", adapters="listed"
    ),
    "refused load takes effect": Row({"fault": "aborted"}, "valid:aborted", by="every"),
    "refused load removes the adapter": Row({"fault": "wiped"}, "durable:wiped", (REJECTED,), by="every"),
    "acked, never applied": Row({"fault": "lost"}, LOST, (STALE,), by="every"),
    "acked, the base answers": Row({"fault": "noop"}, "valid:fallback", by="every"),
    "reverted": Row({"fault": "reverted", "ms": 500}, "durable:reverted", (STALE, OLDER), by="every", every=SLOW),
    "1 in 100 tokens is a neighbour's": Row({"fault": "leak", "p": 0.01}, "valid:leak", (LEAKED,)),
    "1 in 1,000 tokens is a neighbour's": Row({"fault": "leak", "p": 0.001}, "valid:leak", (LEAKED,), by="-"),
    "base answers as an adapter": Row({"fault": "fallback", "p": 0.1}, "valid:fallback"),
    "an adapter answers as base": Row({"fault": "base_leak", "p": 0.1}, "valid:leak", (LEAKED,), by="every"),
    "a token dropped": Row({"fault": "drop_token", "p": 0.01}, "complete:truncated"),
    "a token duplicated": Row({"fault": "dup_token", "p": 0.01}, "complete:duplicated"),
    "a token reordered across a tear": Row({"fault": "reorder"}, "ordered:flip", (TORN,), by="-", swap="switch"),
    "cut": Row({"fault": "cut", "p": 0.1}, "complete:cut"),
    "error frame, then [DONE]": Row({"fault": "error_frame", "p": 0.1}, "complete:in_band_error"),
    "fewer ids than usage says": Row({"fault": "short", "p": 0.1}, "complete:truncated"),
    "hybrid: new weights on old cached keys": Row({}, TORN, by="-", swap="switch"),
    "global stall of 500 ms": Row({"fault": "stall", "ms": 500}, STALLED, **_STALL),
    "stall of bystanders only": Row({"fault": "stall", "ms": 500, "who": "bystanders"}, STALLED, **_STALL),
    "hangover": Row({"fault": "hangover", "percent": 400}, "steady:hangover", by="-", tail="6s"),
    "hybrid, adapters without markers": Row({}, TORN, by="-", swap="switch", **_OWN),
    "prefix blocks shared between versions, adapters without markers": Row(
        {"fault": "shared_prefix"}, "valid:alien", (TORN,), by="-", **_OWN
    ),
    # To scores a token that is out of place is one that the version did not choose: after the first hotfix they call it
    # a tear, which it is not: this row is never right.
    "a token reordered, adapters without markers": Row(
        {"fault": "reorder", "p": 0.01, "adapter": "tenant-a"}, "valid:alien", by="-", **_OWN
    ),
    "prefix blocks shared between versions: markers cannot tell": Row({"fault": "shared_prefix"}, "", by="-"),
    "a token reordered within a version: markers cannot tell": Row({"fault": "reorder", "p": 0.01}, "", by="-"),
    "loads that begin 300 ms late": Row({"fault": "slow_load", "ms": 300}, "", by="-"),
    "loads never answered that apply later": Row(
        {"fault": "hang_load", "ms": 200, "every": 3}, "", by="-", swaps=", timeout: 400ms"
    ),
}

SCENARIO = """
title: a planted fault
target: {target}
adapters: {{tenant-a: {{versions: {versions}}}, tenant-b: {{versions: {bystander}}}}}
traffic:
  users: 10
  mix: {{tenant-a: 6, tenant-b: 2, base: 2}}
  prompts: {{synthetic: {{tokens: {prompt}}}}}
  max_tokens: 16..32
phases:
  - {{arm: aa, for: {calm}}}
  - {{arm: real, hotfix: tenant-a, every: {every}, count: {count}{swaps}}}
  - {{arm: bad, hotfix: tenant-a, with: {bad}, every: {between}{swaps}}}
  - {{arm: aa, for: {tail}}}
require: {require}
"""


def planted(row: Row, seed: int, share: float) -> dict[str, Any]:
    """The fault at a share of its opportunities."""
    plant = {**row.plant, "seed": seed}
    if share < 1 and row.by == "p":
        plant["p"] = share * row.plant.get("p", 1.0)
    if share < 1 and row.by == "every":
        plant["every"] = round(1 / (share * plant.pop("p", 1.0)))
    return plant


def scenario(row: Row, share: float, target: Mapping[str, Any], versions: tuple[str, str]) -> str:
    """The run's scenario. Where every n-th swap or bad load is hit, there are n of them."""
    few = row.hits * round(1 / share) if share < 1 and row.by == "every" else 0
    bad = ["rank-too-high"] * few if few else ["rank-too-high", "missing", "rank-too-high"]
    return SCENARIO.format(
        target=json.dumps(target),
        versions=versions[0],
        bystander=versions[1],
        prompt="40..56, shared_prefix: 0.8" if row.plant.get("fault") == "shared_prefix" else "8..16",
        calm=row.calm,
        every=row.every,
        between=row.between,
        count=max(row.count, few),
        swaps=row.swaps,
        bad=json.dumps(bad),
        tail=row.tail,
        require=json.dumps({"level": "stream-atomic", "hangover": 2, **row.require}),
    )


def listed(folders: list[Path]) -> str:
    """`adapters.versions` of some folders."""
    return json.dumps([{"id": f"v{i}", "path": str(path)} for i, path in enumerate(folders)])


def versions_of(row: Row, folder: Path, seed: int, plant: dict[str, Any]) -> tuple[str, str]:
    """What tenant-a and tenant-b are made of; a prophet is told which version to serve."""
    base, out = ensure_base(cache_dir()), folder / "versions"
    if row.adapters == "own":
        made = [random_effect(base, out / f"v{i}", Effect(seed=100 * seed + i)).path for i in range(4)]
        return listed(made[:3]), listed(made[3:])
    if row.adapters == "listed":
        made = [path for _, path, _ in forge(out, base, "tenant-a", row.count + 2, 8, seed)]
        others = [path for _, path, _ in forge(out, base, "tenant-b", 1, 8, seed)]
        plant["path"] = str(made[row.count // 2])
        return listed(made), listed(others)
    return "markers", "markers 1"


@contextmanager
def fleet(row: Row, folder: Path, plant: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """`target` of a scenario: several embedded servers, the fault on the last one."""
    with ExitStack() as stack:
        urls, base = [], ""
        for i in range(row.replicas):
            own = folder / f"server-{i}"
            own.mkdir()
            spec = Spec(url="embedded", step_ms=STEP_MS, plant=(plant,) if i == row.replicas - 1 else ())
            target = open_target(spec, own, lambda line: None)
            stack.callback(target.stop)
            urls.append(target.url)
            base = str(target.base)
        yield {"replicas": urls, "base": base}


def found(row: Row, folder: Path, seed: int, share: float) -> set[str]:
    """guarantee:kind of all that is FAIL in one run."""
    folder.mkdir(parents=True, exist_ok=True)
    plant = planted(row, seed, share) if row.plant else {}
    versions = versions_of(row, folder, seed, plant)
    alone = {"url": "embedded", "swap": row.swap, "step_ms": STEP_MS, "plant": [plant] if plant else []}
    with fleet(row, folder, plant) if row.replicas else nullcontext(alone) as target:
        path = folder / "planted.yaml"
        path.write_text(scenario(row, share, target, versions), encoding="utf-8")
        verdict = run(path, seed=seed, results=folder / "results", timeout_s=240).verdict
    return {f"{n}:{k}" for n, g in verdict["guarantees"].items() if g["status"] == "FAIL" for k in g["kinds"]}


def told(name: str, row: Row, seen: list[set[str]]) -> tuple[str, bool]:
    """A row of the table, and whether all of it is right."""
    allowed = {row.name, *row.implies}
    right = sum((not row.name or row.name in s) and s <= allowed for s in seen)
    beside = Counter(kind for s in seen for kind in s & set(row.implies))
    strays = Counter(kind for s in seen for kind in s - allowed)
    cells = [", ".join(f"{kind} {n}" for kind, n in c.items()) or "-" for c in (beside, strays)]
    head = f"`{row.name}`" if row.name else "nothing"
    return f"| {name} | {head} | {len(seen)} | {right} | {cells[0]} | {cells[1]} |", right == len(seen)


def main() -> int:
    """Run everything that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--only", default="", help="rows whose name holds one of these words, separated by |")
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the opportunities; rows that have none are left out"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    rows = {n: r for n, r in FAULTS.items() if any(w in n for w in args.only.split("|"))}
    rows = {n: r for n, r in rows.items() if args.share == 1 or r.by != "-"}
    good = True
    print("| planted | found as | runs | right | and beside it | accused of something else |", flush=True)
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(args.jobs) as pool:
        where = (args.keep or Path(scratch)).resolve()
        seeds = range(args.first, args.first + args.seeds)
        jobs = {
            name: [pool.submit(found, row, where / f"{i}-{seed}", seed, args.share) for seed in seeds]
            for i, (name, row) in enumerate(rows.items())
        }
        for name, runs in jobs.items():
            line, right = told(name, rows[name], [job.result() for job in runs])
            good &= right
            print(line, flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
