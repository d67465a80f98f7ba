"""Which content emitted each token, and when nobody can say.

1. A token id that is a marker of a content names that content; of several contents that share it, the one of the
   stream's own adapter, else any, for each of them is a leak. Two of the stream's own make it unknown, as a text-only
   stream is. Any other id is *plain*. Nothing is ever guessed from text, timing or majority.
2. A plain token in an adapter's stream is noise up to a rate of DRIFT. What noise at that rate cannot explain is
   `fallback`: RUN plain tokens in a row (0.02^8 = 2.6e-14), or a whole stream of at least WHOLE (6.4e-11).
   Where a load of unknown content may be in service, plain tokens say nothing.
3. Noise can also hit a marker. Whether runs shorter than SUPPORT are evidence is weighed once for the whole run
   (noise.py): where they are not, and in a stream that holds a fallback, they are dropped. Hence a tear within
   SUPPORT - 1 tokens of an end may stay unknown.
4. The base may emit a marker by itself. In base streams a content counts as a leak when one stream holds so many of
   its tokens that BASE_RATE explains them with probability under BASE_ERROR, while the content may be loaded, and
   when no content that is *not* loaded hits base streams like that (a base that loops on a marker).
5. What single streams are too short to show, they may show together: plain tokens that follow each other too often for
   drift, markers in too many base streams. That accuses nobody, and keeps the run from PASS (gate `noise`).

Streams that were scored after the traffic (scores.py) are attributed by margins.py instead: it fills `code`.
`Attribution` is what the guarantees see.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loadtest.analysis.margins import PLAIN as PLAIN
from loadtest.analysis.margins import UNKNOWN as UNKNOWN
from loadtest.analysis.margins import told
from loadtest.analysis.noise import DRIFT, SUPPORT, Noise, main, stray, weigh
from loadtest.analysis.stats import binomial_tail
from loadtest.analysis.timeline import BASE, Contents, Lookup, Timeline, in_service
from loadtest.history import I32, I64, INFO, Bool, History, blocks
from loadtest.records import BAD

RUN = 8
WHOLE = 6
BURST = 1e-6
BASE_RATE = 1e-3  # five times what a base with random weights showed (3 of 16,384)
BASE_ERROR = 1e-9
LOOPING = 10  # base streams that must be hit by a loaded content for each one hit by a content that is not loaded


@dataclass(frozen=True, slots=True)
class Runs:
    """Maximal runs of informative tokens with one content, in (stream, position) order; noise in between is skipped."""

    stream: I64  # [R] index into the stream table
    content: I32  # [R] content code
    first: I64  # [R] index into History.ids of the first token
    last: I64  # [R] of the last
    count: I64  # [R] informative tokens
    begin: I64  # [R] arrival of the first, ns
    until: I64  # [R] arrival of the last, ns

    def __len__(self) -> int:
        return len(self.stream)

    def pick(self, which: npt.NDArray[np.bool_] | I64) -> Runs:
        """The rows a mask or an index names."""
        return Runs(
            self.stream[which],
            self.content[which],
            self.first[which],
            self.last[which],
            self.count[which],
            self.begin[which],
            self.until[which],
        )


@dataclass(frozen=True, slots=True)
class Attribution:
    """What each stream's tokens say about where they came from."""

    code: I32  # [T] content code, PLAIN or UNKNOWN
    runs: Runs  # of adapters' streams: any content; of base streams: leaks only
    fallback: Runs  # plain runs that only the base explains; content is PLAIN
    own: Bool  # [R] the run's content belongs to the stream's adapter
    judged: Bool  # [S] at least one token is informative (or the stream is a judged base stream)
    method: dict[str, str]  # adapter -> "marker" | "mixed" | "reference" | "margins" | "none" | "base"
    informative: int  # tokens in `runs` and `fallback`, and of judged base streams
    plain: dict[str, int]  # adapter -> plain tokens outside fallbacks: the noise
    noise: Noise
    silent: Runs  # runs that noise keeps from being evidence, though their streams show nothing else more often
    doubts: tuple[str, ...]  # what is too little to accuse anybody, and too much for noise


