"""The parsers of what a server sends, against anything: no crash, bounded memory, agreement with independent ones.

    LOADTEST_FUZZ=1000000 python bench/fuzz.py [--seed N] [--only NAME]

`LOADTEST_FUZZ` inputs in all (1000 without it), a share for each of:

    sse      any bytes in any pieces: events as the WHATWG standard has them (tests/eventsource.py)
    chunks   any bytes in any pieces through the chunked coding: payload as a plain reading of RFC 9112 has it
    shapes   an answer event by event, some odd: the record that parsing every one of them gives
    tap      a body as a transport cuts it, through the tap of a connection: the payload
    decode   any answer: a record that holds together, that the journal can write, within the time of its length
    admin    any answer to a load: an outcome of the closed set; `ok` only under 200
    frames   any bytes between host and engine: messages or FrameError

Inputs are made by a grammar of the right pieces, then damaged: bytes changed, cut, repeated, put together from two.
With atheris installed, `python bench/fuzz.py --atheris NAME` lets coverage guide it instead.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import itertools

import orjson
from eventsource import leftover, source
from rawserver import CHUNKED, DONE, completion, event, usage

from loadtest import records
from loadtest.errors import LoadtestError
from loadtest.journal import encode
from loadtest.records import REASONS_FAIL, REASONS_INFO
from loadtest.traffic import admin, capture, ipc, sse, usual, words
from loadtest.traffic import decode as decode_module
from loadtest.traffic.ask import Ask
from loadtest.traffic.capture import SLICE, ChunkError, Dechunker, Reads, Tap
from loadtest.traffic.decode import Exchange, decode
from loadtest.traffic.ipc import Unframer, frame
from loadtest.traffic.sse import Event, Parser, SseError
from loadtest.traffic.words import Redactor

SECRET = "sk-secret-123"
REDACT = Redactor("http://h", {"Authorization": f"Bearer {SECRET}"})
WORDS = [
    *(b"data", b"data:", b"data: ", b"event: ", b"event: error", b"id: 7", b"id: \x00", b"retry: 3", b"retry:x", b":"),
    *(b" ", b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"\r\r", b"[DONE]", DONE, b"x", b"\xef\xbb\xbf", b"\x00"),
    *("\u2028\u0085é😀".encode(), b"\xff", b"\xe2\x80", b"<html>", b"dat", b"a: b: c", b"data:  two"),
]
JSON = [
    *(b"{}", b"[]", b"null", b"1", b'"a"', b'{"choices":[]}', b'{"choices":[{}]}', b'{"choices":{}}'),
    *(b'{"choices":[{"token_ids":[1]}]}', b'{"choices":[{"token_ids":[2147483648]}]}', b'{"error":{"message":"no"}}'),
    *(b'{"error":"sk-secret-123"}', b'{"error":{"message":{"a":[1]},"type":7}}', b'{"object":"error","message":"m"}'),
    *(b'{"detail":"Not Found"}', b'{"detail":[{"msg":"m"}]}', b'{"usage":{"completion_tokens":true},"choices":[]}'),
    *(b'{"choices":[{"finish_reason":"length"}]}', b'{"choices":[{"text":"a","finish_reason":5}]}'),
    *(b'{"choices":[{"token_ids":"x"}],"usage":{"completion_tokens":-1}}', b"[" * 300 + b"]" * 300, b'{"a":"\\ud800"}'),
    *(b'{"choices":[{"token_ids":[-1]}]}', b'{"choices":[{},{}]}', b'{"choices":[null]}', b"1e999", b"9" * 30),
]
ENDINGS = ("end", "close", "cut", "refused", "protocol", "stalled", "cancelled")


def damaged(r: random.Random, data: bytes) -> bytes:
    """`data` with a few wounds, or none."""
    out = bytearray(data)
    for _ in range(r.choice((0, 0, 1, 1, 2, 5))):
        at = r.randrange(len(out) + 1)
        match r.randrange(5):
            case 0:
                out[at:at] = r.randbytes(r.randrange(1, 4))
            case 1:
                del out[at : at + r.randrange(1, 9)]
            case 2:
                out[at : at + 1] = bytes([r.randrange(256)])
            case 3:
                out[at:at] = out[at : at + r.randrange(1, 30)]
            case _:
                out[at:at] = r.choice(WORDS)
    return bytes(out)


def pieces(r: random.Random, data: bytes) -> list[bytes]:
    """The same bytes in pieces."""
    if not data or r.random() < 0.2:
        return [data]
    if r.random() < 0.1:
        return [data[i : i + 1] for i in range(len(data))]
    cuts = [0, *sorted(r.randrange(len(data) + 1) for _ in range(r.randrange(1, 8))), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(cuts)]


def stream(r: random.Random) -> bytes:
    """Bytes that look like an answer's body, more or less."""
    kind = r.random()
    if kind < 0.4:
        return damaged(r, b"".join(r.choices(WORDS, k=r.randrange(1, 25))))
    if kind < 0.5:
        return r.randbytes(r.randrange(60))
    ids = [r.randrange(2**31) for _ in range(r.randrange(1, 6))]
    if kind < 0.7:
        return damaged(r, completion(ids))
    made = (lambda: event(ids[:1]), lambda: usage(len(ids)), lambda: b"data: " + r.choice(JSON) + b"\n\n", lambda: DONE)
    return damaged(r, b"".join(r.choice(made)() for _ in range(r.randrange(1, 7))))


