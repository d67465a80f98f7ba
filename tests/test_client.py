"""StreamClient over real sockets, against answers written byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import socket
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from rawserver import CHUNKED, CLOSED, DONE, LAST_CHUNK, SSE_HEAD, Call, RawServer, completion, event, usage

from loadtest.records import Event, Record, Send, Stream
from loadtest.traffic.ask import Ask
from loadtest.traffic.capture import Dechunker, Reads, Tap
from loadtest.traffic.client import Limits, Options, StreamClient, open_session
from loadtest.traffic.words import Redactor

IDS = [11, 12, 13, 14]


@dataclass
class Memory:
    """A journal in memory."""

    records: list[Record] = field(default_factory=list)
    ids: dict[int, list[int]] = field(default_factory=dict)
    arrivals: dict[int, list[int]] = field(default_factory=dict)
    prompts: dict[int, list[int]] = field(default_factory=dict)

    def emit(self, record: Record, flush: bool = False) -> bool:
        self.records.append(record)
        return True

    def stream(self, record: Stream, ids: array, arrivals_us: array, prompt: Sequence[int] = ()) -> Stream:
        self.ids[record.stream] = list(ids)
        self.arrivals[record.stream] = list(arrivals_us)
        self.prompts[record.stream] = list(prompt)
        self.records.append(record)
        return record


def ask(stream: int = 1, **more: object) -> Ask:
    return Ask(stream=stream, adapter="tenant-a", prompt=[1, 2, 3], max_tokens=4, user="u-1", **more)


Use = Callable[[StreamClient, Memory, RawServer], Awaitable[None]]


def play(script: Callable[[Call], Awaitable[None]], use: Use, *, keep: bool = False, **options: object) -> Memory:
    """Run `use` with a client of a server that answers by `script`."""
    memory = Memory()

    async def main() -> None:
        server = RawServer(script, keep)
        async with server.running(), open_session({}, 5) as session:
            client = StreamClient(session, server.url, memory, options=Options(**options))
            await use(client, memory, server)

    asyncio.run(main())
    return memory


def one(script: Callable[[Call], Awaitable[None]], **options: object) -> Stream:
    """The record of one stream."""
    found: list[Stream] = []

    async def use(client: StreamClient, memory: Memory, server: RawServer) -> None:
        found.append(await asyncio.wait_for(client.stream(ask()), 10))

    play(script, use, **options)
    return found[0]


def says(data: bytes) -> Callable[[Call], Awaitable[None]]:
    async def script(call: Call) -> None:
        await call.send(data)

    return script


def chunked(*parts: bytes) -> bytes:
    return CHUNKED + b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts) + LAST_CHUNK


def test_a_complete_stream_and_what_was_sent() -> None:
    seen: list[Call] = []

    async def script(call: Call) -> None:
        seen.append(call)
        await call.send(CHUNKED)
        for i in IDS[:-1]:
            await call.chunk(event([i]))
        await call.chunk(event(IDS[-1:], "length"))
        await call.chunk(usage(4) + DONE)
        await call.send(LAST_CHUNK)

    async def use(client: StreamClient, memory: Memory, server: RawServer) -> None:
        record = await client.stream(ask(extra={"cache_salt": "s"}))
        assert (record.outcome, record.detail, record.tokens, record.usage) == ("ok", "", 4, 4)
        assert record.sent_ns <= record.head_ns <= record.first_ns <= record.last_ns <= record.ended_ns

    memory = play(script, use)
    send, stream = memory.records
    assert isinstance(send, Send)
    assert isinstance(stream, Stream)
    assert (send.stream, send.sent_ns, send.intended_ns) == (stream.stream, stream.sent_ns, stream.sent_ns)
    assert memory.ids[1] == IDS
    assert memory.prompts[1] == [1, 2, 3]
    assert memory.arrivals[1] == sorted(memory.arrivals[1])
    assert seen[0].path == "/v1/completions"
    assert seen[0].json == {
        "model": "tenant-a",
        "prompt": [1, 2, 3],
        "max_tokens": 4,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "ignore_eos": True,
        "cache_salt": "s",
    }


def test_base_goes_by_the_servers_name() -> None:
    models = []

    async def script(call: Call) -> None:
        models.append(call.json["model"])
        await call.send(chunked(completion(IDS)))

    async def use(client: StreamClient, memory: Memory, server: RawServer) -> None:
        assert (await client.stream(replace(ask(), adapter="base"))).adapter == "base"

    play(script, use, model_base="Qwen/Qwen2.5-0.5B")
    assert models == ["Qwen/Qwen2.5-0.5B"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_any_chunking_is_the_same_stream(size: int) -> None:
    data = completion(IDS)
    record = one(says(chunked(*(data[i : i + size] for i in range(0, len(data), size)))))
    assert (record.outcome, record.tokens) == ("ok", 4)


@pytest.mark.parametrize("size", [1, 5, 50])
def test_any_segmentation_is_the_same_stream(size: int) -> None:
    data = chunked(completion(IDS))

    async def script(call: Call) -> None:
        for i in range(0, len(data), size):
            await call.send(data[i : i + size])
            await asyncio.sleep(0)

    assert one(script).outcome == "ok"


def test_payload_that_looks_like_the_last_chunk() -> None:
    text = event(IDS[:2], text="0\r\n\r\n") + b": 0\r\n\r\n"

    async def script(call: Call) -> None:
        await call.send(CHUNKED)
        await call.chunk(text[:-5])
        await call.chunk(text[-5:])
        await asyncio.sleep(0.02)
        await call.chunk(event(IDS[2:], "length") + DONE)
        await call.send(LAST_CHUNK)

    assert one(script).outcome == "ok"


def test_http_1_0_and_bodies_that_end_with_the_connection() -> None:
    head = b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    assert one(says(head + completion(IDS))).outcome == "ok"
    assert one(says(CLOSED + completion(IDS))).outcome == "ok"
    assert one(says(CLOSED + event(IDS, "length"))).reason == "cut"


def test_content_length() -> None:
    body = completion(IDS)
    head = SSE_HEAD + b"Content-Length: %d\r\n\r\n"
    assert one(says(head % len(body) + body)).outcome == "ok"
    short = one(says(head % (len(body) + 9) + event(IDS, "length")))
    assert (short.outcome, short.reason) == ("fail", "cut")


def test_gzip_is_undone() -> None:
    body = gzip.compress(completion(IDS))
    assert (
        one(says(SSE_HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body)).outcome == "ok"
    )
    bad = SSE_HEAD + b"Content-Encoding: gzip\r\nContent-Length: 9\r\n\r\nnot gzip!"
    assert one(says(bad)).reason == "protocol"


def test_a_body_without_end_is_given_up() -> None:
    bomb = gzip.compress(b":\n" * (1 << 20))
    head = SSE_HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    record = one(says(head + bomb), limits=Limits(kept_bytes=1 << 20))
    assert (record.outcome, record.reason) == ("fail", "protocol")
    assert "longer than 1048576 bytes" in record.detail


def test_cut_by_close_and_by_reset() -> None:
    async def close(call: Call) -> None:
        await call.send(CHUNKED)
        await call.chunk(event(IDS[:2]))

    async def reset(call: Call) -> None:
        await close(call)
        call.reset()

    closed = one(close)
    assert (closed.outcome, closed.reason, closed.tokens, closed.status) == ("fail", "cut", 2, 200)
    assert one(reset).reason == "cut"


def test_done_and_then_a_reset_is_complete() -> None:
    async def script(call: Call) -> None:
        await call.send(CHUNKED)
        await call.chunk(completion(IDS))

    assert one(script).outcome == "ok"


@pytest.mark.parametrize(
    "tail", [b"zz\r\nwhat\r\n", b"-1\r\n\r\n", b"4\r\nabcdefgh\r\n0\r\n\r\n", b"ffffffffffffffffffff\r\nx"]
)
def test_bad_chunking_is_named_and_does_not_hang(tail: bytes) -> None:
    async def script(call: Call) -> None:
        await call.send(CHUNKED)
        await call.chunk(event(IDS[:1]))
        await asyncio.sleep(0.02)
        await call.send(tail)
        await call.wait_left()

    record = one(script)
    assert (record.outcome, record.reason, record.tokens) == ("fail", "protocol", 1)


def test_no_http_at_all() -> None:
    assert one(says(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")).reason == "protocol"
    assert one(says(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n")).reason == "protocol"


def test_refused() -> None:
    async def close(call: Call) -> None:
        return

    async def reset(call: Call) -> None:
        call.reset()

    for script in (close, reset, says(b"HTTP/1.1 200 O")):
        record = one(script)
        assert (record.outcome, record.reason, record.status) == ("fail", "refused", 0), record.detail

    memory = Memory()

    async def nobody() -> Stream:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            async with open_session({}, 5) as session:
                return await StreamClient(session, f"http://127.0.0.1:{s.getsockname()[1]}", memory).stream(ask())

    record = asyncio.run(nobody())
    assert [r.kind for r in memory.records] == ["send", "stream"]  # nothing was sent again
    assert (record.outcome, record.reason) == ("fail", "refused")
    assert "Connect call failed" in record.detail


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_close_between_two_requests_is_not_held_against_the_server(how: str) -> None:
    served: dict[asyncio.StreamWriter, int] = {}

    async def once(call: Call) -> None:
        """Answers the first request of a connection and ends it at the second, as a server that closed it meanwhile."""
        served[call.writer] = served.get(call.writer, 0) + 1
        if served[call.writer] == 1:
            await call.send(CHUNKED)
            await call.chunk(completion(IDS))
            await call.send(LAST_CHUNK)
        elif how == "reset":
            call.reset()
        else:
            call.writer.close()

    async def two(client: StreamClient, memory: Memory, server: RawServer) -> None:
        found = [await client.stream(ask(1)), await client.stream(ask(2))]
        assert [(r.outcome, r.reason, r.tokens) for r in found] == [("ok", "", 4)] * 2, found[1].detail

    memory = play(once, two, keep=True)
    assert sorted(served.values()) == [1, 2]
    assert [r.what for r in memory.records if isinstance(r, Event)] == ["resent"]


def test_a_request_that_is_answered_by_a_close_on_a_connection_of_its_own_is_refused() -> None:
    """Also after one that was sent again: the second connection is new."""
    served: dict[asyncio.StreamWriter, int] = {}

    async def first_only(call: Call) -> None:
        served[call.writer] = served.get(call.writer, 0) + 1
        if len(served) > 1 or served[call.writer] > 1:
            call.reset()
            return
        await call.send(CHUNKED)
        await call.chunk(completion(IDS))
        await call.send(LAST_CHUNK)

    async def two(client: StreamClient, memory: Memory, server: RawServer) -> None:
        assert (await client.stream(ask(1))).outcome == "ok"
        assert (await client.stream(ask(2))).reason == "refused"

    play(first_only, two, keep=True)


def test_rejected_and_redirected() -> None:
    body = b'{"error":{"message":"The model `tenant-a` does not exist.","type":"NotFoundError","code":404}}'
    record = one(says(b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n" % len(body) + body))
    assert (record.outcome, record.reason, record.status) == ("fail", "rejected", 404)
    assert "NotFoundError: The model `tenant-a` does not exist." in record.detail

    calls = []

    async def redirect(call: Call) -> None:
        calls.append(call.path)
        await call.send(b"HTTP/1.1 307 Moved\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")

    assert one(redirect).status == 307
    assert calls == ["/v1/completions"]


def test_in_band_error_under_200() -> None:
    data = event(IDS[:1]) + b'data: {"error":{"message":"EngineCore died","type":"InternalServerError"}}\n\n' + DONE
    record = one(says(chunked(data)))
    assert (record.reason, record.done, record.tokens) == ("in_band_error", True, 1)
    assert "EngineCore died" in record.detail


def test_not_sse() -> None:
    record = one(says(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"))
    assert (record.outcome, record.reason) == ("fail", "protocol")


def test_deadlines() -> None:
    async def silent(call: Call) -> None:
        await call.wait_left()

    async def stops(call: Call) -> None:
        await call.send(CHUNKED)
        await call.chunk(event(IDS[:1]))
        await call.wait_left()

    async def drips(call: Call) -> None:
        await call.send(CHUNKED)
        with contextlib.suppress(ConnectionError):
            while not call.writer.is_closing() and not call.reader.at_eof():
                await call.chunk(b": keep\n\n")
                await asyncio.sleep(0.02)

    record = one(silent, limits=Limits(stall_s=0.1))
    assert (record.outcome, record.reason, record.status) == ("info", "stalled", 0)
    record = one(stops, limits=Limits(stall_s=0.1))
    assert (record.reason, record.tokens) == ("stalled", 1)
    assert "no byte for 0.1 s" in record.detail
    record = one(drips, limits=Limits(stream_deadline_s=0.3, stall_s=0.2))
    assert (record.outcome, record.reason) == ("info", "stalled")
    assert "not over after 0.3 s" in record.detail


@pytest.mark.parametrize("with_head", [False, True])
def test_cancel_is_journaled_seen_by_the_server_and_raised(with_head: bool) -> None:
    left = []

    async def script(call: Call) -> None:
        if with_head:
            await call.send(CHUNKED)
            await call.chunk(event(IDS[:1]))
        await call.wait_left()
        left.append(True)

    async def use(client: StreamClient, memory: Memory, server: RawServer) -> None:
        task = asyncio.ensure_future(client.stream(ask()))
        while not server.calls:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05 if with_head else 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while not left:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    memory = play(script, use)
    record = memory.records[-1]
    assert isinstance(record, Stream)
    assert (record.outcome, record.reason, record.tokens) == ("info", "cancelled", int(with_head))
    assert memory.ids[1] == ([11] if with_head else [])


@pytest.mark.parametrize("hurried", [False, True])
def test_many_cancelled_together_are_decoded_in_turns_unless_they_are_hurried(hurried: bool) -> None:
    turns, journaled = [0], []

    async def script(call: Call) -> None:
        await call.send(CHUNKED)
        await call.chunk(b"".join(event([i]) for i in range(200)))
        await call.wait_left()

    async def heart() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    async def use(client: StreamClient, memory: Memory, server: RawServer) -> None:
        beating = asyncio.ensure_future(heart())
        tasks = [asyncio.ensure_future(client.stream(replace(ask(i), max_tokens=300))) for i in range(40)]
        while len(server.calls) < 40:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        real = memory.stream
        memory.stream = lambda *a: (journaled.append(turns[0]), real(*a))[1]
        for _ in range(2 if hurried else 1):
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0)
        assert {type(e) for e in await asyncio.gather(*tasks, return_exceptions=True)} == {asyncio.CancelledError}
        beating.cancel()

    memory = play(script, use)
    records = [r for r in memory.records if isinstance(r, Stream)]
    assert [(r.reason, r.tokens) for r in records] == [("cancelled", 200)] * 40
    assert len(set(journaled)) > 20 if not hurried else len(set(journaled)) <= 3


def test_connections_are_used_again_after_complete_streams_only() -> None:
    async def script(call: Call) -> None:
        if call.json["model"] == "tenant-a":
            await call.send(chunked(completion(IDS)))
        else:
            await call.send(CHUNKED)
            await call.wait_left()

    async def use(client: StreamClient, memory: Memory, server: RawServer) -> None:
        for i in range(3):
            assert (await client.stream(ask(i))).outcome == "ok"
        assert server.connections == 1
        assert (await client.stream(replace(ask(8), adapter="b"))).reason == "stalled"
        assert (await client.stream(ask(9))).outcome == "ok"
        assert server.connections == 2

    play(script, use, keep=True, limits=Limits(stall_s=0.1))


def test_many_streams_at_once() -> None:
    async def script(call: Call) -> None:
        await call.send(CHUNKED)
        for i in IDS[:-1]:
            await call.chunk(event([i]))
            await asyncio.sleep(0.005)
        await call.chunk(event(IDS[-1:], "length") + usage(4) + DONE)
        await call.send(LAST_CHUNK)

    async def use(client: StreamClient, memory: Memory, server: RawServer) -> None:
        records = await asyncio.gather(*(client.stream(ask(i, intended_ns=5)) for i in range(60)))
        assert {r.outcome for r in records} == {"ok"}
        assert {r.intended_ns for r in records} == {5}

    memory = play(script, use)
    assert len(memory.ids) == 60
    assert all(v == IDS for v in memory.ids.values())


def test_an_ended_stream_leaves_nothing_for_the_garbage_collector() -> None:
    """In a run it is off but for now and then: what waits for it is memory that grows."""

    async def script(call: Call) -> None:
        await call.send(chunked(completion(IDS)))

    async def use(client: StreamClient, memory: Memory, server: RawServer) -> None:
        gc.collect()
        gc.disable()
        try:
            for i in range(20):
                assert (await client.stream(ask(i))).outcome == "ok"
            left = [type(o).__name__ for o in gc.get_objects() if isinstance(o, Tap | Dechunker | Reads)]
        finally:
            gc.enable()
        assert len(left) <= 1  # of the last one, until the loop lets go of it

    play(script, use, keep=True)


def test_secrets_stay_out_of_records() -> None:
    async def script(call: Call) -> None:
        words = b'{"error":{"message":"bad key Bearer sk-verysecret99","type":"Auth"}}'
        await call.send(b"HTTP/1.1 401 No\r\nContent-Length: %d\r\n\r\n" % len(words) + words)

    headers = {"Authorization": "Bearer sk-verysecret99"}
    record = one(script, redact=Redactor("http://x", headers))
    assert record.reason == "rejected"
    assert "verysecret" not in record.detail
