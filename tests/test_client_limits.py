"""What StreamClient allows a stream, and whom it blames when that is not enough."""

from __future__ import annotations

import asyncio
import copy
import errno
import itertools
import socket
from dataclasses import replace

import aiohttp
import pytest
from rawserver import CHUNKED, LAST_CHUNK, Call, RawServer, completion
from test_client import IDS, Memory, ask, chunked, one, play

from loadtest.records import Event, Send, Stream
from loadtest.scenario import Traffic
from loadtest.traffic.client import KEEPALIVE_S, Limits, Options, StreamClient, open_session
from loadtest.traffic.words import Redactor

MIB = 1024 * 1024


def test_the_usual_limits_are_those_of_a_scenario() -> None:
    usual, limits = Traffic.model_fields, Limits()
    assert (limits.stream_deadline_s, limits.stall_s) == (usual["stream_deadline"].default, usual["stall"].default)
    assert (limits.connect_s, limits.kept_bytes) == (10.0, 64 * MIB)


def test_an_idle_connection_is_given_up_before_the_usual_server_does() -> None:
    """uvicorn, and vLLM with it, keeps an idle connection for 5 s."""
    assert 0 < KEEPALIVE_S < 5


@pytest.mark.parametrize(("kib", "reason"), [(1980, ""), (2100, "protocol")])
def test_an_answer_may_have_two_mebibytes_beside_its_tokens(kib: int, reason: str) -> None:
    """And 4 KiB for each of seven tokens; a read costs more than it brings."""
    comments = (b":" + b"x" * 1022 + b"\n") * kib

    async def script(call: Call) -> None:
        await call.send(CHUNKED)
        await call.chunk(comments)
        await call.chunk(completion(IDS))
        await call.send(LAST_CHUNK)

    assert one(script).reason == reason


@pytest.mark.parametrize(("tokens", "reason"), [(100, "protocol"), (1000, "truncated")])
def test_who_asks_for_more_tokens_may_be_answered_with_more(tokens: int, reason: str) -> None:
    async def script(call: Call) -> None:
        await call.send(CHUNKED)
        await call.chunk((b":" + b"x" * 1022 + b"\n") * 5000)
        await call.chunk(completion(IDS))
        await call.send(LAST_CHUNK)

    async def use(client: StreamClient, memory: Memory, server: RawServer) -> None:
        assert (await client.stream(replace(ask(), max_tokens=tokens))).reason == reason

    play(script, use)


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be measured in the server's place."""
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    async def script(call: Call) -> None:
        await call.send(CHUNKED)
        await call.chunk(completion(IDS))
        await call.send(LAST_CHUNK)

    assert one(script).outcome == "ok"


@pytest.mark.parametrize("kept", [2000, 100_000])
def test_no_answer_takes_more_than_the_limit_of_all(kept: int) -> None:
    async def script(call: Call) -> None:
        await call.send(CHUNKED)
        await call.chunk(b": " + b"x" * 50_000 + b"\n")
        await call.chunk(completion(IDS))
        await call.send(LAST_CHUNK)

    record = one(script, limits=Limits(kept_bytes=kept))
    assert record.reason == ("protocol" if kept == 2000 else "")


def failed(error: Exception) -> Stream:
    """The record of a stream whose request fails with `error`."""

    async def main() -> Stream:
        async with open_session({}, 5) as session:
            session.post = raises
            return await StreamClient(session, "http://127.0.0.1:1", Memory()).stream(ask())

    async def raises(*args: object, **kwargs: object) -> aiohttp.ClientResponse:
        raise copy.copy(error)  # a traceback would keep what it passed through

    return asyncio.run(main())


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM])
def test_a_shortage_of_ours_accuses_nobody(number: int) -> None:
    record = failed(OSError(number, "short"))
    assert (record.outcome, record.reason) == ("info", "cancelled")
    assert "the tester's own machine is short: OSError: " in record.detail


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [
        (OSError(errno.ECONNREFUSED, "no"), "refused", "ConnectionRefusedError: [Errno 111] no"),
        (aiohttp.ClientError(), "refused", "ClientError"),
        (aiohttp.ClientError("gone"), "refused", "ClientError: gone"),
        (ValueError("no number"), "protocol", "ValueError: no number"),
        (TimeoutError("of another kind"), "stalled", "of another kind"),
        (aiohttp.ServerTimeoutError("x"), "stalled", "no connection within 10 s"),
    ],
)
def test_a_failure_has_its_reason_and_its_words(error: Exception, reason: str, words: str) -> None:
    record = failed(error)
    assert (record.reason, record.status) == (reason, 0)
    assert words in record.detail


