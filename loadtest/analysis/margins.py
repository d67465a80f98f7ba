"""Which version made the streams of adapters without markers: read off their scores, never from timing or majority.

Rules
1. A score holds, for each token of a stream, the margin of one version: how far below its own choice the token is,
   prompt and earlier tokens being what they were. A version fits a token within the noise, is excluded by one beyond
   it (trust.py). Of a reference the first token that differs excludes its version; after it the reference is silent.
2. The leading part of a stream goes up to the first token that excludes the version which lasts longest. Within it one
   version explains everything, and its tokens are that version's from where all other versions of the adapter are
   excluded. If several last equally long, or fewer than SUPPORT tokens before a tear are left, none is named.
3. After the leading part the server's cache holds keys of one version under tokens of another. No score reproduces
   that, so a token that a version alone fits may still be a coincidence. A version is named there only for RUN or more
   tokens that it alone fits before one that excludes it; the rest is `another`: torn, and nobody can say by what.
4. A tear needs a second content. What differs while the adapter has had one content only is explained by the base
   (fallback) or another adapter (leak) if their scores fit, else it is `unexplained` (alien) when at least SUPPORT
   tokens are far beyond the noise for everybody who was asked.
5. One forward pass makes the first token of a stream. If that token is far beyond the noise for everybody, and SUPPORT
   tokens are, it is `unexplained` whatever was loaded: the prompt was not computed by any one version, as when blocks
   of a prefix cache are shared between versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loadtest.analysis.timeline import ANOTHER, BASE, UNEXPLAINED, Contents
from loadtest.analysis.trust import Trust, first_contents, stream_ids, trust
from loadtest.history import I32, Bool, History
from loadtest.scores import BASE as BASE_SOURCE
from loadtest.scores import Source

PLAIN, UNKNOWN = -1, -2
RUN = 8  # guessed from above: a coincidence of one token in three would be 2e-4 a place
SUPPORT = 3
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Told:
    """What scores say."""

    code: I32  # [T], or [0] where nothing was scored: content code, PLAIN (the base's) or UNKNOWN, where `which`
    which: Bool  # [T] tokens of streams whose adapter was to be scored
    streams: Bool  # [S] those streams
    base: Bool  # [S] streams of the base of which every token is explained, or some by an adapter
    method: dict[str, str]  # adapter → "reference" | "margins" | "none" when neither can decide


def told(history: History, contents: Contents) -> Told:
    """Attribute every scored stream."""
    table, proof, first = history.streams, trust(history), first_contents(history)
    asked = bool(history.scores.adapters)  # else columns of tokens are empty: a million streams have no memory to spare
    code = np.full(len(history.ids) if asked else 0, UNKNOWN, np.int32)
    mine = np.isin(np.array(table.adapters, dtype=object)[table.adapter], [a for a in history.scores.adapters])
    which = np.repeat(mine, table.tokens) if asked else np.empty(0, bool)
    base = np.zeros(len(table), bool)
    keys = {key: i for i, key in enumerate(contents.labels)}
    for row in sorted({*history.scores.margins, *history.scores.references}) if proof.method else ():
        name = table.adapters[int(table.adapter[row])]
        rows = _rows(history, row, proof)
        if not any(source[0] == name for source in rows):
            continue
        view = _View.of(name, rows, keys, proof)
        at = slice(int(table.start[row]), int(table.start[row] + table.tokens[row]))
        several = int(np.searchsorted(history.at[at], first.get(name, ("", 0))[1]))
        code[at] = _stream(view, several)
        base[row] = name == BASE and (view.reach()[view.own].max() == len(code[at]) or (code[at] >= 0).any())
    return Told(code, which, mine, base, dict.fromkeys(history.scores.adapters, proof.method or "none"))


def _rows(history: History, row: int, proof: Trust) -> dict[Source, F32]:
    """Margins of everybody who was asked about a stream; references as margins 0, then infinity, then NaN."""
    out: dict[Source, F32] = {}
    ids = stream_ids(history, row)
    if proof.method == "reference":
        for source, reference in history.scores.references.get(row, {}).items():
            out[source] = _of_reference(ids, reference)
    if proof.margins:
        out |= {s: m for s, m in history.scores.margins.get(row, {}).items() if len(m) == len(ids)}
    return out


def _of_reference(ids: I32, reference: I32) -> F32:
    size = min(len(ids), len(reference))
    differs = np.flatnonzero(ids[:size] != reference[:size])
    out = np.zeros(len(ids), np.float32)
    if len(differs):
        out[differs[0]] = np.inf
        out[differs[0] + 1 :] = np.nan
    out[size:] = np.nan
    return out


@dataclass(frozen=True, slots=True)
class _View:
    """One stream against V versions."""

    own: Bool  # [V] versions of the stream's own adapter
    codes: I32  # [V] what a token of the version is called
    fits: Bool  # [V, n]
    out: Bool  # [V, n]
    far: Bool  # [n] beyond all noise for everybody
    another: int  # code of "not the version before", UNKNOWN in streams of the base
    unexplained: int

    @classmethod
    def of(cls, name: str, rows: Mapping[Source, F32], keys: Mapping[Source, int], proof: Trust) -> _View:
        """`rows`: at least one; `keys`: content codes."""
        sources = sorted(rows)
        margins = np.stack([rows[s] for s in sources])
        # Without margins only references speak: their values are 0, infinity and NaN, whatever the thresholds.
        tolerance, cut, alien = (proof.tolerance, proof.cut, proof.alien) if proof.margins else np.zeros(3)
        plain = UNKNOWN if name == BASE else PLAIN
        codes = [plain if s == BASE_SOURCE else keys.get(s, UNKNOWN) for s in sources]
        with np.errstate(invalid="ignore"):
            far = np.all(margins > alien, axis=0)
            return cls(
                np.array([s[0] == name for s in sources], bool),
                np.array(codes, np.int32),
                margins <= tolerance,
                margins > cut,
                far,
                keys.get((name, ANOTHER), UNKNOWN),
                keys.get((name, UNEXPLAINED), UNKNOWN),
            )

    def reach(self, begin: int = 0) -> npt.NDArray[np.int64]:
        """[V] first token from `begin` on that excludes each version, n for none."""
        out = self.out[:, begin:]
        n = out.shape[1]
        first = np.where(out.any(axis=1), out.argmax(axis=1), n) if n else np.zeros(len(out), np.int64)
        return (begin + first).astype(np.int64)


def _stream(view: _View, several: int) -> I32:
    """Rules 2 to 4 for one stream; from token `several` on its adapter may have more than one content: [n]."""
    n = view.out.shape[1]
    code = np.full(n, UNKNOWN, np.int32)
    reach = view.reach()
    k = int(reach[view.own].max(initial=0))
    leaders = np.flatnonzero(view.own & (reach == k))
    if k and len(leaders) == 1:
        rest = view.own.copy()
        rest[leaders] = False
        begin = int(reach[rest].max(initial=0))
        if k == n or k - begin >= SUPPORT:
            code[begin:k] = view.codes[leaders[0]]
    if k == n:
        return code
    whole = np.flatnonzero(~view.own & (reach == n))
    if len(whole) == 1:
        code[:] = view.codes[whole[0]]
        return code
    if k == 0 and view.far[0] and int(view.far.sum()) >= SUPPORT:
        code[view.far] = view.unexplained
        return code
    _tail(view, code, k)
    open_ = np.flatnonzero(code[k:] == UNKNOWN) + k
    if several <= k:
        named = (np.flatnonzero(code[k:] != UNKNOWN) + k).astype(np.int64)
        # Tokens between two of one run said nothing against it; the others are `another`.
        code[[i for i in open_.tolist() if not _inside(view, code, named, i)]] = view.another
    elif int(view.far[open_].sum()) >= SUPPORT:
        code[open_[view.far[open_]]] = view.unexplained
    return code


def _inside(view: _View, code: I32, named: npt.NDArray[np.int64], i: int) -> bool:
    """Whether token i lies in a run named by rule 3: the nearest named tokens on both sides are of one version."""
    at = int(np.searchsorted(named, i))
    if at == 0:
        return False
    before = code[named[at - 1]]
    row = np.flatnonzero(view.codes == before)
    return bool(len(row)) and not view.out[row[0], named[at - 1] : i + 1].any()


def _tail(view: _View, code: I32, k: int) -> None:
    """Rule 3, in place."""
    n = view.out.shape[1]
    # A version alone: it fits, and all other own versions are excluded by this very token.
    against = view.out[view.own].sum(axis=0)
    alone = view.fits & (against >= view.own.sum() - view.own[:, None])
    at = k
    while at < n:
        reach = view.reach(at)
        counts = np.array([int(alone[v, at : reach[v]].sum()) for v in range(len(reach))])
        best = int(counts.argmax())
        if counts[best] < RUN:
            at += 1
            continue
        mine = np.flatnonzero(alone[best, at : reach[best]]) + at
        # A run of the base's tokens counts whole: fallback is judged by tokens in a row.
        code[mine if view.codes[best] != PLAIN else slice(int(mine[0]), int(mine[-1]) + 1)] = view.codes[best]
        at = int(reach[best])
