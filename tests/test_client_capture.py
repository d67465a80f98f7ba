"""The chunked coding undone as it arrives, and taps over both kinds of loop."""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections.abc import Callable

import aiohttp
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from rawserver import CHUNKED, DONE, LAST_CHUNK, Call, RawServer, completion, event, usage

from loadtest.traffic import capture
from loadtest.traffic.capture import READ_COST, ChunkError, Dechunker, Reads, Tap, TooLarge, tapping
from loadtest.traffic.client import open_session

parts = st.lists(st.binary(min_size=1, max_size=30) | st.sampled_from([b"0\r\n\r\n", b"\r\n", b"5\r\n"]), max_size=8)


def encode(payloads: list[bytes], extension: bytes = b"", trailers: bytes = b"") -> bytes:
    chunks = b"".join(b"%X%s\r\n%s\r\n" % (len(p), extension, p) for p in payloads)
    return chunks + b"0" + extension + b"\r\n" + trailers + b"\r\n"


def feed(data: bytes, cuts: list[int]) -> Dechunker:
    dechunker = Dechunker()
    places = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    dechunker.payload = b"".join(dechunker.feed(data[a:b]) for a, b in itertools.pairwise(places))
    return dechunker


@given(
    parts,
    st.lists(st.integers(0, 300), max_size=10),
    st.sampled_from([b"", b";a=b", b" ;x"]),
    st.sampled_from([b"", b"A: b\r\nC: d\r\n"]),
)
@settings(max_examples=500, deadline=None)
def test_any_split_gives_the_payload(payloads: list[bytes], cuts: list[int], extension: bytes, trailers: bytes) -> None:
    found = feed(encode(payloads, extension, trailers), cuts)
    assert found.done
    assert found.payload == b"".join(payloads)
    assert found.rest == b""


@given(parts)
@settings(max_examples=100, deadline=None)
def test_bytes_one_by_one_and_no_end_before_the_end(payloads: list[bytes]) -> None:
    data = encode(payloads)
    dechunker = Dechunker()
    for i in range(len(data) - 1):
        dechunker.feed(data[i : i + 1])
        assert not dechunker.done
    dechunker.feed(data[-1:])
    assert dechunker.done


