"""What in-place loads leave behind, what clears it, and what plain loads leave: on one server, with intervals.

    python bench/hangover.py [--results results/hangover] [--scenarios scenarios/vllm-hangover.yaml,...]

Starts the managed server of the first scenario once and runs both scenarios against it, the one with in-place loads
first. The second run begins by unloading and loading the adapter anew, so its traffic before the first swap shows what
that clears. Prints the median inter-token latency of each part with a bootstrap interval over streams.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from loadtest import history, scenario
from loadtest.analysis.case import is_ok, open_case
from loadtest.analysis.latency import tpot_ms
from loadtest.managed import open_managed

NAMES = ("before the first in-place load", "after five of them", "after unload + load", "after five reloads")


def run(path: Path, url: str, base: Path, results: Path) -> Path:
    """One scenario against the running server; the run's folder."""
    data = yaml.safe_load(path.read_text())
    kept = {key: value for key, value in data["target"].items() if key in ("max_loras", "max_lora_rank")}
    data["target"] = {"url": url, "base": str(base), **kept}
    copy = results / path.name
    copy.write_text(yaml.safe_dump(data, sort_keys=False))
    command = [sys.executable, "-m", "loadtest.cli", "run", str(copy), "--seed", "1", "--results", str(results)]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode not in (0, 1, 2):
        raise SystemExit(f"{copy} could not be run")
    return (results / "latest").resolve()


def parts(folder: Path) -> list[np.ndarray[Any, Any]]:
    """ITL, ms, of the streams that ended before the first swap, and of those sent after the last."""
    case = open_case(history.load(folder))
    itl, good = tpot_ms(case), is_ok(case) & (case.history.streams.tokens > 1)
    rolled = min((op.invoked for op in case.history.ops if op.by == "rollback"), default=2**62)
    before = good & (case.ended < int(case.swaps.invoked.min()))
    after = good & (case.history.streams.sent > int(case.swaps.end.max())) & (case.ended < rolled)
    return [itl[before], itl[after]]


def figure(values: np.ndarray[Any, Any]) -> str:
    """Median with a 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    drawn = np.median(rng.choice(values, (2000, len(values))), axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{np.median(values):7.2f} ms  [{low:.2f}, {high:.2f}]  {len(values)} streams"


def main() -> int:
    """Run both, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results/hangover"))
    parser.add_argument("--inplace", type=Path, default=Path("scenarios/vllm-hangover.yaml"))
    parser.add_argument("--reload", type=Path, default=Path("scenarios/vllm-reload.yaml"))
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    spec = scenario.load(given.inplace).target
    with tempfile.TemporaryDirectory() as work:
        target = open_managed(spec, Path(work), lambda line: print(line, file=sys.stderr))
        try:
            assert target.base is not None
            folders = [run(p, target.url, target.base, given.results) for p in (given.inplace, given.reload)]
        finally:
            target.stop()
    found = [part for folder in folders for part in parts(folder)]
    for name, values in zip(NAMES, found, strict=True):
        print(f"{name:32s} {figure(values)}")
    for folder in folders:
        verdict = json.loads((folder / "verdict.json").read_text())
        steady = verdict["guarantees"]["steady"]
        print(f"{folder.name}: {verdict['status']}; steady {steady['status']}: {steady['because']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