def adapter_codes(history: History, contents: Contents) -> I32:
    """Each stream's adapter as a code into `contents.adapters`: [S]."""
    codes = np.array([contents.adapters.index(a) for a in history.streams.adapters], np.int32)
    return codes[history.streams.adapter] if len(history.streams) else np.empty(0, np.int32)


def token_codes(history: History, contents: Contents) -> I32:
    """Content of every token by its marker: [T]. Of several that share it, the stream's own."""
    owner = adapter_codes(history, contents)
    of_token = _contents_of(history, contents)
    top = max(of_token, default=-1) + 1
    table = np.full(top + 1, PLAIN, np.int32)
    table[list(of_token)] = [c[0] for c in of_token.values()]
    shared = {token: _choices(contents, found) for token, found in of_token.items() if len(found) > 1}
    codes: I32 = np.empty(len(history.ids), np.int32)
    for rows, tokens in blocks(history.streams.tokens):
        ids, count = history.ids[tokens], history.streams.tokens[rows]
        known = (ids >= 0) & (ids < top)
        codes[tokens] = table[np.where(known, ids, top)]
        for token, choice in shared.items():
            at = ids == token
            codes[tokens][at] = choice[np.repeat(owner[rows], count)[at]]
        codes[tokens][ids < 0] = UNKNOWN
        codes[tokens][np.repeat(history.streams.text_only[rows], count)] = UNKNOWN
    return codes


def _contents_of(history: History, contents: Contents) -> dict[int, list[int]]:
    """The contents that each marker names, in order; without markers that are in no stream."""
    code = {key: i for i, key in enumerate(contents.labels)}
    marked = [v for v in history.versions if v.adapter != BASE and v.adapter not in history.scores.adapters]
    seen = int(history.ids.max(initial=-1))
    out = dict[int, list[int]]()
    for token, content in sorted({(t, code[v.adapter, v.version]) for v in marked for t in v.markers}):
        if 0 <= token <= seen:
            out.setdefault(token, []).append(content)
    return out


def _choices(contents: Contents, found: list[int]) -> I32:
    """[A] which of these contents a stream of each adapter shows: its own; else any, for each of them is a leak."""
    out = np.full(len(contents.adapters), found[0], np.int32)
    for adapter in set(contents.adapter[found].tolist()):
        own = [c for c in found if contents.adapter[c] == adapter]
        out[adapter] = own[0] if len(own) == 1 else UNKNOWN
    return out


def _twofold(history: History, code: I32) -> str:
    """Tokens whose adapter has two different contents with their marker: what they break cannot be seen."""
    shas = dict[tuple[str, int], set[str]]()
    for v in history.versions:
        for token in v.markers:
            shas.setdefault((v.adapter, token), set()).add(v.sha)
    twice = sorted({token for (_, token), found in shas.items() if len(found) > 1})
    at = np.flatnonzero((code == UNKNOWN) & np.isin(history.ids, twice)) if twice else np.empty(0, np.int64)
    count = int((~history.streams.text_only[_stream_of(history, at)]).sum()) if len(at) else 0
    return f"{count} tokens carry the marker of two versions of their adapter" if count else ""


