"""Locust's command line, environment, config files and start form, read into a run's options."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from loadtest import harness
from loadtest.errors import UsageError

ARGUMENTS = (
    ("--scenario", "<file>", "LOADTEST_SCENARIO", "Scenario file (YAML): adapters, traffic, phases, what is required."),
    (
        "--target",
        "<url>",
        "LOADTEST_TARGET",
        "Server under test, instead of the scenario's: embedded or http://host:port.",
    ),
    ("--seed", "<int>", "LOADTEST_SEED", "Seed of prompts, arrivals and swap times, instead of the scenario's."),
    ("--metrics", "<port>", "LOADTEST_METRICS", "Serve Prometheus metrics of the tester on this [HOST:]PORT."),
    ("--results", "<folder>", "LOADTEST_RESULTS", "Where the run's folder is made. Default: results"),
)


def add_arguments(parser: Any) -> None:
    """Give Locust's parser ours; Locust calls this again at each page load, so it only adds."""
    for flag, metavar, env_var, text in ARGUMENTS:
        # All are strings: the web form can only write strings back, and an empty field means "not given".
        parser.add_argument(flag, metavar=metavar, env_var=env_var, default="", type=str, help=text)


def read(options: Any, *, users: int | None, run_time_s: float | None) -> harness.Options:
    """The run's options out of Locust's namespace. `-H` names the target where `--target` does not.

    Raises UsageError when the seed is not a number.
    """
    scenario, results = _text(options, "scenario"), _text(options, "results")
    target = _text(options, "target") or _text(options, "host")
    return harness.Options(
        scenario=Path(scenario) if scenario else None,
        target=target or None,
        seed=_seed(_text(options, "seed")),
        results=Path(results) if results else None,
        users=users,
        run_time_s=run_time_s,
    )


def positive(value: object) -> float | None:
    """A finite number above zero, or None for everything else (unset, 0, "", nan)."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None


def _text(options: Any, name: str) -> str:
    return str(getattr(options, name, None) or "").strip()


def _seed(text: str) -> int | None:
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--seed must be a whole number, got {text!r}", remedy="leave it out or give e.g. 7") from None