# -- the targets: each raises AssertionError, or what it should not, for a bad input ---------------------------------


def fuzz_sse(r: random.Random, data: bytes) -> None:
    """Agreement with the standard, whatever the pieces."""
    parser = Parser()
    events: list[Event] = []
    for piece in pieces(r, data):
        events += parser.feed(piece)
    events += parser.eof()
    found, rest = source(data)
    left = leftover(data)
    expected = found.dispatched + ([left] if left else [])
    if rest:
        found.process_line(rest)
    assert [(_text(e.kind), _text(e.data)) for e in events] == expected
    assert [e.partial for e in events] == [False] * (len(expected) - bool(left)) + [True] * bool(left)
    assert parser.ignored == found.ignored
    _bounded(r, data)


def _bounded(r: random.Random, data: bytes) -> None:
    """What a parser with small bounds holds back is small, and an error is the same whatever the pieces."""
    outcomes = []
    for parts in ([data], pieces(r, data)):
        parser = Parser(max_line=24, max_event=40)
        got: list[Event] = []
        try:
            for part in parts:
                got += parser.feed(part)
                assert sum(map(len, parser._tail)) <= 24
                assert parser._data_size <= 40
            got += parser.eof()
            outcomes.append((got, ""))
        except SseError as e:
            outcomes.append((got + e.events, str(e)))
    assert outcomes[0] == outcomes[1]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def fuzz_chunks(r: random.Random, data: bytes) -> None:
    """Agreement with a reader that has the whole body before it, whatever the pieces."""
    body = b"".join(b"%x%s\r\n%s\r\n" % (len(p), r.choice((b"", b";a=b")), p) for p in pieces(r, data) if p)
    coded = damaged(r, body + b"0\r\n" + r.choice((b"", b"A: b\r\n")) + b"\r\n" + r.choice((b"", b"HTTP/1.1 200")))
    dechunker = Dechunker()
    payload = b""
    try:
        for piece in pieces(r, coded):
            payload += dechunker.feed(piece)
            if dechunker.done:
                break
        got: tuple[bytes, bool] | None = (payload, dechunker.done)
    except ChunkError:
        got = None
    expected = plain(coded)
    if got is None:
        assert expected is None or not expected[1]
    else:
        assert expected is not None
        assert got == expected


def plain(coded: bytes) -> tuple[bytes, bool] | None:
    """(payload, whether it is whole) of a chunked body in memory; None when it breaks RFC 9112, section 7.1."""
    out, at = b"", 0
    while True:
        end = coded.find(b"\r\n", at)
        if end < 0:
            return out, False
        size = coded[at:end].split(b";")[0].rstrip(b" \t")
        if not size or len(size) > 12 or any(c not in b"0123456789abcdefABCDEF" for c in size):
            return None
        at, count = end + 2, int(size, 16)
        if count == 0:
            break
        out += coded[at : at + count]
        at += count
        if at > len(coded):
            return out, False
        if coded[at : at + 2] != b"\r\n":
            return None if coded[at : at + 2] not in (b"", b"\r") else (out, False)
        at += 2
    while True:  # trailers
        end = coded.find(b"\r\n", at)
        if end < 0:
            return out, False
        if end == at:
            return out, True
        at = end + 2


