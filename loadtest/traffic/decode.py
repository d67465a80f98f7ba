"""What a finished exchange was: a pure function from status, reads and the way it ended to a `Stream` record.

Rules
1. A stream is `ok` only with status 200, `text/event-stream`, `[DONE]`, exactly one finish reason, no error frame and
   the right number of tokens: as many as `usage` says (when it does), and `max_tokens` when the finish reason is
   "length" or when nothing allows an earlier stop.
2. The first breach of the contract decides the reason; what follows it is still read for its tokens, until there were
   `BREACHES`: a flood of them is not worth anybody's time.
3. A proven breach outranks the way our own side ended the stream (deadline, cancel): evidence seen stays evidence.
   Without one, a stream our side ended is `info`, and one the server ended is `cut` (no orderly end of the body) or
   `truncated` (orderly, but incomplete).
4. Once `[DONE]` was read, how the connection ended no longer matters. Only blank lines and comments may follow it.
5. Reads of the shape that most of a stream's reads have are understood without a parser, to the same effect (usual.py).
6. A token's arrival is the read that completed its event. Ids count, not text: when no event of the stream carries
   ids, it is `text_only`, each event with text counts as one token with id -1, and only `usage` can prove the count.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from loadtest.records import REASONS_INFO, Outcome, Stream
from loadtest.traffic.ask import Ask
from loadtest.traffic.sse import MAX_EVENT, Event, Parser, SseError, parse_reads
from loadtest.traffic.usual import Shape, shape_of
from loadtest.traffic.words import error_of, excerpt, parse_error, shown

Ending = Literal[
    "end",  # the body ended where its framing says
    "close",  # the peer closed a body that nothing but the close delimits
    "cut",  # the connection was lost before a head, or inside the body
    "protocol",  # what came is not HTTP, or the body is too large
    "stalled",  # a deadline of ours passed
    "cancelled",  # our side gave up
]

Redact = Callable[[str, int], str]

MAX_DETAIL = 300
MAX_FINISH = 40
BREACHES = 1000
STEP = 16 * 1024  # bytes: a millisecond for usual events, a few for the worst
MANY = 32  # usual reads understood in one go: a few kB, which stay in the processor's cache
TRIES = 4  # to find a shape: the first events may hold a role, or the prompt's ids
EVENT_BYTES = 128 * 1024  # that an event may have beside what its tokens need
_U32 = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and all that came back. Times in monotonic ns, 0 = never."""

    ask: Ask
    sent_ns: int
    head_ns: int
    ended_ns: int
    status: int  # 0 without a response head
    content_type: str
    stamps: Sequence[int]  # of the reads
    payloads: Sequence[bytes]  # of the reads, transfer and content codings undone
    ending: Ending
    words: str = ""  # about the ending, for humans


@dataclass(frozen=True, slots=True)
class Decoded:
    """The record and its columns, of one length `record.tokens`, but the prompt."""

    record: Stream
    ids: array[int]  # 'i'
    arrivals: array[int]  # 'I', µs from sent_ns
    prompt: array[int]  # 'i'


class _Breach(Exception):
    """One event breaks the contract."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(slots=True)
class _Tally:
    """What the events have said so far."""

    ids: array[int] = field(default_factory=lambda: array("i"))
    stamps: list[int] = field(default_factory=list)  # one per id
    chunks: int = 0
    texts: list[int] = field(default_factory=list)  # stamps of events with text
    has_ids: bool = False
    prompt: array[int] = field(default_factory=lambda: array("i"))
    finish: str = ""
    done: Event | None = None
    usage: int = -1
    breach: tuple[str, str] | None = None
    breaches: int = 0

    def blame(self, reason: str, detail: str) -> None:
        self.breaches += 1
        if self.breach is None:
            self.breach = (reason, detail)


def decode(x: Exchange, redact: Redact = lambda text, limit: text[:limit]) -> Decoded:
    """Judge a finished exchange; `redact(text, limit)` cleans what the record's `detail` will say."""
    *_, found = decoding(x, redact)
    assert found is not None
    return found


