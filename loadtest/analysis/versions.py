"""The guarantees about which version a stream got: fresh, untorn, ordered, monotonic (rules 4 to 7 of guarantees.py).

Everything works on runs of equal content instead of tokens: inside a run the candidates can only grow, so its first
token is the one with the fewest, and a violation shows there or nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from loadtest.analysis import timeline
from loadtest.analysis.attribution import Runs
from loadtest.analysis.case import (
    Case,
    Finding,
    Witness,
    by_stream,
    first_streams,
    ids_around,
    overlapping,
    position,
    swap_of,
    told,
    versions_of,
    who,
)
from loadtest.analysis.timeline import ANOTHER, NEVER
from loadtest.history import I64, OK, Bool


def _informative(case: Case, runs: Runs) -> Bool:
    """[S] streams with at least one run."""
    out = np.zeros(len(case.history.streams), bool)
    out[runs.stream] = True
    return out


def _met_own_swap(case: Case) -> Bool:
    """[S] streams whose life overlaps a swap of their own adapter."""
    out = np.zeros(len(case.history.streams), bool)
    for adapter in np.unique(case.swaps.adapter):
        out |= (case.owner == adapter) & overlapping(case, int(adapter))
    return out


def _sent_after_swap(case: Case) -> Bool:
    """[S] streams sent after a swap of their own adapter was acked ok: they can be stale."""
    out = np.zeros(len(case.history.streams), bool)
    for adapter in np.unique(case.swaps.adapter):
        done = case.swaps.end[(case.swaps.adapter == adapter) & (case.swaps.outcome == OK)]
        if len(done):
            out |= (case.owner == adapter) & (case.history.streams.sent > int(done.min()) + case.epsilon)
    return out


def floors(case: Case, runs: Runs) -> tuple[I64, I64]:
    """(start, load) of the newest ok load that each run's stream had to see; (-NEVER, -1) for none: [R]."""
    return timeline.floors(case.look.line, case.owner[runs.stream], case.history.streams.sent[runs.stream])


def fresh(case: Case) -> Finding:
    """Rule 4."""
    runs = case.dated
    start, load = floors(case, runs)
    end = case.look.latest(runs.content, runs.begin)
    stale = (end > -NEVER) & (end + case.epsilon < start)
    flagged = np.zeros(len(case.history.streams), bool)
    flagged[runs.stream[stale]] = True
    bad, newest, until = runs.pick(stale), load[stale], end[stale]

    def witnesses() -> Iterator[Witness]:
        for s in first_streams(case, flagged):
            i = int(np.flatnonzero(bad.stream == s)[0])
            yield _stale(case, bad, i, int(newest[i]), int(until[i]))

    exposed = _informative(case, runs) & _sent_after_swap(case)
    return by_stream(case, "fresh", flagged, exposed, {"stale": flagged}, witnesses())


def behind(case: Case, adapter: int, sent: int, until: int) -> tuple[int, float]:
    """(versions, ms) by which a content whose candidates all ended by `until` is behind for a stream sent at `sent`."""
    line = case.look.line
    newer = (line.adapter == adapter) & (line.outcome == OK)
    newer &= (line.start > until + case.epsilon) & (line.end < sent - case.epsilon)
    since = int(line.end[newer].min()) if newer.any() else sent
    return int(newer.sum()), (sent - since) / 1e6


def _stale(case: Case, runs: Runs, i: int, newest: int, until: int) -> Witness:
    t, s = case.history.streams, int(runs.stream[i])
    adapter, sent = t.adapters[t.adapter[s]], int(t.sent[s])
    first, at = position(case, int(runs.first[i]), s), int(runs.begin[i])
    op = case.look.line.ops[newest]
    versions = versions_of(case, (runs.content[i], case.look.line.content[newest]))
    count, ms = behind(case, int(case.owner[s]), sent, until)
    text = (
        f"{who(case, s)}: token {first} is {versions[0]}, superseded by {versions[1]} before the "
        f"stream was sent ({told(case, op, sent)}): stale by {count} version{'s' * (count != 1)} and {ms:.1f} ms"
    )
    around = ids_around(case, s, first, first)
    return Witness(
        "fresh", "stale", text, t.name[s], adapter, op.name if op else "", versions, (first,), around, at, case.ms(at)
    )


def _changes(runs: Runs) -> I64:
    """Rows that begin with another content than the row before, in the same stream."""
    return np.flatnonzero((runs.stream[1:] == runs.stream[:-1]) & (runs.content[1:] != runs.content[:-1])) + 1