def fuzz_decode(r: random.Random, data: bytes) -> None:
    """A record of the closed vocabulary, consistent with its columns, without the secret, that the journal takes."""
    ask = Ask(1, "a", [1, 2, 3], r.randrange(1, 6), ignore_eos=r.random() < 0.8)
    status = r.choice((200, 200, 200, 200, 404, 500, 0))
    kind = r.choice(("text/event-stream", "text/event-stream", "TEXT/event-stream; charset=utf-8", "text/html", ""))
    parts = pieces(r, data)
    reads = range(100, 100 + len(parts)), parts
    ending = r.choice(ENDINGS)
    found = decode(Exchange(ask, 50, 60, 1000, status, kind, *reads, ending, "words"), REDACT)
    s = found.record
    assert (s.outcome == "ok") == (s.reason == "")
    assert s.reason in ("", *REASONS_FAIL, *REASONS_INFO)
    assert s.outcome == ("ok" if not s.reason else "fail" if s.reason in REASONS_FAIL else "info")
    assert s.tokens == len(found.ids) == len(found.arrivals)
    assert (s.first_ns == 0) == (s.tokens == 0)
    assert s.first_ns <= s.last_ns
    if s.outcome == "ok":
        assert (s.status, s.done) == (200, True)
        assert s.finish in ("length", "stop")
        assert 0 <= s.tokens <= ask.max_tokens or s.text_only
        assert b"[DONE]" in data
    line = encode(s)
    assert SECRET.encode() not in line
    assert len(s.detail) <= 300
    orjson.loads(line)


def fuzz_shapes(r: random.Random, data: bytes) -> None:
    """Agreement with a decoder that parses each event, whatever stands between, before and in them."""
    text = (b"", b" word", b"x" * 40, b" \\n", "\u2028é".encode(), b'"', b'","token_ids":[7', b"\x7f", b"]")
    spoken = b'{"choices":[{"text":"%s","finish_reason":null,"token_ids":[%s]}]%s}'
    mute = b'{"choices":[{"token_ids":[%s]}]}'
    odd = (b"00", b"-1", b"1,2", b"2147483648", b"")
    between = (event([5], "length"), DONE, b"\n", b": ping\n\n", b"event: error\n", b"data: x\n", b"\r")
    ends = (b',"usage":null', b',"usage":{"completion_tokens":3}', b',"error":1')
    reads = []
    for _ in range(r.randrange(2, 100)):
        word = r.choice(text[:3] if r.random() < 0.8 else text)
        number = b"%d" % r.randrange(2**31) if r.random() < 0.9 else r.choice(odd)
        more = b"" if r.random() < 0.9 else r.choice(ends)
        json = spoken % (word, number, more) if r.random() < 0.95 else mute % number
        reads.append(b"data: " + json + (b"\n\n" if r.random() < 0.95 else r.choice(WORDS)))
        if r.random() < 0.1:
            reads.append(r.choice((*between, data[:20])))
        if r.random() < 0.1:
            reads[-1] = damaged(r, reads[-1])
    exchange = Exchange(
        *(Ask(1, "a", [1], 8), 50, 60, 1000, 200, "text/event-stream"),
        *(range(100, 100 + len(reads)), reads),
        r.choice(ENDINGS),
    )
    found, tries = decode(exchange, REDACT), decode_module.TRIES
    decode_module.TRIES = 0
    try:
        assert found == decode(exchange, REDACT)
    finally:
        decode_module.TRIES = tries


class _Sink(asyncio.Protocol):
    """Takes what aiohttp would get, and is a transport that is closing."""

    broken = False

    def abort(self) -> None:
        """As a transport's."""
        self.broken = True

    def is_closing(self) -> bool:
        """As a transport's."""
        return True


