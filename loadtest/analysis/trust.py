"""Can scores tell versions apart in this run? Decided from the run's own early traffic.

A stream is *early* when it ended before a second content was asked for under its adapter's name: one content alone can
have made it, so whatever its scores say against that content is noise of the engine (rounding, batching).

1. Reference: every early stream equals, token for token, what its content generates for the same prompt when asked
   again (at least PROOF streams). Then the engine is deterministic, and a stream that differs from a reference was not
   made by that version alone.
2. Margins: the largest margin of early tokens is the noise. Margins above LIMIT are no rounding; a share of them up to
   OUTLIERS is left to be accused. Beyond that, or with fewer than ENOUGH early tokens, margins decide nothing.
3. A stream that its own content does not explain, but another adapter's version or the base does, from the first token
   to the last, shows no noise: it is left out here, and accused there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loadtest.history import History
from loadtest.scores import BASE, Source

PROOF = 20  # streams; at 64 tokens each, over a thousand chances to differ
ENOUGH = 200
LIMIT = 1.0  # nats; bf16 rounding of logits around 20 is a tenth of that
OUTLIERS = 0.02
WHOLE = 8  # tokens; fewer might fit anybody
FLOOR = 0.05
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Trust:
    """What the early traffic proves. Margins are nats; NaN where margins decide nothing."""

    method: str  # "reference" | "margins" | "" when neither can decide
    because: str
    tolerance: float  # a version explains a token up to this margin
    cut: float  # and is excluded by one above this; in between it has no say
    alien: float  # no version of this run comes within this: somebody else's token

    @property
    def margins(self) -> bool:
        """Whether margins decide."""
        return not np.isnan(self.cut)


def first_contents(history: History) -> dict[str, tuple[str, int]]:
    """Adapter → (its first content, when another content was first asked for, 2^62 for never)."""
    out = {BASE[0]: (BASE[1], 2**62)}
    for op in history.ops:
        if op.mode == "unload" or op.outcome == "fail":
            continue
        label, until = out.setdefault(op.adapter, (op.version, 2**62))
        if op.version != label:
            out[op.adapter] = (label, min(until, op.invoked))
    return out


def early(history: History, rows: Iterable[int]) -> dict[int, Source]:
    """Of some rows of the stream table, those of early streams → the one content that can have made each."""
    table, first = history.streams, first_contents(history)
    out: dict[int, Source] = {}
    for row in rows:
        name = table.adapters[int(table.adapter[row])]
        label, until = first.get(name, ("", 0))
        if 0 < table.ended[row] < until:
            out[row] = (name, label)
    return out


def trust(history: History) -> Trust:
    """Rules 1 to 3."""
    scores = history.scores
    known = early(history, sorted({*scores.margins, *scores.references}))
    known = {row: source for row, source in known.items() if not _elsewhere(history, row, source)}
    same = [
        np.array_equal(scores.references[row][source], stream_ids(history, row))
        for row, source in known.items()
        if source in scores.references.get(row, {})
    ]
    rows = [scores.margins[row][source] for row, source in known.items() if source in scores.margins.get(row, {})]
    margins = np.concatenate(rows) if rows else np.empty(0, np.float32)
    tolerance, words = _tolerance(margins[~np.isnan(margins)])
    cut, alien = max(0.5, 4 * tolerance), max(3.0, 10 * tolerance)
    if np.isnan(tolerance):
        cut = alien = np.nan
    if len(same) >= PROOF and all(same):
        words = f"{len(same)} streams before the first swap repeat their references exactly"
        return Trust("reference", words, tolerance, cut, alien)
    return Trust("" if np.isnan(tolerance) else "margins", words, tolerance, cut, alien)


def _elsewhere(history: History, row: int, own: Source) -> bool:
    """Rule 3."""
    margins = history.scores.margins.get(row, {})
    if own not in margins or len(margins[own]) < WHOLE or not (margins[own] > LIMIT).any():
        return False
    return any(bool((m <= LIMIT).all()) for source, m in margins.items() if source[0] != own[0])


def _tolerance(margins: F32) -> tuple[float, str]:
    """(tolerance or NaN, why)."""
    if len(margins) < ENOUGH:
        return np.nan, f"{len(margins)} tokens before the first swap show the engine's noise, {ENOUGH} are needed"
    far = margins > LIMIT
    share = float(far.mean())
    if share > OUTLIERS:
        words = (
            f"{100 * share:.1f} % of the tokens before the first swap are over {LIMIT:g} nats off what their version"
        )
        return np.nan, f"{words} says when asked again"
    most = float(margins[~far].max(initial=0.0))
    return max(FLOOR, 1.5 * most), f"{len(margins)} tokens before the first swap are within {most:.3f} nats"


def stream_ids(history: History, row: int) -> npt.NDArray[np.int32]:
    """The token ids of one stream."""
    start = int(history.streams.start[row])
    return history.ids[start : start + int(history.streams.tokens[row])]