def untorn(case: Case) -> Finding:
    """Rule 5."""
    runs = case.own
    torn = _changes(runs)
    flagged = np.zeros(len(case.history.streams), bool)
    flagged[runs.stream[torn]] = True
    rows: dict[int, int] = {}
    for s in first_streams(case, flagged):
        rows[int(s)] = int(torn[np.searchsorted(runs.stream[torn], s)])
    exposed = _informative(case, runs) & _met_own_swap(case)
    return by_stream(case, "untorn", flagged, exposed, {"torn": flagged}, (_torn(case, runs, i) for i in rows.values()))


def _torn(case: Case, runs: Runs, i: int) -> Witness:
    t, s, at = case.history.streams, int(runs.stream[i]), int(runs.begin[i])
    adapter = t.adapters[t.adapter[s]]
    old, new = position(case, int(runs.last[i - 1]), s), position(case, int(runs.first[i]), s)
    versions = versions_of(case, runs.content[i - 1 : i + 1])
    op = swap_of(case, int(runs.content[i]), at)
    text = (
        f"{who(case, s)}: token {old} is {versions[0]}, token {new} is {versions[1]} "
        f"({'which one, nobody can say' if versions[1] == ANOTHER else told(case, op, at)}): torn at {old}..{new}"
    )
    around = ids_around(case, s, old, new)
    name = op.name if op else ""
    return Witness("untorn", "torn", text, t.name[s], adapter, name, versions, (old, new), around, at, case.ms(at))


def ordered(case: Case) -> Finding:
    """Rule 6: greedy, always the earliest load that is not before one already chosen, is optimal."""
    runs = case.dated
    torn = np.unique(runs.stream[_changes(runs)])
    begin, end = np.searchsorted(runs.stream, torn, side="left"), np.searchsorted(runs.stream, torn, side="right")
    flips: dict[int, tuple[int, int]] = {}
    choices = _choices(case)
    contents, arrivals = runs.content.tolist(), runs.begin.tolist()
    for s, a, b in zip(torn.tolist(), begin.tolist(), end.tolist(), strict=True):
        found = _flip(choices, contents[a:b], arrivals[a:b], case.epsilon)
        if found is not None:
            flips[s] = (a + found[0], a + found[1])
    flagged = np.zeros(len(case.history.streams), bool)
    flagged[list(flips)] = True
    exposed = _informative(case, runs) & _met_own_swap(case)
    witnesses = (_flipped(case, runs, *flips[int(s)]) for s in first_streams(case, flagged))
    return by_stream(case, "ordered", flagged, exposed, {"flip": flagged}, witnesses)


Choices = list[list[tuple[int, int]]]


def _choices(case: Case) -> Choices:
    """(start, end) of the loads of every content that may have applied, by start: one list per content code."""
    out: Choices = [[] for _ in case.look.line.contents.labels]
    for row in case.look.rows.tolist():
        line = case.look.line
        out[int(line.content[row])].append((int(line.start[row]), int(line.end[row])))
    return out


def _flip(choices: Choices, contents: list[int], arrivals: list[int], epsilon: int) -> tuple[int, int] | None:
    """(index of a run, index of a later run that must be older), None when an order exists."""
    newest, holder = -NEVER, 0  # no load starts earlier, and none ends by then
    for j, (content, at) in enumerate(zip(contents, arrivals, strict=True)):
        begun = [load for load in choices[content] if load[0] <= at + epsilon]
        if not begun or any(end == NEVER for _, end in begun):
            continue
        start = min((s for s, end in begun if end + epsilon >= newest), default=None)
        if start is None:
            return holder, j
        if start > newest:
            newest, holder = start, j
    return None


def _flipped(case: Case, runs: Runs, i: int, j: int) -> Witness:
    t, s, at = case.history.streams, int(runs.stream[j]), int(runs.begin[j])
    adapter = t.adapters[t.adapter[s]]
    new, old = position(case, int(runs.first[i]), s), position(case, int(runs.first[j]), s)
    versions = versions_of(case, (runs.content[i], runs.content[j]))
    op = swap_of(case, int(runs.content[i]), int(runs.begin[i]))
    text = (
        f"{who(case, s)}: token {new} is {versions[0]}, the later token {old} is the older "
        f"{versions[1]} ({versions[0]}: {told(case, op, at)}): flip at {new}..{old}"
    )
    around = ids_around(case, s, old, old)
    name = op.name if op else ""
    return Witness("ordered", "flip", text, t.name[s], adapter, name, versions, (new, old), around, at, case.ms(at))