def decoding(x: Exchange, redact: Redact) -> Iterator[Decoded | None]:
    """`decode` in steps of about a millisecond, for those who must not be late meanwhile: None, ..., the result."""
    tally = _Tally()
    if x.status == 200 and _is_sse(x.content_type):
        for _ in _read_events(x, tally):
            yield None
    yield _decoded(x, tally, redact)


def _decoded(x: Exchange, tally: _Tally, redact: Redact) -> Decoded:
    ids, stamps, chunks = tally.ids, tally.stamps, tally.chunks
    text_only = not tally.has_ids and bool(tally.texts)
    if text_only:
        stamps, chunks = tally.texts, len(tally.texts)
        ids = array("i", [-1]) * chunks
    reason, detail = _judge(x, tally, text_only)
    prompt = tally.prompt
    if not prompt and not isinstance(x.ask.prompt, str):
        prompt = array("i", x.ask.prompt)
    record = Stream(
        stream=x.ask.stream,
        adapter=x.ask.adapter,
        user=x.ask.user,
        intended_ns=x.ask.intended_ns or x.sent_ns,
        sent_ns=x.sent_ns,
        max_tokens=x.ask.max_tokens,
        ignore_eos=not x.ask.may_stop_early,
        head_ns=x.head_ns,
        first_ns=stamps[0] if stamps else 0,
        last_ns=stamps[-1] if stamps else 0,
        ended_ns=x.ended_ns,
        status=x.status,
        outcome=_outcome(reason),
        reason=reason,
        detail=redact(detail, MAX_DETAIL),
        finish=redact(tally.finish, MAX_FINISH),
        done=tally.done is not None,
        tokens=len(ids),
        offset=0,
        chunks=chunks,
        usage=tally.usage,
        text_only=text_only,
        replica=x.ask.replica,
    )
    arrivals = _arrivals(x.sent_ns, stamps)
    return Decoded(record, ids, arrivals, prompt)


