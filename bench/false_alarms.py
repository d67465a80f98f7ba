"""How often does the tool accuse a server on which nothing changes? Runs a scenario several times and counts.

    python bench/false_alarms.py [--runs 4] [--seed 1] [--scenario bench/scenarios/vllm-quiet.yaml]

Counts, over all runs, the streams that lived wholly inside aa or sham phases and the violations of each guarantee among
them; and what the whole runs hold against complete, durable and isolated. Exit code 1 when there is any. With the
default scenario (a real vLLM, `make vllm` first) four runs make over 3,000 aa streams and 100 sham swaps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

WHOLE_RUN = ("complete", "durable", "isolated")


def run(scenario: Path, results: Path, seed: int) -> dict[str, Any]:
    """One run; its verdict."""
    command = [
        sys.executable,
        "-m",
        "loadtest.cli",
        "run",
        str(scenario),
        "--seed",
        str(seed),
        "--results",
        str(results),
    ]
    status = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    if status not in (0, 1, 2):
        raise SystemExit(f"the run with seed {seed} ended with status {status}")
    return dict(json.loads((results / "latest" / "verdict.json").read_text()))


def add(verdict: dict[str, Any], streams: Counter[str], alarms: Counter[str]) -> None:
    """Count one run into the totals."""
    for arm, found in verdict["false_alarms"].items():
        streams[arm] += max(f["streams"] for f in found.values())
        for name, f in found.items():
            alarms[f"{name} in {arm}"] += f["violations"]
    for name in WHOLE_RUN:
        alarms[f"{name} in whole runs"] += verdict["guarantees"][name]["violations"]
    streams["sham swaps"] += verdict["swaps"]["by_arm"].get("sham", {}).get("ok", 0)
    streams["tokens of adapters without a marker"] += sum(verdict["tokens"]["unexplained"].values())
    streams["tokens"] += verdict["tokens"]["total"]


def main() -> int:
    """Run, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1, help="of the first run")
    parser.add_argument("--scenario", type=Path, default=Path("bench/scenarios/vllm-quiet.yaml"))
    parser.add_argument("--results", type=Path, default=Path("results/false-alarms"))
    given = parser.parse_args()
    streams, alarms, statuses = Counter[str](), Counter[str](), Counter[str]()
    for seed in range(given.seed, given.seed + given.runs):
        verdict = run(given.scenario, given.results, seed)
        add(verdict, streams, alarms)
        statuses[verdict["status"]] += 1
        print(f"seed {seed}: {verdict['status']}; so far {dict(streams)}", flush=True)
    print(f"{given.runs} runs: {dict(statuses)}")
    for name, count in {**streams, **alarms}.items():
        print(f"{count:>9,} {name}")
    return int(sum(alarms.values()) > 0)


if __name__ == "__main__":
    sys.exit(main())