def fuzz_tap(r: random.Random, data: bytes) -> None:
    """Agreement with a reader that has the whole body before it, and the stamps in order."""
    size = r.randrange(1, 40)
    parts = [data[at : at + size] for at in range(0, len(data), size)] * r.randrange(1, 4)
    chunks = [b"%x\r\n%s\r\n" % (len(p), p) for p in parts]
    if r.random() < 0.3:
        chunks = [damaged(r, c) if r.random() < 0.1 else c for c in chunks]
    cut = chunks if r.random() < 0.7 else pieces(r, b"".join(chunks))
    sink, clock = _Sink(), itertools.count(1)
    reads = Reads(1 << 20, lambda: next(clock))
    tap = Tap(sink, sink, reads)  # type: ignore[arg-type]
    tap.data_received(CHUNKED)
    for piece in [*cut, b"0\r\n\r\n"]:
        for at in range(0, len(piece), SLICE):  # longer reads wait for the loop
            tap.data_received(piece[at : at + SLICE])
    expected = plain(b"".join(cut) + b"0\r\n\r\n")
    assert sink.broken == (expected is None)
    got = b"".join(reads.payloads)
    assert expected is None or got == expected[0]
    stamps = list(reads.stamps)
    assert stamps == sorted(stamps)


def fuzz_admin(r: random.Random, data: bytes) -> None:
    """An outcome of the closed set; what is not understood is `info`."""
    body = damaged(r, r.choice(JSON)) if r.random() < 0.7 else data
    status = r.choice((200, 200, 201, 204, 301, 307, 400, 401, 404, 408, 422, 429, 500, 502, 503, 504, 999))
    outcome, reason, message = admin._sort(admin._Reply(status, body))
    assert outcome in ("ok", "fail", "info")
    assert (outcome == "ok") == (reason == "")
    assert outcome != "ok" or status == 200
    if outcome == "fail" and status not in (307, 308):
        parsed = orjson.loads(body)
        assert isinstance(parsed, dict)
        assert {"error", "detail", "object"} & set(parsed)
    assert SECRET not in REDACT(message, 500)
    encode(records.Ack(1, outcome, 5, status, reason, REDACT(message, 500)))


def fuzz_frames(r: random.Random, data: bytes) -> None:
    """Messages or FrameError, the same whatever the pieces; never more than what was sent."""
    good = b"".join(frame({"op": "x", "n": i}) for i in range(r.randrange(4)))
    sent = damaged(r, good + r.choice((b"", data[:40])))
    outcomes = []
    for parts in ([sent], pieces(r, sent)):
        unframer = Unframer()
        got = []
        try:
            for part in parts:
                got += unframer.feed(part)
            outcomes.append(got)
        except LoadtestError:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1]


TARGETS: dict[str, tuple[Callable[[random.Random, bytes], None], float]] = {
    "sse": (fuzz_sse, 0.4),
    "decode": (fuzz_decode, 0.15),
    "shapes": (fuzz_shapes, 0.15),
    "chunks": (fuzz_chunks, 0.1),
    "tap": (fuzz_tap, 0.05),
    "admin": (fuzz_admin, 0.1),
    "frames": (fuzz_frames, 0.05),
}


def fuzz(name: str, count: int, seed: int) -> float:
    """`count` inputs for one target; seconds. Raises what the target raises, with the input's number in a note."""
    target, began = TARGETS[name][0], time.monotonic()
    for number in range(count):
        r = random.Random(f"{seed}-{name}-{number}")
        data = stream(r)
        try:
            target(r, data)
        except BaseException as e:
            e.add_note(f"fuzz({name!r}) of seed {seed}, input {number}: {data!r}")
            raise
    return time.monotonic() - began


def guided(name: str, arguments: list[str]) -> None:
    """Coverage-guided, by atheris; does not return."""
    import atheris

    target = TARGETS[name][0]

    def one(data: bytes) -> None:
        target(random.Random(data[:8]), data[8:])

    for module in (admin, capture, decode_module, ipc, sse, usual, words):
        for owner in (module, *(c for c in vars(module).values() if isinstance(c, type))):
            for function in vars(owner).values():
                if isinstance(function, FunctionType) and function.__module__ == module.__name__:
                    atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def main() -> None:
    """A line for each target."""
    p = argparse.ArgumentParser()
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--only", choices=TARGETS)
    p.add_argument("--atheris", choices=TARGETS)
    options, rest = p.parse_known_args()
    if options.atheris:
        guided(options.atheris, rest)
    total = int(os.environ.get("LOADTEST_FUZZ", "1000"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, (_, share) in TARGETS.items():
        if options.only in (None, name):
            count = total if options.only else round(total * share)
            print(f"{name:8} {count:8} inputs, {fuzz(name, count, options.seed):6.1f} s, no disagreement", flush=True)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak memory grew by {(after - before) / 1024:.1f} MB")


if __name__ == "__main__":
    main()
