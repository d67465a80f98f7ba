"""What judging and rendering a run's folder cost: seconds of CPU (one thread), peak memory, by step.

python bench/judging.py FOLDER [OUT.json]
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from loadtest import harness, history, scenario
from loadtest.analysis import verdict
from loadtest.report import html, junit, markdown


def main(folder: Path, out: Path | None) -> None:
    """Judge, then render, each with its own clock."""
    times: dict[str, float] = {}

    def lap(name: str, since: float) -> float:
        now = time.process_time()
        times[name] = round(now - since, 2)
        return now

    begun = at = time.process_time()
    recorded = history.load(folder)
    at = lap("read_s", at)
    judged = verdict.judge(recorded, harness.require_of(scenario.load(folder / "scenario.yaml")))
    document = verdict.to_json(judged)
    at = lap("judge_s", at)
    times["total_s"] = round(at - begun, 2)
    times["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    markdown.render(document, "x"), junit.render(document, "x")
    html.render(document, recorded, "x", extra={})
    lap("render_s", at)
    if out is not None:
        out.write_text(json.dumps(document, indent=1, sort_keys=True))
    print(json.dumps({"streams": len(recorded.streams), "status": document["status"], **times}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
