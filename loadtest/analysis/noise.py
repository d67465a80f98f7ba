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
3. One stray alone in T tokens without a plain one: drift at its likeliest rate, 1 / T, shows just one odd token in 37
   of 100 such runs. In a run of more than LONE tokens it is never believed; in a smaller one it is when its content
   was in service as its stream lived, for that is what a leak, a tear or a flip shows: drift hits one of those with
   probability under 0.37 * (how many are in service) / vocabulary, and all others as easily. Strays of contents in
   service do not make a stray of another one any likelier (an engine that switches at a swap makes them near the
   ends of streams), so the only one of those is not believed beside them. In a run of up to FEW tokens even DRIFT would
   rather show none, and two strays or more are under 0.27 * share^2: believed.
4. Strays that are neither believed nor explained by chance keep the run from PASS (gate `noise`). So does one of
   another adapter where no plain token was seen: chance would explain it where the vocabulary seen is small, but no
   server may say it. One of the stream's own adapter is also what a server that may tear does near a stream's end.
   And so does the only stray that is not in service, where those that are are believed, and in a run of up to LONE
   tokens.

The vocabulary is not on record; the largest id that was seen is a lower bound, which makes the share an upper one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from loadtest.analysis.stats import binomial_tail
from loadtest.history import I32, I64, Bool, History

DRIFT = 2e-2  # guessed from above: forged markers missed 0 of 40,543 tokens on bf16, weak ones 5e-4 to 4e-2
SUPPORT = 3  # in a row of one content: drift makes a given three of them with probability under (DRIFT * share)^3
ALPHA = 1e-3  # with two strays and the worst rate of drift, 0.27 * share^2 is what is really risked
FEW = 50  # tokens: 1 / DRIFT
LONE = 1000  # tokens
COIN = 0.5


@dataclass(frozen=True, slots=True)
class Noise:
    """What the run's odd tokens amount to."""

    tokens: int  # of marker adapters' streams, fallbacks left out
    plain: int  # those that nothing marks
    strays: int
    share: float  # of the vocabulary that is a marker
    believed: Literal["all", "served", "leaks", "none"]  # which strays are evidence
    leaks: int = 0  # strays of another adapter

    @property
    def chance(self) -> float:
        """Probability of as many strays among the odd tokens, if drift hits every token alike."""
        return binomial_tail(self.strays, self.plain + self.strays, self.share)

    @property
    def unexplained(self) -> bool:
        """Too few strays to accuse anybody, too many for chance."""
        lone = self.leaks > 0 and not self.plain
        doubted = self.believed == "none" and (lone or self.chance < ALPHA)
        return doubted or self.believed == "served"


def main(stream: I64, count: I64) -> Bool:
    """Of each stream the longest run, the first among equals: [R]; rows in stream order."""
    out = np.zeros(len(stream), bool)
    if len(stream):
        order = np.lexsort((np.arange(len(stream)), -count, stream))
        out[order[np.concatenate([[True], stream[order][1:] != stream[order][:-1]])]] = True
    return out


def stray(stream: I64, content: I32, count: I64) -> Bool:
    """Runs of fewer than SUPPORT tokens that show another content than their stream's main run: [R]."""
    first = main(stream, count)
    shown: I32 = content[first][np.cumsum(np.append(False, stream[1:] != stream[:-1]))] if len(stream) else content
    out: Bool = (count < SUPPORT) & (content != shown)
    return out


def weigh(history: History, tokens: int, plain: int, strays: tuple[int, int], served: int) -> Noise:
    """Rules 1 to 3; `strays`: of the stream's own adapter, of another one; `served`: of a content in service then."""
    markers = {t for v in history.versions for t in v.markers}
    ids = (history.ids, history.prompts, np.array(sorted(markers), np.int32))
    seen = max((int(i.max()) for i in ids if len(i)), default=0) + 1
    share = min(len(markers) / seen, COIN)
    count, leaks = sum(strays), strays[1]
    believed: Literal["all", "served", "leaks", "none"] = "none"
    alone = tokens > FEW and count - served == 1
    if plain == 0 and not alone and _enough(tokens, count, share):
        believed = "all"
    elif plain == 0 and alone and _enough(tokens, served, share):
        believed = "served"
    elif binomial_tail(leaks, plain + leaks, COIN) < ALPHA:
        believed = "leaks"
    return Noise(tokens, plain, count, share, believed, leaks)


def _enough(tokens: int, strays: int, share: float) -> bool:
    """Whether drift explains as many strays without a plain token no more."""
    return tokens <= LONE or (strays > 1 and binomial_tail(strays, strays, share) < ALPHA)
