"""How the bytes of a stream were split into reads changes no verdict: through the real decoder, journal and reader."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import FOREVER, Load, Stream
from test_guarantees_oracle import random_history

from loadtest import history, records
from loadtest.analysis.verdict import Require, judge, to_json
from loadtest.journal import Journal
from loadtest.traffic.ask import Ask
from loadtest.traffic.decode import Exchange, decode

ORIGIN, MS = 1_000_000_000, 1_000_000
Reads = list[tuple[int, bytes]]
MARKER = {"v0": 500, "v1": 501, "v2": 502}


def ns(time: float) -> int:
    return ORIGIN + round(time * MS)


def event(fields: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(fields) + b"\n\n"


def body(stream: Stream) -> Reads:
    """One read per event; the end of the body comes with the last token."""
    last = len(stream.tokens) - 1
    reads = []
    for i, token in enumerate(stream.tokens):
        choice = {"index": 0, "text": "é\u2028", "token_ids": [MARKER[token.label]], "finish_reason": None}
        reads.append((ns(token.at), event({"choices": [{**choice, "finish_reason": "length" if i == last else None}]})))
    end = reads[-1][0]
    usage = event({"choices": [], "usage": {"completion_tokens": len(stream.tokens)}})
    return [*reads, (end, b": keep-alive\n\n"), (end, usage), (end, b"data: [DONE]\n\n")]


def joined(reads: Reads) -> Reads:
    """What came at one moment, in one read."""
    out: Reads = []
    for at, data in reads:
        if out and out[-1][0] == at:
            out[-1] = (at, out[-1][1] + data)
        else:
            out.append((at, data))
    return out


def split(reads: Reads, rng: random.Random, pieces: int) -> Reads:
    """Each read in pieces; a piece that completes no event may have come at any time since the read before."""
    out: Reads = []
    before = reads[0][0] - 5 * MS
    for at, data in reads:
        cuts = sorted({0, len(data), *(rng.randrange(len(data) + 1) for _ in range(pieces))})
        for a, b in pairwise(cuts):
            early = b"\n\n" not in data[:b]
            out.append((rng.randint(max(before, out[-1][0] if out else 0), at) if early else at, data[a:b]))
        before = at
    return out


def verdict(loads: list[Load], streams: list[Stream], cut: Callable[[Reads], Reads]) -> dict[str, Any]:
    """Decode, journal, read back and judge."""
    run = records.Run(1, "r", "e0", "local", "boot", 1, 7, ORIGIN, 0, "0.1")
    with TemporaryDirectory() as folder:
        journal = Journal(Path(folder), run)
        for label, token in MARKER.items():
            journal.emit(records.Version("a", label, label, "/p", (token,)))
        for i, k in enumerate(loads):
            who = ("", "setup") if i == 0 else ("real", "scenario")
            journal.emit(records.Invoke(i, "a", "inplace" if i else "load", k.label, f"/{i}", *who, ns(k.start)))
            if k.end < FOREVER:
                journal.emit(records.Ack(i, k.outcome, ns(k.end), 200))
        for i, stream in enumerate(streams):
            reads = cut(body(stream))
            ask = Ask(i, "a", [1, 2], len(stream.tokens))
            sent = ns(stream.sent) - 5 * MS
            at, data = zip(*reads, strict=True)
            found = decode(Exchange(ask, sent, sent, at[-1], 200, "text/event-stream", at, data, "end"))
            assert found.record.outcome == "ok", found.record.detail
            journal.stream(found.record, found.ids, found.arrivals, found.prompt)
        journal.emit(records.Health(ORIGIN, ns(100), 1.0, 2.0, 0.1, 1))
        journal.close("complete", ns(100))
        return to_json(judge(history.load(Path(folder)), Require()))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 12))
def test_how_bytes_were_split_changes_no_verdict(seed: int, pieces: int) -> None:
    rng = random.Random(seed)
    loads, streams = random_history(rng)
    whole = verdict(loads, streams, lambda reads: reads)
    assert verdict(loads, streams, lambda reads: split(reads, rng, pieces)) == whole
    assert verdict(loads, streams, joined) == whole
    assert verdict(loads, streams, lambda reads: split(joined(reads), rng, pieces)) == whole


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32))
def test_one_byte_at_a_time_changes_no_verdict(seed: int) -> None:
    loads, streams = random_history(random.Random(seed))
    single = verdict(
        loads, streams, lambda reads: [(at, data[i : i + 1]) for at, data in reads for i in range(len(data))]
    )
    assert single == verdict(loads, streams, joined)