def attribute(history: History, look: Lookup) -> Attribution:
    """Attribute every token by rules 1 to 4."""
    contents = look.line.contents
    code = token_codes(history, contents)
    twofold = _twofold(history, code)
    scored = told(history, contents)
    if len(scored.which):
        code[scored.which] = scored.code[scored.which]
    owner = adapter_codes(history, contents)
    base = contents.adapters.index(BASE)
    methods = _methods(contents, scored.method)
    marked = np.array([m not in ("base", "none") for m in methods], bool)
    fallback, rest_plain, plain, hidden = _plain(history, look, code, owner, marked)
    runs = _runs(history, code)
    in_base = owner[runs.stream] == base
    leaks, base_doubt = _base_leaks(history, look, runs.pick(in_base), owner == base)
    mine = runs.pick(~in_base)
    exact = mine.pick(scored.streams[mine.stream])  # their noise was weighed token by token
    mine = mine.pick(~scored.streams[mine.stream])
    noise, dropped = _noise(history, look, mine, plain, fallback)
    silent = mine.pick(dropped & main(mine.stream, mine.count))
    rest = _concatenate(_denoise(mine, dropped), exact)
    runs = _sorted(_concatenate(rest, leaks))
    own = contents.adapter[runs.content] == owner[runs.stream]
    judged = np.zeros(len(history.streams), bool)
    judged[runs.stream], judged[fallback.stream] = True, True
    watched = any(m in ("marker", "mixed") for m in methods)
    judged |= (owner == base) & ~history.streams.text_only & (history.streams.tokens > 0) & watched | scored.base
    base_tokens = int(history.streams.tokens[judged & (owner == base)].sum())
    informative = int(rest.count.sum() + fallback.count.sum()) + base_tokens
    names = contents.adapters
    return Attribution(
        code,
        runs,
        fallback,
        own,
        judged,
        dict(zip(names, methods, strict=True)),
        informative,
        {name: int(plain[i]) for i, name in enumerate(names) if marked[i]},
        noise,
        silent,
        tuple(doubt for doubt in (base_doubt, hidden, twofold, _bursts(rest_plain, noise.tokens)) if doubt),
    )


def _noise(history: History, look: Lookup, runs: Runs, plain: I64, fallback: Runs) -> tuple[Noise, Bool]:
    """(the run's noise, [R] runs to be dropped for it). A fallback's stream holds none but the base's own tokens."""
    based = np.zeros(len(history.streams), bool)
    based[fallback.stream] = True
    short, inside = runs.count < SUPPORT, based[runs.stream]
    odd = stray(runs.stream, runs.content, runs.count) & ~inside
    count = int(runs.count[~inside].sum()) + int(plain.sum())
    own = look.line.contents.adapter[runs.content] == adapter_codes(history, look.line.contents)[runs.stream]
    strays = (int(runs.count[odd & own].sum()), int(runs.count[odd & ~own].sum()))
    served = np.zeros(len(runs), bool)
    strange = runs.pick(odd)
    served[odd] = in_service(look, strange.content, strange.begin, history.streams.sent[strange.stream])
    noise = weigh(history, count, int(plain.sum()), strays, int(runs.count[served].sum()))
    dropped = short & inside
    if noise.believed == "served":
        dropped |= odd & ~served
    elif noise.believed != "all":
        dropped |= (short if noise.plain else odd) & (own | (noise.believed == "none"))
    return noise, dropped


def _methods(contents: Contents, scored: dict[str, str]) -> list[str]:
    out = []
    for a, name in enumerate(contents.adapters):
        marks = contents.marked[contents.adapter == a]
        if name == BASE or name in scored:
            out.append("base" if name == BASE else scored[name])
        else:
            out.append("none" if not marks.any() else "marker" if marks.all() else "mixed")
    return out


def _runs(history: History, code: I32) -> Runs:
    """Runs of equal content among the tokens that have one; a block of streams at a time, for memory."""
    parts = [_none()]
    for _, tokens in blocks(history.streams.tokens):
        at = np.flatnonzero(code[tokens] >= 0) + tokens.start
        if len(at):
            parts.append(_runs_at(history, at, code[at]))
    return _concatenate(*parts)


