"""What most events of one stream look like, so that they need not be parsed one by one.

The events of a completion differ in the text of one token and in its id, and in nothing else. A `Shape` is what stands
around these two in an event that was parsed. Another event of that shape means the same but for the text and the id,
because JSON has no context: in place of a string's plain characters others may stand, and in place of a number another.

Rules
1. A shape describes a whole read: "data: ", one JSON document on one line, an empty line. The caller sees to it that
   nothing is pending in the parser. Many reads are understood in one go, by what stands between them.
2. Only text of printable ASCII without quote and backslash, of `LONGEST` bytes at most, and an id as JSON writes it,
   below 2^31, is taken; any other read is not of the shape, and is parsed.
3. Whether the two places are those that count is not for this module to guess: `probes` are events of the shape whose
   meaning the caller checks with the parser proper.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.traffic.sse import usual

TEXT = b'"text":"'
IDS = b'"token_ids":['
PLAIN = bytes(c for c in range(0x20, 0x7F) if c not in b'"\\')
MOST = 2**31
LONGEST = 4096  # of a text, and of the read that a shape is taken from


@dataclass(frozen=True, slots=True)
class Shape:
    """The three constant parts of an event: up to the text, between text and id, after the id."""

    before: bytes
    between: bytes
    after: bytes

    def tokens(self, reads: Sequence[bytes]) -> tuple[array[int], list[bytes]]:
        """Ids (array 'i') and texts of those at the beginning of `reads` that are of this shape."""
        before, between, after = self.before, self.between, self.after
        for alike in ([read.startswith(before) for read in reads], [read.endswith(after) for read in reads]):
            if False in alike:
                reads = reads[: alike.index(False)]
        begin, end = len(before), -len(after)
        parts = [read[begin:end].partition(between) for read in reads]
        texts = [text for text, _, _ in parts]
        ids = _numbers([digits for _, _, digits in parts])
        plain = not b"".join(texts).translate(None, PLAIN) and max(map(len, texts), default=0) <= LONGEST
        if ids is not None and plain:
            return ids, texts
        return self.tokens(reads[: len(reads) // 2])  # shorter, and in the end none

    def event(self, text: bytes, token: int) -> bytes:
        """The data of an event of this shape, as a parser hands it out."""
        return (self.before + text + self.between + b"%d" % token + self.after)[6:-2]

    def probes(self) -> tuple[tuple[bytes, int, bool], ...]:
        """(data, id, whether there is text): what must be found in events of this shape, if the places are right."""
        return ((self.event(b"", 1), 1, False), (self.event(b"x", MOST - 1), MOST - 1, True))


def _numbers(digits: list[bytes]) -> array[int] | None:
    """Ids as JSON writes them, None if one is not or is too large."""
    if not all(map(bytes.isdigit, digits)):
        return None
    if min(digits, default=b"1") < b"1" and any(d[0] == 0x30 and len(d) > 1 for d in digits):
        return None
    try:
        return array("i", map(int, digits))
    except (OverflowError, ValueError):  # ValueError: of thousands of digits
        return None


def shape_of(read: bytes) -> Shape | None:
    """The shape of a read with one event of one token, if it has one."""
    if len(read) > LONGEST or not usual(read) or read.count(TEXT) != 1 or read.count(IDS) != 1:
        return None
    begin = read.index(TEXT) + len(TEXT)
    end = read.find(b'"', begin)
    first = read.index(IDS) + len(IDS)
    last = read.find(b"]", first)
    if not begin <= end < first < last:
        return None
    return Shape(read[:begin], read[end:first], read[last:])
