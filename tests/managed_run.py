"""What is true of a managed server that dies, and of its children when the tool does: for the fake and for the real."""

from __future__ import annotations

import os
import re
import signal

import psutil
from locust_run import PATIENCE_S, Locust, until

PLAYING = "phase 1/1 real"


def below(locust: Locust, *words: str) -> list[psutil.Process]:
    """Processes of this run whose command line holds one of the words."""
    return [p for p, command in locust.commands() if any(w in " ".join(command) for w in words)]


def server_pid(locust: Locust) -> int:
    """The engine process of the server: what a crash takes away."""
    found = re.search(r"engine core (\d+)|\(EngineCore pid=(\d+)\)", (locust.run / "server.log").read_text())
    assert found
    return int(found[1] or found[2])


def dies_in_the_middle(locust: Locust, last_word: str, patience_s: float = PATIENCE_S) -> None:
    """Kill the engine once tokens flow; the run must end by itself, judged, with the log's end in every report."""
    locust.wait_for(PLAYING, patience_s=patience_s)
    until(lambda: (locust.run / "tokens-e0.i32").stat().st_size > 4_000, "tokens")
    locust.look()
    os.kill(server_pid(locust), signal.SIGKILL)
    assert locust.exit_code() in (1, 2), locust.output  # streams that were cut are a FAIL, an idle moment is UNKNOWN
    verdict = locust.verdict()
    gate = next(g for g in verdict["gates"] if g["name"] == "target_alive")
    assert gate["status"] == "failed"
    assert locust.nothing_left()
    reports = [(locust.run / name).read_text() for name in ("report.md", "report.html")]
    for text in (locust.output, *reports):
        assert last_word in text


def dies_with_the_tool(locust: Locust, *words: str, patience_s: float = PATIENCE_S) -> None:
    """SIGKILL the tool once the server's processes, one for each word, are there: none of them is left."""
    until(lambda: all(below(locust, w) for w in words), f"processes of {words}", patience_s)
    locust.process.send_signal(signal.SIGKILL)
    locust.process.wait()
    assert locust.nothing_left()
