"""Quantities a scenario is written in, and how they are read and written back.

    duration   "10s", "500ms", "1m", "2h"; the unit is required       -> seconds (float)
    rate       "8/s", "480/m"                                         -> per second (float)
    factor     1.2 or "2x", at least 1                                -> float
    range      "a..b" or one value, of whole numbers or durations     -> IntRange, SecondsRange

Every parser takes whatever YAML gave and raises BadValue; every `show_` function writes text that parses back equal.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

LONGEST_S = 7 * 24 * 3600.0  # a week: longer is a typing error, not a load test
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = r"\d{1,9}(?:\.\d{1,20})?"
_DURATION = re.compile(rf"({_NUMBER}) ?(ms|s|m|h)", re.ASCII)
_RATE = re.compile(rf"({_NUMBER}) ?/ ?(s|m)", re.ASCII)
_FACTOR = re.compile(rf"({_NUMBER}) ?x?", re.ASCII)
_INT = re.compile(r"\d{1,9}", re.ASCII)


class BadValue(ValueError):
    """A value that cannot be read: what was found and expected, and what to write instead."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class IntRange:
    """Whole numbers lo..hi, both included."""

    lo: int
    hi: int

    def __str__(self) -> str:
        return str(self.lo) if self.lo == self.hi else f"{self.lo}..{self.hi}"


@dataclass(frozen=True, slots=True)
class SecondsRange:
    """Durations lo..hi in seconds, both included."""

    lo: float
    hi: float

    def __str__(self) -> str:
        lo, hi = show_duration(self.lo), show_duration(self.hi)
        return lo if self.lo == self.hi else f"{lo}..{hi}"


def found(value: object) -> str:
    """One short line that shows a value in an error, as YAML would name it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def suggest(word: str, known: Iterable[str]) -> str:
    """Remedy for a name that is not one of `known`."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"use one of: {', '.join(names)}" if names else ""


def _bounded(seconds: float, value: object) -> float:
    if seconds > LONGEST_S:
        raise BadValue(f"expected at most 7 days (168h), got {found(value)}", "write a shorter duration")
    return seconds


def parse_duration(value: object) -> float:
    """Seconds of "10s", "500ms", "1m", "2h"."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise BadValue(f"expected a duration with its unit, got {found(value)}", f"write {value}s if you mean seconds")
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise BadValue(
            f"expected a duration, got {found(value)}", "write a number and ms, s, m or h, such as 500ms or 10s"
        )
    number, unit = float(match[1]), match[2]
    seconds = number / 1000 if unit == "ms" else number * _UNITS[unit]  # /1000 is correctly rounded, *0.001 is not
    return _bounded(seconds, value)


def parse_positive_duration(value: object) -> float:
    """As parse_duration, and longer than nothing."""
    seconds = parse_duration(value)
    if seconds <= 0:
        raise BadValue(f"expected a duration longer than 0, got {found(value)}", "write a longer one")
    return seconds


def show_duration(seconds: float) -> str:
    """Shortest text that parses back to the same float: "500ms", "10s", "0.0005s"."""
    if seconds < 1 and round(seconds * 1000) / 1000 == seconds:
        return f"{round(seconds * 1000)}ms" if seconds else "0s"
    return f"{show_number(seconds)}s"


def show_number(value: float) -> str:
    """Decimal digits without an exponent, exact for a float; "8", not "8.0"."""
    text = format(Decimal(repr(float(value))), "f")
    return text.removesuffix(".0")


def parse_rate(value: object) -> float:
    """Per second, of "8/s" or "480/m"; more than 0."""
    match = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise BadValue(f"expected a rate, got {found(value)}", "write it with its unit, such as 8/s or 480/m")
    rate = float(match[1]) / (60.0 if match[2] == "m" else 1.0)
    if rate <= 0:
        raise BadValue(f"expected a rate above 0, got {found(value)}", "write a higher rate")
    return rate


def parse_spawn_rate(value: object) -> float:
    """Users a second: a plain number as Locust has it, or a rate."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not 0 < value <= 1e6:
            raise BadValue(f"expected a rate above 0, got {found(value)}", "write users a second, such as 5")
        return float(value)
    return parse_rate(value)


def show_rate(rate: float) -> str:
    """Text of a rate: "8/s" for 8.0."""
    return f"{show_number(rate)}/s"


def parse_factor(value: object) -> float:
    """A factor of at least 1, of 1.2 or "2x"."""
    text = str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
    match = _FACTOR.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise BadValue(f"expected a factor, got {found(value)}", "write a number of at least 1, such as 1.2 or 2x")
    if float(match[1]) < 1:
        raise BadValue(
            f"expected a factor of at least 1, got {found(value)}", "1 allows no change, 2x allows the double"
        )
    return float(match[1])


def show_factor(factor: float) -> str:
    """Text of a factor: "2x" for 2.0."""
    return f"{show_number(factor)}x"


def _ends(value: object) -> tuple[object, object]:
    """Both ends of "a..b"; one value is both."""
    if isinstance(value, str) and ".." in value:
        lo, _, hi = value.partition("..")
        return lo.strip(), hi.strip()
    return value, value


def _whole(value: object, whole: object) -> int:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or _INT.fullmatch(text) is None:
        raise BadValue(f"expected a whole number or a range of them, got {found(whole)}", "write 64 or 64..256")
    return int(text)


def parse_int_range(value: object) -> IntRange:
    """IntRange of 64 or "64..256"; at least 1, at most 1,000,000."""
    lo, hi = (_whole(end, value) for end in _ends(value))
    if lo > hi:
        raise BadValue(f"the range begins above its end: {found(value)}", f"write {hi}..{lo}")
    if lo < 1 or hi > 1_000_000:
        raise BadValue(f"expected 1 to 1000000, got {found(value)}", "write a range inside it")
    return IntRange(lo, hi)


def parse_seconds_range(value: object) -> SecondsRange:
    """SecondsRange of "1s" or "1s..2s"."""
    if isinstance(value, str) and ".." in value:
        lo_text, hi_text = _ends(value)
        lo, hi = parse_duration(lo_text), parse_duration(hi_text)
    else:
        lo = hi = parse_duration(value)
    if lo > hi:
        raise BadValue(
            f"the range begins above its end: {found(value)}", f"write {show_duration(hi)}..{show_duration(lo)}"
        )
    return SecondsRange(lo, hi)


def parse_every(value: object) -> SecondsRange:
    """As parse_seconds_range, and longer than nothing at both ends."""
    span = parse_seconds_range(value)
    if span.lo <= 0:
        raise BadValue(f"expected more than 0 seconds between swaps, got {found(value)}", "write at least 1ms")
    return span
