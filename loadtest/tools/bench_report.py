"""A benchmark's samples as a JSON document with everything in it, and as a table."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from loadtest.analysis.stats import quantile, quantile_interval
from loadtest.errors import EXIT_PASS, EXIT_UNKNOWN
from loadtest.tools.bench import OPERATIONS, Measured, Settings
from loadtest.tools.shown import Shown, Table

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
FORMAT = 1


def document(measured: Measured, settings: Settings, url: str, tool: str) -> dict[str, Any]:
    """All figures in ms. `low`, `high`: 95 % order-statistic interval, null where n is too small to have an end."""
    rows = [
        row
        for operation in OPERATIONS
        for condition in settings.conditions
        for rank in settings.ranks
        if (row := _row(measured, operation, rank, condition))
    ]
    lag = np.asarray(measured.background.lag_ms, dtype=np.float64)
    return {
        "format": FORMAT,
        "tool": tool,
        "wall_time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "url": url,
        "server_version": measured.version or None,
        "model": measured.model,
        "settings": {"ranks": list(settings.ranks), "repeat": settings.repeat, "streams": settings.streams},
        "rows": rows,
        "refused": {str(rank): words for rank, words in measured.refused.items()},
        "background": {"streams": measured.background.streams, "failed": measured.background.failed},
        "client_lag_ms": {name: _finite(quantile(lag, q)) for name, q in QUANTILES.items()},
    }


def _row(measured: Measured, operation: str, rank: int, condition: str) -> dict[str, Any] | None:
    key = (operation, rank, condition)
    samples, failures = measured.samples.get(key, []), measured.failures.get(key, [])
    if not samples and not failures:
        return None
    values = np.asarray(samples, dtype=np.float64)
    figures = {}
    for name, q in QUANTILES.items():
        low, high = quantile_interval(values, q)
        figures[name] = {"value": _finite(quantile(values, q)), "low": _finite(low), "high": _finite(high)}
    return {
        "operation": operation,
        "rank": rank,
        "condition": condition,
        "n": len(samples),
        "failed": len(failures),
        "reasons": sorted(set(failures)),
        **figures,
        "samples": [round(s, 3) for s in samples],
    }


def _finite(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None


def shown(found: dict[str, Any]) -> Shown:
    """The table. Exit code 2 when something that was asked for could not be measured."""
    rows, failures = found["rows"], any(r["failed"] for r in found["rows"])
    columns = ("ms", "rank", "n", *(f"{name} [95 %]" for name in QUANTILES), *(["failed"] if failures else []))
    tables = []
    for operation in dict.fromkeys(r["operation"] for r in rows):
        cells = [_cells(r, failures) for r in rows if r["operation"] == operation]
        tables.append(Table(columns, cells, frozenset(columns) - {"ms"}, operation))
    complete = not found["refused"] and all(r["n"] == found["settings"]["repeat"] for r in rows)
    heading = f"{found['model']} on {found['url']}, {found['server_version'] or 'version unknown'}"
    return Shown(found, tables, _lines(found), EXIT_PASS if complete and rows else EXIT_UNKNOWN, heading)


def _cells(row: dict[str, Any], failures: bool) -> tuple[str, ...]:
    cells = (row["condition"], str(row["rank"]), str(row["n"]), *(_cell(row[name]) for name in QUANTILES))
    return (*cells, str(row["failed"] or "")) if failures else cells


def _cell(figure: dict[str, float | None]) -> str:
    if figure["value"] is None:
        return ""
    low, high = ("0" if figure["low"] is None else _ms(figure["low"])), figure["high"]
    return f"{_ms(figure['value'])} [{low}, {'∞' if high is None else _ms(high)}]"


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}" if value >= 1 else f"{value:.2f}"


def _lines(found: dict[str, Any]) -> Sequence[str]:
    traffic, lag = found["background"], found["client_lag_ms"]["p99"]
    lines = [f"rank {rank} is not served: {words}" for rank, words in found["refused"].items()]
    reasons = {reason for row in found["rows"] for reason in row["reasons"]} - set(found["refused"].values())
    lines += [f"failed: {reason}" for reason in sorted(reasons)]
    if found["settings"]["streams"]:
        failed = f", {traffic['failed']} failed" if traffic["failed"] else ""
        users, completed = found["settings"]["streams"], traffic["streams"]
        lines.append(f"under load: {users} users all the while, {completed} streams completed{failed}")
    if lag is not None:
        lines.append(f"the client's own loop was late by {lag:.1f} ms (p99)")
    return lines
