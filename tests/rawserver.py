"""A server that answers with exactly the bytes a test wrote: what no HTTP framework lets one send."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import orjson

SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
CHUNKED = SSE_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
CLOSED = SSE_HEAD + b"Connection: close\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


@dataclass
class Call:
    """One request as read, and the connection to answer it on."""

    path: str
    headers: dict[str, str]
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    left: asyncio.Event = field(default_factory=asyncio.Event)  # the client has closed the connection

    @property
    def json(self) -> dict:
        return orjson.loads(self.body)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def reset(self) -> None:
        """End the connection with a RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER 0
        self.writer.transport.abort()

    async def wait_left(self) -> None:
        """Wait until the client closes."""
        with contextlib.suppress(ConnectionError):
            await self.reader.read()
        self.left.set()


Script = Callable[[Call], Awaitable[None]]


@dataclass
class RawServer:
    """Runs `script(call)` for each request; the connection closes after a script unless it returned `keep`."""

    script: Script
    keep: bool = False
    calls: list[Call] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while (call := await self._request(reader, writer)) is not None:
                self.calls.append(call)
                await self.script(call)
                if not self.keep:
                    return
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Call | None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        lines = head.split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Call(lines[0].split(" ")[1], headers, body, reader, writer)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[RawServer]:
        tasks: set[asyncio.Task] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._connection(reader, writer))
            tasks.add(task)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception):
                    raise result


def event(ids: list[int], finish: str | None = None, **more: object) -> bytes:
    """One chunk as vLLM frames it."""
    choice = {"index": 0, "text": "".join(f"<{i}>" for i in ids), "finish_reason": finish, "token_ids": ids, **more}
    return b"data: " + orjson.dumps({"id": "cmpl-1", "object": "text_completion", "choices": [choice]}) + b"\n\n"


def usage(count: int, prompt: int = 3) -> bytes:
    """The usage chunk."""
    counts = {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": count + prompt}
    return b"data: " + orjson.dumps({"id": "cmpl-1", "choices": [], "usage": counts}) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def completion(ids: list[int]) -> bytes:
    """A whole right stream, one token a chunk."""
    events = [event([i]) for i in ids[:-1]] + [event(ids[-1:], "length")]
    return b"".join(events) + usage(len(ids)) + DONE


@contextlib.contextmanager
def serving(script: Script, keep: bool = False) -> Iterator[RawServer]:
    """The server in a thread with a loop of its own, for tests that block."""
    server = RawServer(script, keep)
    ready, over = threading.Event(), threading.Event()

    async def main() -> None:
        async with server.running():
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield server
    finally:
        over.set()
        thread.join(10)


def until(condition: Callable[[], object], patience_s: float = 10.0) -> None:
    """Wait for another process or thread to make `condition` true."""
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.01)
