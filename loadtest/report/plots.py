"""Charts as SVG text: small pure functions from figures to markup. Colours and dashes are classes of report.css.

Every series has a dash pattern of its own beside its colour, and its name stands in the legend.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from loadtest.report import text

F64 = npt.NDArray[np.float64]
LEFT, RIGHT, BOTTOM, LINE = 58, 14, 40, 16  # margins and the height of a line of words, in SVG units


@dataclass(frozen=True, slots=True)
class Series:
    """A line with an optional band. NaN breaks the line."""

    name: str
    x: F64
    y: F64
    style: str  # class: "s0", "s1", "s2"
    low: F64 | None = None
    high: F64 | None = None


@dataclass(frozen=True, slots=True)
class Region:
    """A shaded stretch of the x axis with a word on top."""

    start: float
    end: float
    label: str
    style: str


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line from x `start` to `end`, with words."""

    start: float
    end: float
    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """What to draw."""

    title: str
    description: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_range: tuple[float, float]
    regions: Sequence[Region] = ()
    marks: Sequence[tuple[float, str]] = ()  # x and class of vertical lines
    levels: Sequence[Level] = ()
    width: int = 640
    height: int = 250
    whole: bool = False  # the y axis counts things


Scale = Callable[[float], float]


def scale(low: float, high: float, start: float, end: float) -> Scale:
    """Linear map of [low, high] onto [start, end]."""
    span = (high - low) or 1.0
    return lambda v: start + (v - low) / span * (end - start)


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round values (1, 2, 5 × 10^n apart) inside [low, high], about `count` of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def path(x: Sequence[float], y: Sequence[float]) -> str:
    """Path data through the finite points; a gap starts a new subpath, a lonely point is a dot."""
    parts: list[str] = []
    pen = "M"
    for a, b in zip(x, y, strict=True):
        if not math.isfinite(b):
            pen = "M"
            continue
        parts.append(f"{pen}{a:.1f} {b:.1f}" + ("h0" if pen == "M" else ""))
        pen = "L"
    return "".join(parts)


def ribbon(x: Sequence[float], low: Sequence[float], high: Sequence[float]) -> str:
    """Closed path between two lines, over the stretches where both are finite."""
    out, run = [], list[tuple[float, float, float]]()
    for point in [*zip(x, low, high, strict=True), (0.0, math.nan, math.nan)]:
        if math.isfinite(point[1]) and math.isfinite(point[2]):
            run.append(point)
            continue
        if len(run) > 1:
            there = [f"{a:.1f} {h:.1f}" for a, _, h in run]
            back = [f"{a:.1f} {b:.1f}" for a, b, _ in reversed(run)]
            out.append("M" + "L".join(there + back) + "Z")
        run = []
    return "".join(out)


def top(chart: Chart) -> float:
    """Largest finite y to be shown, never 0."""
    values = [v for s in chart.series for v in (s.y, s.high) if v is not None]
    finite = [float(np.nanmax(v)) for v in values if np.isfinite(v).any()] + [v.y for v in chart.levels]
    # The words of levels and of regions stand above the data.
    room = 1.35 if chart.levels else 1.06 + 20 / chart.height * bool(chart.regions)
    return max([f for f in finite if math.isfinite(f)], default=1.0) * room or 1.0


def draw(chart: Chart) -> str:
    """The chart as one <svg> element."""
    head = LINE * 2 + 4
    x = scale(*chart.x_range, LEFT, chart.width - RIGHT)
    y = scale(0.0, top(chart), chart.height - BOTTOM, head)
    body = [
        *(_region(r, x, head, chart) for r in chart.regions),
        *_axes(chart, x, y),
        *(f'<path class="mark {escape(c)}" d="M{x(m):.1f} {head}V{chart.height - BOTTOM}"/>' for m, c in chart.marks),
        *(_band(s, x, y) for s in chart.series),
        *(_line(s, x, y) for s in chart.series),
        *(_level(v, x, y, head) for v in chart.levels),
        _legend(chart),
    ]
    kind = "chart wide" if chart.width > 800 else "chart"
    label = escape(f"{chart.title}. {chart.description}", quote=True)
    return (
        f'<svg class="{kind}" viewBox="0 0 {chart.width} {chart.height}" role="img" aria-label="{label}">'
        + "".join(body)
        + "</svg>"
    )


