"""monotonic (rule 7 of guarantees.py): what one stream has shown, no later stream may undo.

How it works: give each (stream, content) the earliest load it can be, compute from those what every later stream
must not fall behind (a running maximum over arrivals), push each pair that falls behind to its next load, repeat.
Starts only grow, so this ends at the least choice of loads that satisfies everybody; pairs without a load left violate.
With one load per content it ends in the first round.

In a fleet this is asked of each replica by itself: its servers take a swap one after another, and until the last has
acked, what one shows binds no other. From then on `fresh` binds them all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from loadtest.analysis.attribution import Runs
from loadtest.analysis.case import (
    Case,
    Finding,
    Witness,
    by_stream,
    first_streams,
    ids_around,
    position,
    swap_of,
    told,
    versions_of,
    who,
)
from loadtest.analysis.timeline import NEVER
from loadtest.history import I64, Bool

_NONE = -2 * NEVER  # the start of no load: smaller than any


def monotonic(case: Case) -> Finding:
    """Rule 7."""
    runs = case.dated
    size = len(case.history.streams)
    flagged, exposed = np.zeros(size, bool), np.zeros(size, bool)
    bad: dict[int, tuple[int, int]] = {}  # stream -> (its run, the run that showed something newer)
    owner, replica = case.owner[runs.stream], case.history.streams.replica[runs.stream]
    for adapter, server in itertools.product(np.unique(case.swaps.adapter), np.unique(replica)):
        rows = np.flatnonzero((owner == adapter) & (replica == server))
        mine = runs.pick(rows.astype(np.int64))
        late, shower, bounded = _least_choice(case, mine)
        exposed[mine.stream[bounded]] = True
        flagged[mine.stream[late]] = True
        for i in np.flatnonzero(late)[::-1].tolist():
            bad[int(mine.stream[i])] = (int(rows[i]), int(rows[shower[i]]))

    def witnesses() -> Iterator[Witness]:
        for s in first_streams(case, flagged):
            yield _inverted(case, runs, *bad[int(s)])

    return by_stream(case, "monotonic", flagged, exposed, {"inversion": flagged}, witnesses())


def _least_choice(case: Case, runs: Runs) -> tuple[Bool, I64, Bool]:
    """([R] the run violates, [R] run that bounds it or -1, [R] its stream was sent after some token was seen).

    A violating run's loads all ended before its bound began, so dropping it lowers no bound of a later stream.
    """
    look, epsilon = case.look, case.epsilon
    start, end = look.line.start[look.rows], look.line.end[look.rows]
    content = look.line.content[look.rows]
    row = np.searchsorted(content, runs.content, side="left")  # each run's load: first the earliest of its content
    newest = look.newest(runs.content, runs.begin)
    free = (newest < 0) | (look.first_info[runs.content] <= runs.begin + epsilon)
    row[free] = 0
    by_arrival = np.argsort(runs.begin, kind="stable")
    seen = np.searchsorted(runs.begin[by_arrival], case.history.streams.sent[runs.stream] - epsilon, side="left") - 1
    late = np.zeros(len(runs), bool)
    while True:
        starts = np.where(free | late, _NONE, start[row])[by_arrival]
        best = np.maximum.accumulate(starts)
        bound = np.append(best, _NONE)[seen]
        behind = ~free & ~late & (end[row] + epsilon < bound)
        if not behind.any():
            break
        late |= behind & (row >= newest)
        row += behind & ~late
    holder = np.maximum.accumulate(np.where(starts == best, np.arange(len(starts)), 0))
    shower = np.append(by_arrival[holder], -1)[seen]
    return late, shower, (seen >= 0) & (bound > _NONE) & ~free


def _inverted(case: Case, runs: Runs, i: int, j: int) -> Witness:
    """Run i is older than run j, which was read before the stream of i was sent."""
    t, s, at = case.history.streams, int(runs.stream[i]), int(runs.begin[i])
    adapter, other = t.adapters[t.adapter[s]], int(runs.stream[j])
    first = position(case, int(runs.first[i]), s)
    versions = versions_of(case, (runs.content[j], runs.content[i]))
    op, ago = swap_of(case, int(runs.content[j]), int(runs.begin[j])), int(t.sent[s]) - int(runs.begin[j])
    text = (
        f"{who(case, s)}: token {first} is {versions[1]}, but {ago / 1e6:.1f} ms before it was sent "
        f"stream {t.name[other]} had already shown {versions[0]} ({told(case, op, int(t.sent[s]))})"
    )
    around = ids_around(case, s, first, first)
    name = op.name if op else ""
    return Witness(
        "monotonic", "inversion", text, t.name[s], adapter, name, versions, (first,), around, at, case.ms(at)
    )