def test_a_connection_that_nobody_takes_is_given_up() -> None:
    """The queue of a socket that listens but accepts nothing is full at once."""

    async def main() -> Stream:
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(0)
            address = deaf.getsockname()
            fill = [socket.socket() for _ in range(3)]
            for s in fill:
                s.setblocking(False)
                s.connect_ex(address)
            try:
                async with open_session({}, 0.2) as session:
                    options = Options(limits=Limits(connect_s=0.2, stall_s=5))
                    client = StreamClient(session, f"http://127.0.0.1:{address[1]}", Memory(), options=options)
                    return await client.stream(ask())
            finally:
                for s in fill:
                    s.close()

    record = asyncio.run(main())
    assert (record.outcome, record.reason, record.detail) == ("info", "stalled", "no connection within 0.2 s")


def test_a_client_that_stood_still_before_it_began_gives_up_the_stream() -> None:
    """Its clock jumps by an hour before the first look at the deadlines, as when the process is stopped."""
    looks = itertools.count(1)

    async def script(call: Call) -> None:
        await call.wait_left()

    async def main() -> Stream:
        async with RawServer(script).running() as server, open_session({}, 5) as session:
            memory, hour = Memory(), 3600 * 10**9
            client = StreamClient(session, server.url, memory, now_ns=lambda: hour * (1 + (next(looks) > 2)))
            await client.stream(ask())
            return memory.records[-1]

    record = asyncio.run(main())
    assert (record.outcome, record.reason, record.detail) == ("info", "stalled", "no byte for 60 s")


def test_a_server_that_is_gone_by_the_second_try_is_refused() -> None:
    """The connection that had served is closed at its second request, and nobody takes another one."""
    listening: list[asyncio.Server] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await reader.readuntil(b"]")  # of the prompt, near the end of a request
            if listening[0].is_serving():
                writer.write(chunked(completion(IDS)))
                listening[0].close()
        writer.transport.abort()

    async def main() -> list[Stream]:
        listening.append(await asyncio.start_server(serve, "127.0.0.1", 0))
        port = listening[0].sockets[0].getsockname()[1]
        async with open_session({}, 5) as session:
            client = StreamClient(session, f"http://127.0.0.1:{port}", Memory())
            return [await asyncio.wait_for(client.stream(ask(n)), 10) for n in (1, 2)]

    first, second = asyncio.run(main())
    assert first.outcome == "ok"
    assert (second.outcome, second.reason) == ("fail", "refused")
    assert "Connect call failed" in second.detail


def test_the_words_of_a_request_sent_again_are_short_and_without_secrets() -> None:
    """They are the history's: rule 7."""
    served: list[int] = []

    async def once(call: Call) -> None:
        served.append(1)
        if len(served) == 2:
            call.reset()
            return
        await call.send(CHUNKED)
        await call.chunk(completion(IDS))
        await call.send(LAST_CHUNK)

    async def two(client: StreamClient, memory: Memory, server: RawServer) -> None:
        assert [(await client.stream(ask(n))).outcome for n in (1, 2)] == ["ok", "ok"]

    secret = "served before was closed"
    memory = play(once, two, keep=True, redact=Redactor("http://x", {"Authorization": f"Bearer {secret}"}))
    resent = [r for r in memory.records if isinstance(r, Event)]
    sends = [r for r in memory.records if isinstance(r, Send)]
    assert len(resent) == 1
    assert len(sends) == 2  # one for each stream, not for each request
    assert secret not in resent[0].detail
    assert sends[1].sent_ns <= resent[0].at_ns
    assert resent[0].detail.startswith("sent again, for a connection that had")
