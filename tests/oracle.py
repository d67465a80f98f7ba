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


def before(x: Load, y: Load) -> bool:
    return x.end < y.start


def candidates(loads: list[Load], token: Token) -> list[Load]:
    return [k for k in loads if k.label == token.label and k.outcome != "fail" and k.start <= token.at]


def invalid(loads: list[Load], streams: list[Stream]) -> set[int]:
    return {i for i, s in enumerate(streams) if any(not candidates(loads, t) for t in s.tokens)}


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
