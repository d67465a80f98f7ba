"""A brute-force oracle for tiny histories: guarantees by trying every assignment of loads to tokens.

It is written from the rules in loadtest/analysis/guarantees.py and shares no code with the checker: lists of tokens and
loops, no runs, no running maxima, no fixed point.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

FOREVER = 10**9


@dataclass(frozen=True)
class Load:
    label: str
    start: int
    end: int  # FOREVER for info
    outcome: str


@dataclass(frozen=True)
class Token:
    label: str
    at: int


@dataclass(frozen=True)
class Stream:
    sent: int
    tokens: tuple[Token, ...]
    gone: bool = False  # rejected: the server knows no such adapter


def before(x: Load, y: Load) -> bool:
    return x.end < y.start


def candidates(loads: list[Load], token: Token) -> list[Load]:
    return [k for k in loads if k.label == token.label and k.outcome != "fail" and k.start <= token.at]


def invalid(loads: list[Load], streams: list[Stream]) -> set[int]:
    ours = min((k.end for k in loads if k.outcome == "ok"), default=FOREVER)
    return {i for i, s in enumerate(streams) if s.sent > ours and any(not candidates(loads, t) for t in s.tokens)}


def stale(loads: list[Load], streams: list[Stream]) -> set[int]:
    def superseded(k: Load, sent: int) -> bool:
        return any(n.outcome == "ok" and n.end < sent and before(k, n) for n in loads)

    def bad(s: Stream, t: Token) -> bool:
        c = candidates(loads, t)
        return bool(c) and all(superseded(k, s.sent) for k in c)

    return {i for i, s in enumerate(streams) if any(bad(s, t) for t in s.tokens)}


def torn(streams: list[Stream]) -> set[int]:
    return {i for i, s in enumerate(streams) if len({t.label for t in s.tokens}) > 1}


def choices(loads: list[Load], token: Token) -> list[Load] | None:
    """None for a token that constrains nothing."""
    c = candidates(loads, token)
    return None if not c or any(k.end == FOREVER for k in c) else c


def flipped(loads: list[Load], streams: list[Stream]) -> set[int]:
    def explained(s: Stream) -> bool:
        options = [c for t in s.tokens if (c := choices(loads, t)) is not None]
        return any(
            not any(before(later, earlier) for i, earlier in enumerate(chosen) for later in chosen[i + 1 :])
            for chosen in product(*options)
        )

    return {i for i, s in enumerate(streams) if not explained(s)}


def inverted(loads: list[Load], streams: list[Stream]) -> bool:
    """No choice for all tokens of all streams at once."""
    tokens = [(s, t, c) for s in streams for t in s.tokens if (c := choices(loads, t)) is not None]

    def fits(chosen: list[Load]) -> bool:
        s, t, _ = tokens[len(chosen) - 1]
        new = chosen[-1]
        for (other, u, _), k in zip(tokens, chosen, strict=False):
            if u.at < s.sent and before(new, k):
                return False
            if t.at < other.sent and before(k, new):
                return False
        return True

    def search(chosen: list[Load]) -> bool:
        if len(chosen) == len(tokens):
            return True
        return any(fits([*chosen, k]) and search([*chosen, k]) for k in tokens[len(chosen)][2])

    return not search([])


# durable, from the rules in loadtest/analysis/durable.py; loads are in order of their start


def following(loads: list[Load], i: int) -> int:
    """When the next load that was not refused begins."""
    return min((k.start for k in loads[i + 1 :] if k.outcome != "fail"), default=FOREVER)


def shows(loads: list[Load], stream: Stream, k: Load) -> str:
    """ "newer", "older" or "" for a stream that says nothing, against a load."""
    found = [c for t in stream.tokens for c in candidates(loads, t)]
    return "" if not found else "older" if all(before(c, k) for c in found) else "newer"


def patience(loads: list[Load], streams: list[Stream]) -> int:
    """How long streams went on showing older versions after a load that was seen in the end."""
    waits = [0]
    for k in loads:
        times = [t.at for s in streams for t in s.tokens if t.label == k.label and candidates(loads, t)]
        if k.outcome == "ok" and times:
            late = [s.sent for s in streams if k.end < s.sent <= min(times) and shows(loads, s, k) == "older"]
            waits += [sent - k.end for sent in late]
    return max(waits)


def lost(loads: list[Load], streams: list[Stream], i: int) -> bool:
    k, until = loads[i], following(loads, i)
    inside = [shows(loads, s, k) for s in streams if k.end < s.sent < until]
    near = [shows(loads, s, k) for s in streams if k.end <= s.sent <= until]
    again = min((n.start for n in loads if n.label == k.label and n.start > k.start), default=FOREVER)
    seen = any(t.label == k.label and k.start <= t.at <= again for s in streams for t in s.tokens)
    waited = max((s.sent for s in streams), default=0) - k.end > patience(loads, streams)
    enough = sum(x != "" for x in inside) >= 3
    return k.outcome == "ok" and enough and "newer" not in near and not seen and waited


def reverted(loads: list[Load], streams: list[Stream], i: int) -> bool:
    k, until = loads[i], following(loads, i)
    told = [x for s in streams if k.end < s.sent < until and (x := shows(loads, s, k))]
    if k.outcome != "ok" or "newer" not in told:
        return False
    last = max(n for n, x in enumerate(told) if x == "newer")
    between = told[told.index("newer") : last + 1]
    after = len(told) - last - 1
    return after >= 3 and ((between.count("older") + 1) / (len(between) + 2)) ** after < 1e-6


def wiped(loads: list[Load], streams: list[Stream], i: int) -> bool:
    k, until = loads[i], following(loads, i)
    since = max((n.end for n in loads[:i] if n.outcome != "info"), default=0)
    served = any(since < s.sent < k.start and not s.gone for s in streams)
    inside = [s.gone for s in streams if k.end < s.sent < until]
    near = [s.gone for s in streams if k.end <= s.sent <= until]
    return k.outcome == "fail" and served and sum(inside) >= 2 and all(near[near.index(True) :])


def undurable(loads: list[Load], streams: list[Stream]) -> dict[str, int]:
    """How many loads are lost, reverted, wiped."""
    tests = {"lost": lost, "reverted": reverted, "wiped": wiped}
    found = {name: sum(test(loads, streams, i) for i in range(len(loads))) for name, test in tests.items()}
    return {name: n for name, n in found.items() if n}
