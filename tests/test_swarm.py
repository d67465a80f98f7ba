"""loadtest.swarm, piece by piece. What imports Locust is checked in a process of its own: see swarm_checks.py."""

from __future__ import annotations

import argparse
import ast
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.errors import UsageError
from loadtest.swarm import options, progress
from loadtest.swarm.board import Board

CHECKS = Path(__file__).with_name("swarm_checks.py")
NAMES = [n.name for n in ast.parse(CHECKS.read_text()).body if isinstance(n, ast.FunctionDef) and "check_" in n.name]


@pytest.fixture(scope="module")
def checked() -> dict[str, str]:
    done = subprocess.run([sys.executable, str(CHECKS)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("name", NAMES)
def test_with_locust(checked: dict[str, str], name: str) -> None:
    assert checked[name] == "", checked[name]


def given(**fields: object) -> argparse.Namespace:
    return argparse.Namespace(**{"scenario": "", "target": "", "seed": "", "results": "", "host": None, **fields})


def test_options_are_read_from_text_and_empty_means_not_given() -> None:
    read = options.read(given(scenario=" a.yaml ", seed="7", results="out"), users=3, run_time_s=2.0)
    assert (read.scenario, read.seed, read.results) == (Path("a.yaml"), 7, Path("out"))
    assert (read.target, read.users, read.run_time_s) == (None, 3, 2.0)
    bare = options.read(given(), users=None, run_time_s=None)
    assert (bare.scenario, bare.target, bare.seed, bare.results) == (None, None, None, None)


def test_locusts_own_host_option_names_the_target_unless_target_does() -> None:
    assert options.read(given(host="http://h:1"), users=None, run_time_s=None).target == "http://h:1"
    assert options.read(given(host="http://h:1", target="embedded"), users=None, run_time_s=None).target == "embedded"


def test_a_seed_that_is_no_number_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--seed must be a whole number, got 'x'"):
        options.read(given(seed="x"), users=None, run_time_s=None)


@pytest.mark.parametrize(
    ("value", "number"), [("5", 5.0), (0.5, 0.5), (0, None), ("", None), (None, None), ("nan", None)]
)
def test_positive(value: object, number: float | None) -> None:
    assert options.positive(value) == number


class Terminal(io.StringIO):
    """A screen that somebody looks at."""

    def isatty(self) -> bool:
        return True


def board() -> Board:
    """Of a run with two engines that has seen two swaps, one of them lost, and three streams that broke something."""
    out = Board("r", "t", 2, {})
    out.count("e1", {"sent": 4, "open": 1, "ok": 2, "fail": 1, "info": 0, "counts": {"torn": 2}})
    out.count("e2", {"sent": 1, "open": 0, "ok": 1, "fail": 0, "info": 0, "counts": {"stale": 1}})
    for n, (arm, outcome) in enumerate((("bad", "fail"), ("real", "info"))):
        out.swap({"n": n, "arm": arm, "outcome": outcome, "adapter": "a", "version": "v1", "invoked_ns": 1})
    return out


TOLD = "5 streams, 1 open, 1 not ok · 2 swaps, 1 not as wanted · 2 torn, 1 stale"


def test_progress_in_a_log_is_one_plain_line_per_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    shown = progress.Progress(board())
    shown.phase({"index": 1, "arm": "real", "edge": "start", "adapter": "tenant-a"})
    shown.phase({"index": 1, "arm": "real", "edge": "end", "adapter": "tenant-a"})
    shown.show()
    assert screen.getvalue() == f"loadtest: phase 2/2 real on tenant-a ({TOLD})\n"


def test_progress_on_a_terminal_is_one_line_that_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress, "_width", lambda: 200)
    monkeypatch.delenv("CI", raising=False)
    shown = progress.Progress(board())
    shown.show()
    assert screen.getvalue() == f"\r\x1b[2Kramp 0s of 0s · 0 tokens/s · {TOLD}"
    shown.phase({"index": 0, "arm": "\x1b[31m", "edge": "start", "adapter": "a\u202eb"})
    assert screen.getvalue().endswith(f"\r\x1b[2Kloadtest: phase 1/2 \\x1b[31m on a\\u202eb ({TOLD})\n")


def test_a_cis_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("CI", "true")
    assert not progress.Progress(board()).live