def _runs_at(history: History, at: I64, c: I32) -> Runs:
    """Runs of equal content among tokens `at`, ascending: [n]."""
    s = _stream_of(history, at)
    starts = np.flatnonzero(np.concatenate([[True], (s[1:] != s[:-1]) | (c[1:] != c[:-1])]))
    ends = np.append(starts[1:], len(at))
    first, last = at[starts], at[ends - 1]
    return Runs(s[starts], c[starts], first, last, ends - starts, history.at[first], history.at[last])


def _stream_of(history: History, at: I64) -> I64:
    """The streams that own tokens `at`, ascending: [n]."""
    t = history.streams
    low, high = (int(i) for i in np.searchsorted(t.start, at[[0, -1]], side="right"))
    held = np.searchsorted(at, t.start[low - 1 : high])  # tokens before each stream's begin
    count = np.diff(np.append(held, len(at)))
    return np.repeat(np.arange(low - 1, high, dtype=np.int64), count)


def _none() -> Runs:
    e = np.empty(0, np.int64)
    return Runs(e, np.empty(0, np.int32), e, e, e, e, e)


def _concatenate(*parts: Runs) -> Runs:
    return Runs(
        np.concatenate([p.stream for p in parts]),
        np.concatenate([p.content for p in parts]),
        np.concatenate([p.first for p in parts]),
        np.concatenate([p.last for p in parts]),
        np.concatenate([p.count for p in parts]),
        np.concatenate([p.begin for p in parts]),
        np.concatenate([p.until for p in parts]),
    )


def _sorted(runs: Runs) -> Runs:
    return runs.pick(np.argsort(runs.first, kind="stable").astype(np.int64))


def _plain_at(history: History, code: I32, watched: Bool) -> I64:
    """Plain tokens of the watched streams, ascending."""
    parts = [np.empty(0, np.int64)]
    for rows, tokens in blocks(history.streams.tokens):
        plain = code[tokens] == PLAIN
        plain &= np.repeat(watched[rows], history.streams.tokens[rows])
        parts.append(np.flatnonzero(plain) + tokens.start)
    return np.concatenate(parts)


def _plain(history: History, look: Lookup, code: I32, owner: I32, marked: Bool) -> tuple[Runs, Runs, I64, str]:
    """(fallback runs, shorter plain runs, [A] tokens of those, what a timed-out bad load hides) in the streams of
    adapters with markers.
    """
    at = _plain_at(history, code, marked[owner])
    noise = np.zeros(len(marked), np.int64)
    if not len(at):
        return _none(), _none(), noise, ""
    s = _stream_of(history, at)
    starts = np.flatnonzero(np.concatenate([[True], (s[1:] != s[:-1]) | (at[1:] != at[:-1] + 1)]))
    ends = np.append(starts[1:], len(at))
    count, own = ends - starts, s[starts]
    first, last = at[starts], at[ends - 1]
    alone = (count == history.streams.tokens[own]) & (count >= WHOLE)
    explained = look.line.unknown_from[owner[own]] <= history.at[last] + look.line.epsilon
    explained |= history.streams.sent[own] <= look.line.ours_from[owner[own]] + look.line.epsilon
    base = ((count >= RUN) | alone) & ~explained
    np.add.at(noise, owner[own[~base & ~explained]], count[~base & ~explained])
    runs = Runs(own, np.full(len(own), PLAIN, np.int32), first, last, count, history.at[first], history.at[last])
    bad = explained & ((count >= RUN) | alone) & _only_bad(look.line)[owner[own]]
    hidden = f"{int(bad.sum())} times no marker was seen where a load that must be refused was never answered"
    return runs.pick(base), runs.pick(~base & ~explained), noise, hidden if bad.any() else ""


def _only_bad(line: Timeline) -> Bool:
    """[A] adapters of which everything has markers but loads that must be refused and were never answered."""
    contents = line.contents
    bad = np.array([label.startswith(BAD) for _, label in contents.labels], bool)
    out = np.zeros(len(contents.adapters), bool)
    out[line.adapter[bad[line.content] & (line.outcome == INFO)]] = True
    out[contents.adapter[~contents.marked & ~bad]] = False
    return out


