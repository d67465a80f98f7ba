"""Starts the scoring of a run that has ended (scoring.py), in a process of its own: Locust's is patched by gevent."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadtest.scenario import Scenario
    from loadtest.target import Target

IN_ORDER = ("complete", "run_time")  # a run that was interrupted is judged at once, by markers or not at all


def needed(scenario: Scenario, marked: bool, reason: str) -> bool:
    """Whether streams have to be put to the versions again. `marked`: every adapter has markers only."""
    if reason not in IN_ORDER or scenario.attribution in ("markers", "none"):
        return False
    return not marked or scenario.attribution != "auto"


def score(folder: Path, target: Target, choice: str, say: Callable[[str], None]) -> None:
    """Score the streams in `folder`; returns when it is done. A failure is in the results, and said."""
    from loadtest.scoring import Job

    local, server = str(target.root_local), target.root_server
    job = Job(str(folder), target.url, target.headers, target.model, local, server, choice)
    say("asking the server what each version says about these streams (Ctrl-C skips it)")
    # Our end of the pipe stays open until the child ends: with us gone, it unloads what it loaded and ends.
    child = subprocess.Popen([sys.executable, "-m", "loadtest.scoring"], stdin=subprocess.PIPE)
    assert child.stdin is not None
    try:
        child.stdin.write(json.dumps(dataclasses.asdict(job)).encode() + b"\n")
        child.stdin.flush()
        status = child.wait()
    finally:
        child.stdin.close()
    if status:
        say(f"scoring ended with status {status}; streams of adapters without markers stay unattributed")
