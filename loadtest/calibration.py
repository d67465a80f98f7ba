"""How late an engine stamps with as many streams as a run had open, measured afterwards (`loadtest calibrate --run`).

One JSON object in the run's folder; a file that cannot be used is a named problem and changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

FILE = "calibration.json"


@dataclass(frozen=True, slots=True)
class Calibration:
    """Recorded arrival minus emission, against a server whose tokens say when they were emitted."""

    streams: int  # open at once
    rate: float  # tokens a second of each
    lag_p50_ms: float
    lag_p99_ms: float
    lag_max_ms: float
    loop_lag_p99_ms: float  # what the engine said of itself meanwhile
    cpu_us_per_token: float


def write(folder: Path, found: Calibration) -> Path:
    """Put it beside the history; the file."""
    path = folder / FILE
    path.write_bytes(orjson.dumps(asdict(found), option=orjson.OPT_INDENT_2) + b"\n")
    return path


def read(folder: Path) -> tuple[Calibration | None, tuple[str, ...]]:
    """(what was measured or None, problems)."""
    path = folder / FILE
    if not path.is_file():
        return None, ()
    try:
        row = orjson.loads(path.read_bytes())
        values = {k: float(row[k]) for k in Calibration.__slots__}
        if not all(math.isfinite(v) for v in values.values()) or values["streams"] < 1:
            raise ValueError("a figure is out of range")
        return Calibration(**values | {"streams": int(values["streams"])}), ()  # type: ignore[arg-type]
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as e:
        return None, (f"{FILE}: ignored ({type(e).__name__}: {e})",)