@given(st.binary(max_size=60), st.integers(0, 60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_end_in_payload_or_chunk_error(data: bytes, cut: int) -> None:
    def outcome(cuts: list[int]) -> object:
        try:
            found = feed(data, cuts)
        except ChunkError:
            return "error"
        return found.payload, found.done

    assert outcome([]) == outcome([cut])


@pytest.mark.parametrize(
    "data", [b"zz\r\n", b"-1\r\n", b"0x4\r\nabcd\r\n", b"\r\n", b"4\r\nabcde\r\n", b"f" * 20 + b"\r\n", b"1" * 5000]
)
def test_broken_codings(data: bytes) -> None:
    with pytest.raises(ChunkError):
        Dechunker().feed(data)


def test_endless_trailers_are_refused() -> None:
    with pytest.raises(ChunkError, match="trailers"):
        Dechunker().feed(b"0\r\n" + b"A: b\r\n" * 20_000)


def test_bytes_after_the_end_are_kept_apart() -> None:
    found = feed(b"1\r\nx\r\n" + LAST_CHUNK + b"HTTP/1.1", [])
    assert (found.payload, found.rest) == (b"x", b"HTTP/1.1")


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_stamps_are_those_of_the_reads(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + CHUNKED[:20])
        await asyncio.sleep(0.02)
        await call.send(CHUNKED[20:])
        for i in range(5):
            await asyncio.sleep(0.01)
            await call.chunk(event([i]))
        await call.chunk(usage(5) + DONE)
        await call.send(LAST_CHUNK)

    async def main() -> None:
        async with RawServer(script, keep=True).running() as server, open_session({}, 5) as session:
            for _ in range(2):
                ticks = itertools.count(1)
                reads = Reads(1 << 20, lambda ticks=ticks: next(ticks))
                with tapping(reads):
                    response = await session.post(server.url)
                await reads.capture(response)
                assert b"".join(reads.payloads) == b"".join(event([i]) for i in range(5)) + usage(5) + DONE
                stamps = list(reads.stamps)
                assert len(stamps) >= 3  # the usage chunk may share a read
                assert stamps == sorted(set(stamps))
                assert 0 < reads.head_ns < stamps[0]
            assert server.connections == 1

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_connection_that_stays_keeps_nothing_of_its_first_stream(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """It did: a transport runs in a copy of the context that it was made in."""

    async def script(call: Call) -> None:
        await call.send(CHUNKED)
        await call.chunk(event([1]) + DONE)
        await call.send(LAST_CHUNK)

    async def one(session: aiohttp.ClientSession, url: str) -> weakref.ref[Reads]:
        reads = Reads(1 << 20, lambda: 7)
        with tapping(reads):
            response = await session.post(url)
        await reads.capture(response)
        response.release()
        assert reads.payloads
        return weakref.ref(reads)

    async def main() -> None:
        async with RawServer(script, keep=True).running() as server, open_session({}, 5) as session:
            first = await asyncio.create_task(one(session, server.url))
            await asyncio.sleep(0)
            assert first() is None
            await one(session, server.url)
            assert server.connections == 1

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_body_over_the_limit_ends_the_connection(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def script(call: Call) -> None:
        await call.send(CHUNKED)
        while not call.reader.at_eof():
            await call.chunk(completion([1, 2]))
            await asyncio.sleep(0)

    async def main() -> None:
        async with RawServer(script).running() as server, open_session({}, 5) as session:
            reads = Reads(100_000, lambda: 7)
            with tapping(reads):
                response = await session.post(server.url)
            with pytest.raises(TooLarge, match="longer than 100000 bytes"):
                await reads.capture(response)
            response.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_long_read_is_taken_in_slices_and_the_connection_stays(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    body = b"".join(b"1\r\n%c\r\n" % (97 + i % 26) for i in range(100_000)) + LAST_CHUNK

    async def script(call: Call) -> None:
        await call.send(CHUNKED + body)

    async def main() -> None:
        async with RawServer(script, keep=True).running() as server, open_session({}, 5) as session:
            for _ in range(2):
                reads = Reads(1 << 24, lambda: 7)
                with tapping(reads):
                    response = await session.post(server.url)
                await reads.capture(response)
                response.release()
                assert b"".join(reads.payloads) == bytes(97 + i % 26 for i in range(100_000))
            assert server.connections == 1

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_waits_when_the_connection_ends_is_not_lost(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def script(call: Call) -> None:
        await call.send(CHUNKED + b"".join(b"1\r\nx\r\n" for _ in range(30_000)))

    async def main() -> None:
        async with RawServer(script).running() as server, open_session({}, 5) as session:
            reads = Reads(1 << 24, lambda: 7)
            with tapping(reads):
                response = await session.post(server.url)
            with pytest.raises(ConnectionResetError, match="inside a chunk-coded body"):
                await reads.capture(response)
            assert sum(map(len, reads.payloads)) == 30_000
            response.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000, "interim responses"),
        (b"HTTP/1.1 200 OK\r\nA: b", "response head of"),
    ],
)
def test_a_head_is_bounded(head: bytes, words: str) -> None:
    """A tap of its own: aiohttp has bounds too, but other ones in other versions."""
    broken: list[Exception] = []
    reads = Reads(100, lambda: 7)
    tap = Tap(Keeps(), Aborts(broken), reads)
    for _ in range(20_000 if len(head) < 100 else 1):
        tap.data_received(head)
    assert broken
    assert words in str(reads.error)


class Aborts(asyncio.Transport):
    """Notes that it was aborted."""

    def __init__(self, broken: list[Exception]) -> None:
        super().__init__()
        self._broken = broken

    def abort(self) -> None:
        self._broken.append(ConnectionAbortedError())


def test_a_byte_at_a_time_is_not_free() -> None:
    reads = Reads(READ_COST + 1, lambda: 7)
    reads.add(1, b"x")
    with pytest.raises(TooLarge):
        reads.add(1, b"x")


@given(
    st.lists(st.sampled_from([b"a" * 10, b"b" * 10, b"c" * 300, b"\r\n" * 5, b"0\r\n\r\n", b"d" * 9000]), max_size=12),
    st.lists(st.integers(0, 30_000), max_size=6),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_a_tap_keeps_the_payload_however_it_was_split(payloads: list[bytes], cuts: list[int], apart: bool) -> None:
    """Reads of one whole chunk take a short way, whatever stood before them."""
    chunks = [b"%x\r\n%s\r\n" % (len(p), p) for p in payloads]
    data = b"".join(chunks) + LAST_CHUNK
    ends = list(itertools.accumulate(map(len, chunks))) if apart else []
    places = sorted({0, *(c % len(data) for c in cuts), *ends, len(data)})
    kept, ticks = Keeps(), itertools.count(1)

    async def main() -> Reads:
        reads = Reads(1 << 20, lambda: next(ticks))
        tap = Tap(kept, Paused([]), reads)
        tap.data_received(CHUNKED)
        for a, b in itertools.pairwise(places):
            tap.data_received(data[a:b])
            for _ in range(5):  # slices; a transport would send nothing meanwhile
                await asyncio.sleep(0)
        return reads

    reads = asyncio.run(main())
    assert b"".join(reads.payloads) == b"".join(payloads)
    stamps = list(reads.stamps)
    assert stamps == sorted(stamps)
    assert reads.last_ns == (stamps[-1] if stamps else reads.head_ns)
    assert kept.got == CHUNKED + LAST_CHUNK


class Keeps(asyncio.Protocol):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.got = b""

    def data_received(self, data: bytes) -> None:
        self.got += data


class Paused(Aborts):
    """A transport whose reading can be paused."""

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return True


def test_others_are_served_between_the_slices_of_a_long_read_and_nothing_overtakes_them() -> None:
    """Also where a transport that was paused reads on all the same."""
    body = bytes(97 + i % 26 for i in range(50_000))
    kept: list[int] = []

    async def main() -> Reads:
        reads = Reads(1 << 20, lambda: 7)
        tap = Tap(Keeps(), Paused([]), reads)
        tap.data_received(CHUNKED)
        tap.data_received(b"".join(b"1\r\n%c\r\n" % c for c in body[:-3]))
        tap.data_received(b"3\r\n" + body[-3:] + b"\r\n")
        for _ in range(60):
            kept.append(sum(map(len, reads.payloads)))
            await asyncio.sleep(0)
        return reads

    reads = asyncio.run(main())
    assert b"".join(reads.payloads) == body
    assert kept[0] == 0
    assert all(0 <= b - a <= capture.SLICE for a, b in itertools.pairwise(kept))


def test_a_usual_read_over_the_limit_is_too_large_as_well() -> None:
    reads = Reads(3 * (READ_COST + 20), lambda: 7)
    broken: list[Exception] = []
    tap = Tap(Keeps(), Aborts(broken), reads)
    tap.data_received(CHUNKED)
    for _ in range(5):
        tap.data_received(b"a\r\n0123456789\r\n")
    assert broken
    assert isinstance(reads.error, TooLarge)
    assert len(reads.stamps) == len(reads.payloads) == 3


@pytest.mark.parametrize("more", [0, 1])
def test_trailers_up_to_their_limit_are_taken(more: int) -> None:
    """The empty line that ends them counts, and each line end."""
    line = b"A: " + b"x" * 57 + b"\r\n"  # 62 bytes; 1057 of them and the last line end are 65,536
    data = b"0\r\n" + line * (65_536 // len(line) - 1) + b"x" * more
    data += b"B: " + b"y" * (65_536 - (len(data) - 3 - more) - 7) + b"\r\n\r\n"
    dechunker = Dechunker()
    if more:
        with pytest.raises(ChunkError, match="trailers"):
            dechunker.feed(data)
    else:
        dechunker.feed(data)
        assert dechunker.done


@pytest.mark.parametrize(("length", "good"), [(4096, True), (4097, False)])
def test_a_line_may_be_as_long_as_its_limit_without_an_end(length: int, good: bool) -> None:
    dechunker, line = Dechunker(), b"1;" + b"x" * (length - 2)
    if good:
        assert dechunker.feed(line) == b""
        assert dechunker.feed(b"\r\ny\r\n0\r\n\r\n") == b"y"
    else:
        with pytest.raises(ChunkError, match="no line end"):
            dechunker.feed(line)


SSE = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream; charset=utf-8"


@pytest.mark.parametrize(
    ("head", "taken"),
    [
        (SSE, True),
        (SSE.replace(b": ", b" :\t"), True),
        (SSE.replace(b"1.1", b"1.0"), False),
        (SSE.replace(b"200", b"404"), False),
        (SSE.replace(b"chunked", b"gzip, chunked"), False),
        (SSE + b"\r\nTransfer-Encoding: chunked", False),
        (SSE + b"\r\nContent-Length: 5", False),
        (SSE + b"\r\nContent-Encoding: gzip", False),
        (SSE + b"\r\nContent-Type: text/event-stream", False),
        (SSE.replace(b"text/event-stream", b"text/plain"), False),
        (SSE.replace(b"Transfer-Encoding: chunked\r\n", b""), False),
        (SSE.rpartition(b"\r\n")[0], False),
    ],
)
def test_only_what_the_tap_understands_is_taken(head: bytes, taken: bool) -> None:
    assert capture._is_chunked_sse(head) == taken


@pytest.mark.parametrize("more", [0, 1])
def test_interim_answers_up_to_their_limit_are_skipped(more: int) -> None:
    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" * (32 + more) + CHUNKED)
        await call.chunk(event([1]) + DONE)
        await call.send(LAST_CHUNK)

    async def main() -> None:
        async with RawServer(script).running() as server, open_session({}, 5) as session:
            reads = Reads(1 << 20, lambda: 7)
            with tapping(reads):
                response = await session.post(server.url)
            await reads.capture(response)
            response.close()
            assert b"".join(reads.payloads) == event([1]) + DONE

    if more:
        with pytest.raises(aiohttp.ClientError):
            asyncio.run(main())
    else:
        asyncio.run(main())


def test_only_so_many_sizes_are_remembered() -> None:
    dechunker = Dechunker()
    for n in range(1, 80):
        dechunker.feed(b"%x\r\n" % n + b"x" * n + b"\r\n")
    assert sorted(dechunker.usual) == [len(b"%x" % n) + n + 4 for n in range(1, 65)]


@pytest.mark.parametrize("data", [b"5", b"5\r", b"5\r\nab", b"5\r\nabcde", b"5\r\nabcde\r\n0\r\n\r\n"])
def test_nothing_is_usual_while_a_chunk_is_open_or_all_is_over(data: bytes) -> None:
    dechunker = Dechunker()
    dechunker.feed(b"5\r\nabcde\r\n")
    assert dechunker.usual == {10: b"5\r\n"}
    dechunker.feed(data)
    assert dechunker.usual == {}


@pytest.mark.parametrize(("size", "broken"), [(65_536, 0), (65_537, 1)])
def test_a_head_without_an_end_may_have_64_kib(size: int, broken: int) -> None:
    found: list[Exception] = []
    Tap(Keeps(), Aborts(found), Reads(100, lambda: 7)).data_received(b"x" * size)
    assert len(found) == broken
