"""A Board as Prometheus text (format 0.0.4). Units are Prometheus's: seconds, ratios, totals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from loadtest.swarm.board import ACK_BUCKETS, VIOLATIONS, Board

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATES = ("preparing", "running", "judging", "ended")
STATUSES = ("PASS", "FAIL", "UNKNOWN")

Labels = Mapping[str, str]
Row = tuple[str, Labels, float]  # suffix of the name, labels, value


def render(board: Board | None, version: str) -> str:
    """All series; before the first run only `loadtest_info`."""
    out = _family("info", "gauge", "Version of the tester.", [("", {"version": version}, 1)])
    if board is None:
        return out
    return out + "".join((_run(board), _streams(board), _swaps(board), _latency(board), _health(board)))


def _run(board: Board) -> str:
    states: list[Row] = [("", {"state": s, "run": board.run}, board.state == s) for s in STATES]
    status = (board.verdict or {}).get("status", "")
    verdicts: list[Row] = [("", {"status": s, "run": board.run}, status == s) for s in STATUSES] if status else []
    phase = int(board.phase.get("index", -1)) + 1
    return (
        _family("run_state", "gauge", "1 for the state the newest run is in.", states)
        + _family("run_phase", "gauge", "Number of the current phase, from 1; 0 before the first.", [("", {}, phase)])
        + _family("verdict", "gauge", "1 for the verdict of the newest run, once there is one.", verdicts)
    )


def _streams(board: Board) -> str:
    counts = board.counts()
    reasons: list[Row] = [("", {"reason": k}, n) for k, n in sorted(counts.items()) if k not in (*VIOLATIONS, "judged")]
    broken: list[Row] = [("", {"kind": k}, counts[k]) for k in VIOLATIONS]
    tokens = board.total("live_tokens")
    return "".join(
        (
            _one("streams_sent_total", "counter", "Streams sent.", board.total("sent")),
            _one("streams_open", "gauge", "Streams that have not ended.", board.total("open")),
            _family("streams_ended_total", "counter", "Ended streams by outcome (ok) or reason.", reasons),
            _one("streams_judged_total", "counter", "Ended streams whose tokens name a version.", counts["judged"]),
            _family("violations_total", "counter", "Streams that broke a guarantee, as known so far.", broken),
            _one("tokens_total", "counter", "Tokens received; of open streams an estimate.", tokens),
            _one("tokens_per_second", "gauge", "Tokens received in the last second.", board.rate()),
        )
    )


def _swaps(board: Board) -> str:
    rows: list[Row] = [("", {"arm": arm, "outcome": o}, n) for (arm, o), n in sorted(board.swap_counts.items())]
    buckets: list[Row] = []
    below = 0
    for edge, n in zip((*map(str, ACK_BUCKETS), "+Inf"), board.acks, strict=True):
        below += n
        buckets.append(("_bucket", {"le": edge}, below))
    acks: list[Row] = [*buckets, ("_sum", {}, board.ack_sum_s), ("_count", {}, below)]
    return _family("swaps_total", "counter", "Ended swaps by arm and outcome.", rows) + _family(
        "swap_ack_seconds", "histogram", "From a swap's invocation to its answer.", acks
    )


def _latency(board: Board) -> str:
    last = board.points[-1] if board.points else None
    itl = [("0.5", last.itl_p50), ("0.99", last.itl_p99)] if last else []
    ttft = [("0.5", last.ttft_p50)] if last else []
    gap = "Gap between two reads of a stream, of a sample of the last second."
    first = "Time to first token of the streams that ended in the last second."
    return _family("itl_seconds", "gauge", gap, _levels(itl)) + _family("ttft_seconds", "gauge", first, _levels(ttft))


def _levels(found: Iterable[tuple[str, float | None]]) -> list[Row]:
    return [("", {"quantile": q}, ms / 1e3) for q, ms in found if ms is not None]


def _health(board: Board) -> str:
    engines = sorted(board.engines().items())
    lag: list[Row] = [("", {"engine": e}, float(m.get("lag_ms") or 0) / 1e3) for e, m in engines]
    cpu: list[Row] = [("", {"engine": e}, float(m.get("cpu") or 0)) for e, m in engines]
    return (
        _family("loop_lag_seconds", "gauge", "Lateness of an engine's loop in the last second, p99.", lag)
        + _family("engine_cpu_ratio", "gauge", "Cores that an engine used in the last second.", cpu)
        + _one("records_dropped_total", "counter", "History records not written.", board.total("dropped"))
    )


def _one(name: str, kind: str, words: str, value: float) -> str:
    return _family(name, kind, words, [("", {}, value)])


def _family(name: str, kind: str, words: str, rows: Iterable[Row]) -> str:
    found = list(rows)
    if not found:
        return ""
    head = [f"# HELP loadtest_{name} {words}", f"# TYPE loadtest_{name} {kind}"]
    return "\n".join([*head, *(_line(name, *row) for row in found)]) + "\n"


def _line(name: str, suffix: str, labels: Labels, value: float) -> str:
    inside = ",".join(f'{k}="{_escape(v)}"' for k, v in labels.items())
    return f"loadtest_{name}{suffix}{f'{{{inside}}}' if inside else ''} {float(value):.10g}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