def _bursts(plain: Runs, tokens: int) -> str:
    """Plain tokens that follow each other more often than DRIFT lets them, in runs too short for a fallback."""
    for length in range(2, RUN):
        found = int((plain.count >= length).sum())
        if found and binomial_tail(found, max(tokens, found), DRIFT**length) < BURST:
            streams = len(np.unique(plain.stream[plain.count >= length]))
            return f"{found} runs of {length} or more tokens in {streams} streams carry no marker, too often for drift"
    return ""


def _denoise(runs: Runs, dropped: Bool) -> Runs:
    """Drop runs that noise explains, then join what they separated."""
    kept = runs.pick(~dropped)
    if len(kept) == len(runs) or not len(kept):
        return kept
    fresh = (kept.stream[1:] != kept.stream[:-1]) | (kept.content[1:] != kept.content[:-1])
    starts = np.flatnonzero(np.concatenate([[True], fresh]))
    ends = np.append(starts[1:], len(kept)) - 1
    return Runs(
        kept.stream[starts],
        kept.content[starts],
        kept.first[starts],
        kept.last[ends],
        np.add.reduceat(kept.count, starts),
        kept.begin[starts],
        kept.until[ends],
    )


def _base_leaks(history: History, look: Lookup, runs: Runs, based: Bool) -> tuple[Runs, str]:
    """Rule 4: for each (base stream, content) with too many markers for chance, one run from first to last; and what
    streams too short for that say together.
    """
    if not len(runs):
        return runs, ""
    order = np.lexsort((runs.first, runs.content, runs.stream))
    r = runs.pick(order.astype(np.int64))
    starts = np.flatnonzero(
        np.concatenate([[True], (r.stream[1:] != r.stream[:-1]) | (r.content[1:] != r.content[:-1])])
    )
    ends = np.append(starts[1:], len(r)) - 1
    total = np.add.reduceat(r.count, starts)
    both = Runs(
        r.stream[starts], r.content[starts], r.first[starts], r.last[ends], total, r.begin[starts], r.until[ends]
    )
    lengths = history.streams.tokens[both.stream]
    need = {int(n): _chance_limit(int(n)) for n in np.unique(lengths)}
    hits = both.count >= np.array([need[int(n)] for n in lengths], np.int64)
    hit = both.pick(hits)
    loaded = look.newest(hit.content, hit.until) >= 0
    doubt = _few_each(history, look, both.pick(~hits), based)
    if int(loaded.sum()) <= LOOPING * int((~loaded).sum()):
        return _none(), doubt
    return hit.pick(loaded), doubt


def _few_each(history: History, look: Lookup, runs: Runs, based: Bool) -> str:
    """Markers in base streams that show too few each, against the markers of contents that were not loaded."""
    loaded = look.newest(runs.content, runs.until) >= 0
    size = len(look.line.contents.labels)
    markers = np.bincount(runs.content[loaded], weights=runs.count[loaded], minlength=size).astype(np.int64)
    tokens = int(history.streams.tokens[based & ~history.streams.text_only].sum())
    many = [
        c for c in np.flatnonzero(markers).tolist() if binomial_tail(int(markers[c]), tokens, BASE_RATE) < BASE_ERROR
    ]
    found = int(markers[many].sum())
    if found <= LOOPING * int(runs.count[~loaded].sum()):
        return ""
    streams = len(np.unique(runs.stream[loaded & np.isin(runs.content, many)]))
    return f"{found} tokens in {streams} streams of the base carry markers of loaded versions, too many for chance"


def _chance_limit(n: int) -> int:
    """Fewest tokens of one content among n that BASE_RATE explains with probability under BASE_ERROR."""
    x = 1
    while binomial_tail(x, n, BASE_RATE) >= BASE_ERROR:
        x += 1
    return x
