"""What most events of one stream look like, so that they need not be parsed one by one.

The events of a completion differ in the text of one token and in its id, and in nothing else. A `Shape` is what stands
around these two in an event that was parsed. Another event of that shape means the same but for the text and the id,
because JSON has no context: in place of a string's plain characters others may stand, and in place of a number another.

Rules
1. A shape describes a whole read: "data: ", one JSON document on one line, an empty line. The caller sees to it that
   nothing is pending in the parser.
2. Only text of printable ASCII without quote and backslash, and an id as JSON writes it, below 2^31, is taken; any
   other read is not of the shape, and is parsed.
3. Whether the two places are those that count is not for this module to guess: `probes` are events of the shape whose
   meaning the caller checks with the parser proper.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.traffic.sse import usual

TEXT = b'"text":"'
IDS = b'"token_ids":['
PLAIN = bytes(c for c in range(0x20, 0x7F) if c not in b'"\\')
MOST = 2**31
DIGITS = 10  # of the largest id


@dataclass(frozen=True, slots=True)
class Shape:
    """The three constant parts of an event: up to the text, between text and id, after the id."""

    before: bytes
    between: bytes
    after: bytes

    def token(self, read: bytes) -> tuple[int, bool] | None:
        """(id, whether there is text) of a read of this shape, else None."""
        before, between, after = self.before, self.between, self.after
        if not (read.startswith(before) and read.endswith(after)):
            return None
        begin = len(before)
        at = read.find(between, begin)
        digits = read[at + len(between) : -len(after)]
        if at < 0 or not digits.isdigit() or len(digits) > DIGITS or (digits[0] == 48 and len(digits) > 1):
            return None
        token = int(digits)
        if token >= MOST or (at > begin and read[begin:at].translate(None, PLAIN)):
            return None
        return token, at > begin

    def event(self, text: bytes, token: int) -> bytes:
        """The data of an event of this shape, as a parser hands it out."""
        return (self.before + text + self.between + b"%d" % token + self.after)[6:-2]

    def probes(self) -> tuple[tuple[bytes, int, bool], ...]:
        """(data, id, whether there is text): what must be found in events of this shape, if the places are right."""
        return ((self.event(b"", 1), 1, False), (self.event(b"x", MOST - 1), MOST - 1, True))


def shape_of(read: bytes) -> Shape | None:
    """The shape of a read with one event of one token, if it has one."""
    if not usual(read) or read.count(TEXT) != 1 or read.count(IDS) != 1:
        return None
    begin = read.index(TEXT) + len(TEXT)
    end = read.find(b'"', begin)
    first = read.index(IDS) + len(IDS)
    last = read.find(b"]", first)
    if not begin <= end < first < last:
        return None
    return Shape(read[:begin], read[end:first], read[last:])