def _axes(chart: Chart, x: Scale, y: Scale) -> list[str]:
    floor, right = chart.height - BOTTOM, chart.width - RIGHT
    out = []
    for v in ticks(0.0, top(chart), 5):
        if chart.whole and v != round(v):
            continue
        out.append(f'<path class="grid" d="M{LEFT} {y(v):.1f}H{right}"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y(v) + 4:.1f}" class="end">{_figure(v)}</text>')
    for v in ticks(*chart.x_range, 8):
        out.append(f'<path class="axis" d="M{x(v):.1f} {floor}v4"/>')
        out.append(f'<text x="{x(v):.1f}" y="{floor + 16}" class="mid">{_figure(v)}</text>')
    out.append(f'<path class="axis" d="M{LEFT} {floor}H{right}"/>')
    out.append(f'<text x="{(LEFT + right) / 2:.0f}" y="{chart.height - 6}" class="mid">{escape(chart.x_label)}</text>')
    out.append(f'<text x="4" y="12">{escape(chart.y_label)}</text>')
    return out


def _figure(value: float) -> str:
    return "0" if value == 0 else escape(f"{value:,.6g}")


def _region(r: Region, x: Scale, head: float, chart: Chart) -> str:
    left, right = x(max(r.start, chart.x_range[0])), x(min(r.end, chart.x_range[1]))
    box = (
        f'<rect class="region {escape(r.style)}" x="{left:.1f}" y="{head}" width="{max(right - left, 0):.1f}" '
        f'height="{chart.height - BOTTOM - head}"/>'
    )
    if right - left < 7 * len(r.label):
        return box
    return box + f'<text x="{left + 3:.1f}" y="{head + 12}" class="quiet">{escape(r.label)}</text>'


def _band(s: Series, x: Scale, y: Scale) -> str:
    if s.low is None or s.high is None:
        return ""
    d = ribbon([x(v) for v in s.x], [y(v) for v in s.low], [y(v) for v in s.high])
    return f'<path class="band {s.style}" d="{d}"/>' if d else ""


def _line(s: Series, x: Scale, y: Scale) -> str:
    return f'<path class="line {s.style}" d="{path([x(v) for v in s.x], [y(v) for v in s.y])}"/>'


def _level(v: Level, x: Scale, y: Scale, head: float) -> str:
    return (
        f'<path class="level" d="M{x(v.start):.1f} {y(v.y):.1f}H{x(v.end):.1f}"/>'
        f'<text x="{(x(v.start) + x(v.end)) / 2:.1f}" y="{head + 29}" class="mid strong">{escape(v.label)}</text>'
    )


def _legend(chart: Chart) -> str:
    out, at = [], float(LEFT)
    for s in chart.series:
        out.append(f'<path class="line {s.style}" d="M{at:.0f} {LINE + 8}h26"/>')
        out.append(f'<text x="{at + 31:.0f}" y="{LINE + 12}">{escape(s.name)}</text>')
        at += 48 + 6.4 * len(s.name)
    return "".join(out)


def spark(values: Sequence[float], limit: float, label: str) -> str:
    """A small line without axes, with a dashed line at `limit`."""
    width, height = 160, 34
    shown = [v for v in values if math.isfinite(v)]
    if not shown:
        return ""
    x, y = scale(0, max(len(values) - 1, 1), 2, width - 2), scale(0, max(*shown, limit) * 1.05, height - 2, 2)
    line = path([x(i) for i in range(len(values))], [y(v) for v in values])
    return (
        f'<svg class="spark" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(text.clean(label))}">'
        f'<path class="level" d="M2 {y(limit):.1f}H{width - 2}"/><path class="line s0" d="{line}"/></svg>'
    )
