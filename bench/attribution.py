"""Can versions without markers be told apart? On one server: markers with the marks hidden, then random adapters.

    python bench/attribution.py [--scenario bench/scenarios/vllm-own.yaml] [--results results/attribution]

First run: marker adapters, attributed by teacher-forced margins that know nothing of the marks; then every token is
compared with what its mark says. Second run: random adapters with a real effect on all seven projections, attributed as
`auto` decides. Prints both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from loadtest import history, scenario
from loadtest.adapters.marker import Effect, random_effect
from loadtest.analysis.case import Case, open_case
from loadtest.analysis.timeline import ANOTHER
from loadtest.analysis.versions import untorn
from loadtest.probe import Target
from loadtest.target import open_target


def run(data: dict[str, Any], target: Target, results: Path, name: str) -> Path:
    """One scenario against the running server; the run's folder."""
    copy = results / f"{name}.yaml"
    copy.write_text(yaml.safe_dump(data | {"target": {"url": target.url, "base": str(target.base)}}, sort_keys=False))
    command = [sys.executable, "-m", "loadtest.cli", "run", str(copy), "--seed", "1", "--results", str(results)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    return (results / "latest").resolve()


def random_versions(adapters: dict[str, Any], base: Path, out: Path) -> dict[str, Any]:
    """The same adapters with random versions: three of what is swapped, one of the others."""
    found: dict[str, Any] = {}
    for n, (name, adapter) in enumerate(adapters.items()):
        count = int(adapter["versions"].split()[1])
        versions = []
        for i in range(count):
            made = random_effect(base, out / name / f"v{i}", Effect(rank=8, seed=10 * n + i))
            versions.append({"id": f"v{i}", "path": str(made.path)})
        found[name] = {"versions": versions}
    return found


def named(case: Case) -> list[str]:
    """What each token is called, "" where nobody can say."""
    names = case.look.line.contents.labels
    return ["/".join(names[c]) if c >= 0 else "" for c in case.attribution.code.tolist()]


def agreement(folder: Path) -> dict[str, int]:
    """Tokens and torn streams by what margins and markers say of them."""
    recorded = history.load(folder)
    cases = (open_case(recorded), open_case(replace(recorded, scores=history.NO_SCORES)))
    out: Counter[str] = Counter()
    for margins, marker in zip(*(named(c) for c in cases), strict=True):
        if not marker:
            out["without a marker (the base's streams)"] += 1
        elif not margins:
            out["of markers that margins do not name"] += 1
        elif ANOTHER in margins:
            out["of markers after a tear, `another version` to margins"] += 1
        else:
            out["named alike" if margins == marker else "named differently"] += 1
    torn = [set(np.flatnonzero(untorn(c).flagged).tolist()) for c in cases]
    out["streams torn by both"], out["by margins only"], out["by markers only"] = (
        len(torn[0] & torn[1]),
        len(torn[0] - torn[1]),
        len(torn[1] - torn[0]),
    )
    return dict(out)


def told(folder: Path) -> str:
    """A run's verdict in some lines."""
    verdict = json.loads((folder / "verdict.json").read_text())
    states = {n: f"{g['status']} {g['violations']}/{g['exposed']}" for n, g in verdict["guarantees"].items()}
    gates = {g["name"]: g["because"] for g in verdict["gates"] if g["name"] in ("scored", "attributable")}
    tokens = {k: verdict["tokens"][k] for k in ("total", "attributed", "share", "method")}
    last = (folder / "scores.jsonl").read_text().splitlines()[-1]
    return "\n  ".join([f"{folder.name}: {verdict['status']}", str(states), str(gates), str(tokens), last])


def main() -> int:
    """Both runs on one server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", type=Path, default=Path("bench/scenarios/vllm-own.yaml"))
    parser.add_argument("--results", type=Path, default=Path("results/attribution"))
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    data = yaml.safe_load(given.scenario.read_text())
    with tempfile.TemporaryDirectory() as work:
        target = open_target(
            scenario.load(given.scenario).target, Path(work), lambda line: print(line, file=sys.stderr)
        )
        try:
            assert target.base is not None
            marked = run(data, target, given.results, "markers")
            adapters = random_versions(data["adapters"], target.base, Path(work) / "random")
            own = run(data | {"adapters": adapters, "attribution": "auto"}, target, given.results, "random")
        finally:
            target.stop()
    print(told(marked))
    for what, count in agreement(marked).items():
        print(f"{count:>9,} {what}")
    print(told(own))
    return 0


if __name__ == "__main__":
    sys.exit(main())
