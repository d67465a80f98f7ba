"""What changed between two runs of one scenario: an engine upgrade, a flag, another adapter size.

Rules
1. Only like is compared. `refusals` names every reason not to; there is no switch to override it.
2. A difference is called better or worse only when its 95 % interval leaves 0 (or, for ratios, 1) out.
3. Rates: the intervals of both runs joined by the square-and-add method. Latencies: medians over swaps, resampled.
   What has no interval in verdict.json is shown and not interpreted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loadtest.report import html, markdown, text
from loadtest.report.text import Doc

REPS = 2_000
FEWEST = 6  # values a side needs before a median gets an interval
TRUSTED = ("clock", "client_lag", "dropped", "closed", "readable")  # gates without which figures are not figures
OF_ONE_RUN = frozenset(
    ("run", "seed", "wall_time", "url", "ended", "role", "title", "clock.boot_id", "server_log_tail")
)
SAME = "no difference shown"


class NotComparable(ValueError):
    """The runs do not answer the same question; the message names every reason."""


@dataclass(frozen=True, slots=True)
class Side:
    """One run."""

    name: str  # of its folder
    verdict: Doc  # verdict.json
    meta: Doc  # meta.json
    scenario: str = ""  # scenario.yaml as resolved


@dataclass(frozen=True, slots=True)
class Row:
    """One compared figure, in words."""

    what: str
    a: str
    b: str
    difference: str
    interval: str
    reading: str


def render(a: Side, b: Side) -> tuple[str, str]:
    """(Markdown, HTML). Raises NotComparable."""
    reasons = refusals(a, b)
    if reasons:
        raise NotComparable(f"{a.name} and {b.name} cannot be compared: " + "; ".join(reasons))
    title = text.clean(f"{a.meta.get('title') or 'run'}: A against B")
    sides = [(w, text.clean(s.name), text.headline(s.verdict)) for w, s in (("A", a), ("B", b))]
    groups = [
        ("Guarantees: violations per exposed", list(_guarantees(a.verdict, b.verdict))),
        ("Swap latency: median over real swaps, ms", list(_latencies(a.verdict, b.verdict))),
        ("Hangover", list(_hangover(a.verdict, b.verdict))),
        ("Traffic, without intervals", list(_traffic(a.verdict, b.verdict))),
    ]
    summary = _summary([r for _, rows in groups for r in rows])
    setting = list(_settings(a.meta, b.meta))
    page = html.page_of(
        "compare.html.j2",
        {
            "title": title,
            "sides": sides,
            "groups": [(n, _cells(rows)) for n, rows in groups if rows],
            "summary": summary,
            "setting": setting,
            "head": HEAD,
        },
    )
    return _markdown(title, sides, groups, summary, setting), page


HEAD = ("figure", "A", "B", "B − A", "95 % interval", "reading")


def _cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    return [(r.what, r.a, r.b, r.difference, r.interval, r.reading) for r in rows]


def _summary(rows: Sequence[Row]) -> str:
    worse = [r.what for r in rows if r.reading == "B is worse"]
    better = [r.what for r in rows if r.reading == "B is better"]
    parts = [f"{word}: {', '.join(names)}" for word, names in (("worse in B", worse), ("better in B", better)) if names]
    return "; ".join(parts) or "No figure differs by more than its 95 % interval."


def _markdown(
    title: str,
    sides: Sequence[tuple[str, str, str]],
    groups: Sequence[tuple[str, list[Row]]],
    summary: str,
    setting: Sequence[tuple[str, str, str]],
) -> str:
    parts = [f"# {markdown.escape(title)}", markdown.escape(summary), markdown.table(("", "run", "verdict"), sides)]
    if setting:
        parts += ["## What was different", markdown.table(("", "A", "B"), setting)]
    for name, rows in groups:
        if rows:
            parts += [f"## {name}", markdown.table(HEAD, _cells(rows))]
    return "\n\n".join(parts) + "\n"


def refusals(a: Side, b: Side) -> list[str]:
    """Every reason why the two runs cannot be compared; empty when they can."""
    missing = [s.name for s in (a, b) if "status" not in s.verdict or not _map(s.verdict.get("guarantees"))]
    if missing:
        return [f"{name} has no verdict" for name in missing]
    out = list(_different(a, b))
    for side in (a, b):
        if not _map(side.verdict.get("swaps")).get("ok"):
            out.append(f"no swap succeeded in {side.name}")
        failed = [g["name"] for g in text.failed_gates(side.verdict) if g.get("name") in TRUSTED]
        if failed:
            out.append(f"the figures of {side.name} are not to be trusted (gate {', '.join(failed)})")
    return out


def _different(a: Side, b: Side) -> Iterator[str]:
    if a.meta.get("run") and a.meta.get("run") == b.meta.get("run"):
        yield "both are the same run"
    for what, x, y in (
        ("titles", a.meta.get("title"), b.meta.get("title")),
        ("required levels", a.verdict.get("required_level"), b.verdict.get("required_level")),
        ("base models", a.meta.get("model"), b.meta.get("model")),
        ("adapters", _names(a.verdict), _names(b.verdict)),
        ("arms", _arms(a.verdict), _arms(b.verdict)),
    ):
        if x != y:
            yield f"their {what} differ: {text.clean(x, 80)} and {text.clean(y, 80)}"
    lines = zip([*comparable(a.scenario), ""], [*comparable(b.scenario), ""], strict=False)
    first = next(((x, y) for x, y in lines if x != y), None)
    if first:
        shown = " and ".join(f"`{text.clean(line, 80)}`" for line in first)
        yield f"their scenarios differ outside `target` and `seed`: {shown}"


def _names(verdict: Doc) -> str:
    return ", ".join(sorted(str(_map(g).get("name")) for g in verdict.get("adapters") or []))


def _arms(verdict: Doc) -> str:
    return ", ".join(sorted(_map(_map(verdict.get("swaps")).get("by_arm"))))


def comparable(scenario: str) -> list[str]:
    """Lines of a resolved scenario without its `target` and `seed`: what both runs must share."""
    out, inside = [], False
    for line in scenario.splitlines():
        if line[:1] not in ("", " ", "-", "#", "}", "]"):
            inside = line.partition(":")[0] in ("target", "seed")
        if not inside and line.strip():
            out.append(line.rstrip())
    return out


def _map(value: object) -> Doc:
    return value if isinstance(value, Mapping) else {}


def _settings(a: Doc, b: Doc) -> Iterator[tuple[str, str, str]]:
    """What the two runs were made with, where it differs."""
    x, y = _flat(a), _flat(b)
    for key in sorted({*x, *y}):
        if x.get(key) != y.get(key) and key not in OF_ONE_RUN:
            yield text.clean(key, 60), text.clean(x.get(key, "–"), 120), text.clean(y.get(key, "–"), 120)


def _flat(meta: Doc, prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for k, v in meta.items():
        out |= _flat(v, f"{prefix}{k}.") if isinstance(v, Mapping) else {f"{prefix}{k}": v}
    return out


def _guarantees(a: Doc, b: Doc) -> Iterator[Row]:
    for name in _map(a.get("guarantees")):
        x, y = _map(_map(a["guarantees"]).get(name)), _map(_map(b.get("guarantees")).get(name))
        told = _counts(x), _counts(y)
        before, after = _rate(x), _rate(y)
        if before is None or after is None:
            yield Row(text.clean(name, 40), *told, "", "", "not measured in both")
            continue
        value, pair = rate_difference(before, after)
        points = f"[{text.number(100 * pair[0])}, {text.number(100 * pair[1])}] points"
        yield Row(text.clean(name, 40), *told, f"{text.number(100 * value)} points", points, _reading(pair, 0.0))


def _counts(g: Doc) -> str:
    return f"{g.get('status', '–')} {g.get('violations', '–')}/{g.get('exposed', '–')}"


Rate = tuple[float, float, float]  # value, low, high


def _rate(g: Doc) -> Rate | None:
    pair, exposed = g.get("interval"), g.get("exposed")
    if not exposed or not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], int | float):
        return None
    return g.get("violations", 0) / exposed, float(pair[0]), float(pair[1])


def rate_difference(a: Rate, b: Rate) -> tuple[float, tuple[float, float]]:
    """b − a of two rates, each with its interval, and the interval of the difference (square and add)."""
    value = b[0] - a[0]
    low = value - math.hypot(b[0] - b[1], a[2] - a[0])
    high = value + math.hypot(b[2] - b[0], a[0] - a[1])
    return value, (max(low, -1.0), min(high, 1.0))


def _reading(pair: tuple[float, float], same: float) -> str:
    if pair[0] > same:
        return "B is worse"
    return "B is better" if pair[1] < same else SAME


def _latencies(a: Doc, b: Doc) -> Iterator[Row]:
    for name in text.LATENCIES:
        x, y = (_per_swap(v, f"{name}_ms") for v in (a, b))
        if not x or not y:
            continue
        value, pair = median_difference(x, y)
        told = f"{text.number(middle(x))} (n = {len(x)})", f"{text.number(middle(y))} (n = {len(y)})"
        reading = _reading(pair, 0.0) if math.isfinite(pair[0]) or math.isfinite(pair[1]) else "too few swaps to say"
        yield Row(name, *told, text.number(value), text.interval(pair), reading)


def _per_swap(verdict: Doc, key: str) -> list[float]:
    """The figure of every real swap that was not refused; "inf" is a swap that was never answered."""
    rows = [_map(s) for s in _map(verdict.get("swaps")).get("list") or []]
    values = [s.get(key) for s in rows if s.get("arm") == "real" and s.get("outcome") != "fail"]
    return [float(v) for v in values if isinstance(v, int | float) or v == "inf"]


def middle(values: Sequence[float]) -> float:
    """The sample's own median, never interpolated: infinite values stay values."""
    return sorted(values)[(len(values) - 1) // 2]


def median_difference(a: Sequence[float], b: Sequence[float], seed: int = 0) -> tuple[float, tuple[float, float]]:
    """Median of b − median of a and its bootstrap interval; infinite with fewer than FEWEST values on a side."""
    value = middle(b) - middle(a)
    if min(len(a), len(b)) < FEWEST or not math.isfinite(value):
        return value, (-math.inf, math.inf)
    rng = np.random.default_rng(seed)
    drawn = []
    for side in (a, b):
        sample = np.array(side)[rng.integers(0, len(side), (REPS, len(side)))]
        drawn.append(np.sort(sample, axis=1)[:, (len(side) - 1) // 2])
    with np.errstate(invalid="ignore"):
        ordered = np.sort(np.nan_to_num(drawn[1] - drawn[0], nan=0.0, posinf=math.inf, neginf=-math.inf))
    return value, (float(ordered[int(0.025 * REPS)]), float(ordered[int(0.975 * REPS) - 1]))


def _hangover(a: Doc, b: Doc) -> Iterator[Row]:
    x, y = _ratio(_map(a.get("hangover"))), _ratio(_map(b.get("hangover")))
    if x is None or y is None:
        return
    was, now = ([math.log(v) for v in side] for side in (x, y))
    value = now[0] - was[0]
    low = value - math.hypot(now[0] - now[1], was[2] - was[0])
    high = value + math.hypot(now[2] - now[0], was[0] - was[1])
    pair = (math.exp(low), math.exp(high))
    ratio = f"× {text.number(math.exp(value))}"
    told = text.number(x[0]), text.number(y[0])
    yield Row("ITL after over before", *told, ratio, text.interval(pair), _reading(pair, 1.0))


def _ratio(h: Doc) -> Rate | None:
    pair, value = h.get("interval"), h.get("ratio")
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return None
    numbers = [v for v in (value, *pair) if isinstance(v, int | float) and math.isfinite(v) and v > 0]
    return (numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 else None


def _traffic(a: Doc, b: Doc) -> Iterator[Row]:
    """Figures per arm: what the engine did at all, with and without swaps."""
    arms = [{_map(g).get("name"): _map(g) for g in v.get("arms") or []} for v in (a, b)]
    for arm in arms[0]:
        for key, q in (("tokens_per_s", ""), ("ttft_ms", "p50"), ("itl_ms", "p50"), ("itl_ms", "p99")):
            x, y = (_figure(side.get(arm, {}), key, q) for side in arms)
            if x and y:
                name = f"{arm or 'outside any phase'}: {key.removesuffix('_ms')} {q}".replace(
                    "tokens_per_s", "tokens/s"
                )
                yield Row(
                    text.clean(name.strip(), 80), text.number(x), text.number(y), f"× {text.number(y / x)}", "", ""
                )


def _figure(group: Doc, key: str, q: str) -> float | None:
    value = _map(group.get(key)).get(q) if q else group.get(key)
    return float(value) if isinstance(value, int | float) else None
