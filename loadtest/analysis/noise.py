"""When an odd token is noise, and when it is evidence.

Batching and rounding make an engine emit, now and then, another token than the served version's marker: *drift*, up
to a rate of DRIFT. Most such tokens are plain, since the vocabulary is large and markers are few; some hit a marker by
accident. A *stray* is a token of a run shorter than SUPPORT in a stream that shows another content more often: such an
accident, or what a leak, a flip or a tear near an end looks like.

1. Drift hits every token of the vocabulary alike, so of all odd tokens (plain + strays) a share of markers / vocabulary
   are strays. Strays are believed when a binomial with that share explains their number with probability under ALPHA.
   That is independent of the rate of drift, which nobody knows.
2. Once a plain token was seen, drift is at work and may prefer whatever it likes: then strays of the stream's own
   adapter are never believed (a tear within SUPPORT - 1 tokens of an end stays unknown), and those of another adapter
   only in a number that a fair coin does not explain.
3. One stray alone, in a run of more than LONE tokens, is never believed. In a run of up to LONE tokens without a plain
   one every stray is: drift of 1e-4 would have shown one in ten such runs, and hit a marker in one of thousands.
4. Strays that are neither believed nor explained by chance keep the run from PASS (gate `noise`). So does one of
   another adapter where no plain token was seen: chance would explain it where the vocabulary seen is small, but no
   server may say it. One of the stream's own adapter is also what a server that may tear does near a stream's end.

The vocabulary is not on record; the largest id that was seen is a lower bound, which makes the share an upper one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from loadtest.analysis.stats import binomial_tail
from loadtest.history import I64, Bool, History

DRIFT = 2e-2  # guessed from above: forged markers missed 0 of 40,543 tokens on bf16, weak ones 5e-4 to 4e-2
SUPPORT = 3  # in a row of one content: drift makes a given three of them with probability under (DRIFT * share)^3
ALPHA = 1e-3  # with two strays and the worst rate of drift, 0.27 * share^2 is what is really risked
LONE = 1000  # tokens
COIN = 0.5


@dataclass(frozen=True, slots=True)
class Noise:
    """What the run's odd tokens amount to."""

    tokens: int  # of marker adapters' streams, fallbacks left out
    plain: int  # those that nothing marks
    strays: int
    share: float  # of the vocabulary that is a marker
    believed: Literal["all", "leaks", "none"]  # which strays are evidence
    leaks: int = 0  # strays of another adapter

    @property
    def chance(self) -> float:
        """Probability of as many strays among the odd tokens, if drift hits every token alike."""
        return binomial_tail(self.strays, self.plain + self.strays, self.share)

    @property
    def unexplained(self) -> bool:
        """Too few strays to accuse anybody, too many for chance."""
        lone = self.leaks > 0 and not self.plain
        return self.believed == "none" and self.strays > 0 and (lone or self.chance < ALPHA)


def stray(stream: I64, count: I64) -> Bool:
    """Runs of fewer than SUPPORT tokens beside a longer or an earlier one as long: [R]; rows in stream order."""
    if not len(stream):
        return np.zeros(0, bool)
    order = np.lexsort((np.arange(len(stream)), -count, stream))
    main = np.zeros(len(stream), bool)
    main[order[np.concatenate([[True], stream[order][1:] != stream[order][:-1]])]] = True
    out: Bool = (count < SUPPORT) & ~main
    return out


def weigh(history: History, tokens: int, plain: int, strays: tuple[int, int]) -> Noise:
    """Rules 1 to 3; `strays`: of the stream's own adapter, of another one."""
    markers = {t for v in history.versions for t in v.markers}
    ids = (history.ids, history.prompts, np.array(sorted(markers), np.int32))
    seen = max((int(i.max()) for i in ids if len(i)), default=0) + 1
    share = min(len(markers) / seen, COIN)
    count, leaks = sum(strays), strays[1]
    believed: Literal["all", "leaks", "none"] = "none"
    if plain == 0 and (tokens <= LONE or (count > 1 and binomial_tail(count, count, share) < ALPHA)):
        believed = "all"
    elif leaks > 1 and binomial_tail(leaks, plain + leaks, COIN) < ALPHA:
        believed = "leaks"
    return Noise(tokens, plain, count, share, believed, leaks)