def _arrivals(sent_ns: int, stamps: Sequence[int]) -> array[int]:
    """Times in ns as µs from the send, rounded up, within what the column can hold."""
    exact = [(s - sent_ns + 999) // 1000 for s in stamps]
    try:
        return array("I", exact)
    except OverflowError:
        return array("I", [min(max(0, us), _U32) for us in exact])


def _outcome(reason: str) -> Outcome:
    if not reason:
        return "ok"
    return "info" if reason in REASONS_INFO else "fail"


def _is_sse(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "text/event-stream"


def _read_events(x: Exchange, tally: _Tally) -> Iterator[None]:
    """Fill `tally`, with a pause after every `STEP` bytes or so."""
    bound = min(MAX_EVENT, EVENT_BYTES + x.ask.answer_bytes)
    parser = Parser(max_line=bound, max_event=bound)
    work = 0
    try:
        for stamp, events in parse_reads(_unusual(x, parser, tally), parser):
            for event in events:
                work += len(event.data)
                try:
                    _event(event, stamp, tally)
                except _Breach as b:
                    tally.blame(b.reason, b.detail)
            if tally.breaches > BREACHES:
                return
            work += STEP // 16
            if work >= STEP:
                work = 0
                yield
    except SseError as e:
        tally.blame("protocol", str(e))
    if tally.done is not None and parser.ignored > tally.done.ignored:
        tally.blame("protocol", "bytes that are no comment follow [DONE]")


def _unusual(x: Exchange, parser: Parser, tally: _Tally) -> Iterator[tuple[int, bytes]]:
    """The reads that `parser` has to see, and empty ones for a pause; what the others say goes to `tally`."""
    shape: Shape | None = None
    tries = at = 0
    usual = False  # nothing is pending, and the stream is in its middle
    many = MANY  # reads looked at in one go: twice as many as were understood the last time
    while at < len(x.payloads):
        if shape is not None and usual:
            ids, texts = shape.tokens(x.payloads[at : at + many])
            if ids:
                _take(ids, texts, x.stamps[at : at + len(ids)], tally)
                at += len(ids)
                many = min(2 * len(ids), MANY)
                yield x.stamps[at - 1], b""
                continue
            many = max(1, many // 2)
        stamp, data = x.stamps[at], x.payloads[at]
        at += 1
        for begin in range(0, max(1, len(data)), STEP):  # a megabyte of blank lines takes a second
            yield stamp, data[begin : begin + STEP]  # the parser has it, and `tally` what it says, when this goes on
        usual = parser.idle and not tally.finish and tally.done is None
        if shape is None and usual and tries < TRIES:
            tries += 1
            shape = _proven(shape_of(data))


def _take(ids: array[int], texts: Sequence[bytes], stamps: Sequence[int], tally: _Tally) -> None:
    """What usual reads say: one id each, and perhaps text."""
    tally.has_ids = True
    tally.chunks += len(ids)
    tally.ids.extend(ids)
    tally.stamps.extend(stamps)
    tally.texts.extend(stamps if all(texts) else itertools.compress(stamps, texts))


def _proven(shape: Shape | None) -> Shape | None:
    """The shape, if events of it say one id, perhaps text, and nothing else."""
    for data, token, text in shape.probes() if shape else ():
        said = _Tally()
        try:
            _event(Event(data), 1, said)
        except _Breach:
            return None
        expected = _Tally(array("i", [token]), [1], 1, [1] if text else [], has_ids=True)
        if said != expected:
            return None
    return shape


def _event(event: Event, stamp: int, tally: _Tally) -> None:
    if tally.done is not None:
        raise _Breach("protocol", f"an event follows [DONE]: {excerpt(event.data)}")
    if event.data == b"[DONE]":
        tally.done = event
        return
    if event.partial:
        return  # a fragment: the way the stream ended will say why
    try:
        chunk = orjson.loads(event.data)
    except orjson.JSONDecodeError:
        raise _Breach("protocol", f"an event is not JSON: {excerpt(event.data)}") from None
    if not isinstance(chunk, dict):
        raise _Breach("protocol", f"an event is not a JSON object: {excerpt(event.data)}")
    error = error_of(chunk) if "error" in chunk or "choices" not in chunk else None
    if error is not None or event.kind == b"error":
        words = f"{error.type}: {error.message}" if error else excerpt(event.data)
        raise _Breach("in_band_error", f"error frame: {words}")
    if (usage := chunk.get("usage")) is not None:
        _usage(usage, tally)
    choices = chunk.get("choices")
    if not isinstance(choices, list):
        raise _Breach("protocol", f"a chunk has no list of choices: {excerpt(event.data)}")
    if len(choices) == 1:
        _choice(choices[0], stamp, tally)
    elif choices:
        raise _Breach("protocol", f"{len(choices)} choices in a chunk where one was asked for")


def _usage(usage: Any, tally: _Tally) -> None:
    if not isinstance(usage, dict):
        return
    count = usage.get("completion_tokens")
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < 2**31:
        raise _Breach("protocol", f"usage says {shown(count)} completion tokens")
    tally.usage = count


def _choice(choice: Any, stamp: int, tally: _Tally) -> None:
    if not isinstance(choice, dict):
        raise _Breach("protocol", "a choice is not an object")
    if not tally.prompt and choice.get("prompt_token_ids") is not None:
        _extend(tally.prompt, choice["prompt_token_ids"])
    ids = choice.get("token_ids")
    count = 0
    if ids is not None:
        tally.has_ids = True
        count = _extend(tally.ids, ids)
        if count == 1:
            tally.stamps.append(stamp)
        else:
            tally.stamps += [stamp] * count
        tally.chunks += count > 0
    if choice.get("text"):
        tally.texts.append(stamp)
    finish = choice.get("finish_reason")
    if finish is not None or tally.finish:
        _finish(finish, count, tally)


def _finish(finish: Any, count: int, tally: _Tally) -> None:
    """A finish reason, or an event with `count` tokens after one."""
    before = tally.finish
    if finish is not None and not isinstance(finish, str):
        raise _Breach("protocol", f"the finish reason is {shown(finish)}, not a string")
    if finish and before:
        raise _Breach("duplicated", f"finish reason {shown(finish)} after {shown(before)}")
    if before and count:
        raise _Breach("duplicated", f"{count} more tokens after finish reason {shown(before)}")
    tally.finish = before or finish or ""


def _extend(column: array[int], ids: Any) -> int:
    """Append ids; their number. A list with anything but int32 ids >= 0 is a breach and appends nothing."""
    if isinstance(ids, list) and len(ids) == 1 and type(ids[0]) is int and 0 <= ids[0] < 2**31:  # the usual event
        column.append(ids[0])
        return 1
    try:
        new = array("i", ids) if isinstance(ids, list) and bool not in map(type, ids) else None
    except (TypeError, OverflowError):
        new = None
    if new is None or (new and min(new) < 0):
        raise _Breach("protocol", f"token ids are not a list of ids: {shown(ids)}")
    column.extend(new)
    return len(new)


def _judge(x: Exchange, tally: _Tally, text_only: bool) -> tuple[str, str]:
    """(reason, detail); ("", "") when the stream is complete."""
    if x.status == 0:
        return ("refused" if x.ending in ("end", "close", "cut") else x.ending), x.words
    body = b"".join(x.payloads) if not _is_sse(x.content_type) or x.status != 200 else b""
    if x.status != 200:
        return "rejected", f"HTTP {x.status}: {_words(body)}" + (f" ({x.words})" if x.words else "")
    if not _is_sse(x.content_type):
        return "protocol", f"content type {x.content_type or 'none'!r} in place of text/event-stream: {_words(body)}"
    if tally.breach is not None:
        return tally.breach
    count = tally.usage if text_only else len(tally.ids)
    if count > x.ask.max_tokens:
        return "duplicated", f"{count} tokens where at most {x.ask.max_tokens} were asked for"
    if tally.done is not None:
        return _incomplete(x.ask, tally, count)
    so_far = f"after {count if count >= 0 else len(tally.texts)} of {x.ask.max_tokens} tokens"
    match x.ending:
        case "end":
            return "truncated", f"the body ended in order, without [DONE], {so_far}"
        case "cut" | "close":
            return "cut", f"the connection ended before [DONE], {so_far}" + (f": {x.words}" if x.words else "")
        case _:
            return x.ending, f"{x.words or x.ending}, {so_far}"


def _incomplete(ask: Ask, tally: _Tally, count: int) -> tuple[str, str]:
    """What an orderly `[DONE]` hides, if anything; `count` is -1 when nobody can say."""
    if not tally.finish:
        return "truncated", f"[DONE] without a finish reason after {count} tokens"
    if tally.finish not in ("length", "stop"):
        return "truncated", f"finish reason {shown(tally.finish)} after {count} tokens"
    if count < tally.usage:
        return "truncated", f"{count} tokens arrived, usage says {tally.usage}"
    early = tally.finish == "stop" and ask.may_stop_early
    if count >= 0 and not early and count != ask.max_tokens:
        return "truncated", f"{count} tokens with finish reason {tally.finish!r}, {ask.max_tokens} were asked for"
    if 0 <= tally.usage < count:
        return "duplicated", f"{count} tokens arrived, usage says {tally.usage}"
    return "", ""


def _words(body: bytes) -> str:
    error = parse_error(body)
    if error is None:
        return excerpt(body)
    return f"{error.type}: {error.message}" if error.type else error.message
