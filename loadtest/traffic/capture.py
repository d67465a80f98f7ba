"""Raw reads of a streamed body, stamped where they enter the process and not when a task gets to run.

How it works: `StampedRequest` puts a `Tap` between the transport and aiohttp's protocol before the request leaves. The
tap hands aiohttp everything but the body of a chunked event stream: that it stamps, undoes the chunks of, and keeps.
At the body's end it hands aiohttp an empty last chunk, so that the connection goes back to the pool, and steps aside.
The task that waits for the stream wakes once. Only public names of asyncio and aiohttp are used.

Rules
1. The end of a chunked body is where its framing says; payload bytes that look like a last chunk are payload.
2. Broken framing ends the stream at once, with ChunkError; aiohttp would wait for the connection to end.
3. Any other answer (an error, a body with a length, a compressed one, HTTP/1.0) goes to aiohttp, and `Reads.capture`
   reads it from there: correct too, only stamped later.
4. What may be kept of a body is bounded, each read counting `READ_COST` bytes beside its payload: a server that sends
   one byte at a time must not cost a hundred times what it sends.
5. A long read is taken in slices, with the transport paused and others served in between: a megabyte of chunks of one
   byte takes a quarter of a second, and uvloop reads on as long as there is something to read.
6. A head is bounded as well, in bytes and in interim responses (100 Continue) before it.
7. The usual read, one whole chunk, is recognised by its length and its first and last bytes in `Tap.data_received`. At
   that rate a function call or an attribute that holds a function counts: that method is long on purpose.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import weakref
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar

import aiohttp
from aiohttp.connector import Connection

MAX_HEAD = 64 * 1024
MAX_LINE = 4096  # of a chunk's size with extensions, or of a trailer
MAX_TRAILERS = 64 * 1024
MAX_KNOWN = 64  # events of one stream come in a few sizes
MAX_INTERIM = 32  # guessed: one 100 and a few 103 are usual
SLICE = 8 * 1024  # bytes taken in one go
READ_COST = 64  # bytes that a kept read takes beside its payload: the head of a bytes object, a pointer, a stamp

LAST_CHUNK = b"0\r\n\r\n"
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,12}[ \t]*(;.*)?", re.DOTALL)


class ChunkError(ValueError):
    """The body breaks the chunked transfer coding."""


class TooLarge(ValueError):
    """The body outgrew what may be kept."""


class Dechunker:
    """RFC 9112, section 7.1: transfer coding in, payload out; `done` at the last chunk, `rest` is what follows it."""

    def __init__(self) -> None:
        self.done = False
        self.rest = b""
        self._pending = b""  # an incomplete line
        self._left = 0  # payload bytes missing of the current chunk
        self._known: dict[int, bytes] = {}  # lines of chunks seen so far, by the length of the whole chunk
        self._expect = Dechunker._size  # what comes when nothing is missing; unbound, or each stream were a cycle
        self._trailers = 0

    def feed(self, data: bytes) -> bytes:
        """The payload in `data`. Raises ChunkError."""
        if self._pending:
            data = self._pending + data
        out: list[bytes] = []
        at, end = 0, len(data)
        while at < end and not self.done:
            if self._left:
                piece = data[at : at + self._left]
                out.append(piece)
                at += len(piece)
                self._left -= len(piece)
                continue
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                break
            self._expect(self, data[at:line_end])
            at = line_end + 2
        self._pending = data[at:]
        if self.done:
            self.rest, self._pending = self._pending, b""
        elif len(self._pending) > MAX_LINE or (self._expect is Dechunker._close and self._pending not in (b"", b"\r")):
            raise ChunkError(f"no line end where one is due: {self._pending[:20]!r}")
        return out[0] if len(out) == 1 else b"".join(out)

    @property
    def usual(self) -> dict[int, bytes]:
        """What a read of one whole chunk may begin with, by its length; empty while something is incomplete or over."""
        at_rest = not (self._pending or self._left or self.done) and self._expect is Dechunker._size
        return self._known if at_rest else {}

    def _size(self, line: bytes) -> None:
        if _SIZE.fullmatch(line) is None:
            raise ChunkError(f"{line[:20]!r} is no chunk size")
        self._left = int(line.partition(b";")[0], 16)
        if self._left and line.isalnum() and len(self._known) < MAX_KNOWN:  # extensions can be long: not kept
            self._known[len(line) + self._left + 4] = line + b"\r\n"
        self._expect = Dechunker._close if self._left else Dechunker._trailer

    def _close(self, line: bytes) -> None:
        if line:
            raise ChunkError(f"a chunk is longer than its size says: {line[:20]!r}")
        self._expect = Dechunker._size

    def _trailer(self, line: bytes) -> None:
        self._trailers += len(line) + 2
        if self._trailers > MAX_TRAILERS:
            raise ChunkError(f"trailers of more than {MAX_TRAILERS} bytes")
        self.done = not line


class Reads:
    """The reads of one response: stamps in ns and payloads, in order, as many of one as of the other."""

    __slots__ = (
        "__weakref__",
        "_alive_ns",
        "_error",
        "_over",
        "_waiter",
        "head_ns",
        "limit",
        "now_ns",
        "payloads",
        "reused",
        "room",
        "stamps",
    )

    def __init__(self, limit: int, now_ns: Callable[[], int]) -> None:
        """At most `limit` bytes are kept."""
        self.stamps = array("q")
        self.payloads: list[bytes] = []
        self.head_ns = 0  # 0: no tap has seen a head
        self.reused = False  # the connection had served before, and not a byte has come on it since
        self.now_ns = now_ns
        self.limit = limit
        self.room = limit  # bytes that may still be kept
        self._alive_ns = now_ns()
        self._over = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def last_ns(self) -> int:
        """The last sign of life, at first the start."""
        return max(self._alive_ns, self.stamps[-1]) if self.stamps else self._alive_ns

    def alive(self, stamp: int) -> None:
        """A sign of life that is no read."""
        self._alive_ns = max(self._alive_ns, stamp)

    def add(self, stamp: int, payload: bytes) -> None:
        """Keep one read. Raises TooLarge."""
        self.room -= len(payload) + READ_COST
        if self.room < 0:
            raise TooLarge(f"the body is longer than {self.limit} bytes")
        self.stamps.append(stamp)
        self.payloads.append(payload)

    def end(self, error: Exception | None = None) -> None:
        """The body is over; the first call counts."""
        if self._over:
            return
        self._over, self._error = True, error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def error(self) -> Exception | None:
        """What ended the response early, as far as the tap knows."""
        return self._error

    async def capture(self, response: aiohttp.ClientResponse) -> None:
        """Wait for the end of the body, or read it. Raises what ended it early."""
        if not self.head_ns:
            async for chunk in response.content.iter_any():
                self.add(self.now_ns(), chunk)
            return
        if not self._over:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._error is not None:
            raise self._error


class Tap(asyncio.Protocol):
    """Between a transport and aiohttp's protocol for the length of one response."""

    def __init__(self, inner: asyncio.Protocol, transport: asyncio.Transport, reads: Reads) -> None:
        self._inner = inner
        self._transport = transport
        self._reads = reads
        self._usual: dict[int, bytes] = {}  # Dechunker.usual, while nothing waits
        self._head = b""
        self._interim = 0
        self._chunks: Dechunker | None = None
        self._waiting: deque[tuple[int, bytes]] = deque()  # slices, with the stamp of their read
        self._receive: Callable[[bytes], None] = self._in_head

    def data_received(self, data: bytes) -> None:
        """From the transport."""
        reads = self._reads
        line = self._usual.get(len(data))
        if line is not None and data.startswith(line) and data.endswith(b"\r\n"):  # rule 7
            now_ns = reads.now_ns
            stamp = now_ns()
            room = reads.room - len(data) - READ_COST
            if room >= 0:
                reads.room = room
                reads.stamps.append(stamp)
                reads.payloads.append(data[len(line) : -2])
                return
        receive = self._receive
        receive(data)

    def eof_received(self) -> bool | None:
        """From the transport."""
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """From the transport."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """From the transport."""
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """From the transport."""
        while self._waiting:
            self._take(*self._waiting.popleft())
        if self._chunks is not None:
            words = f"connection lost: {exc}" if exc else "connection closed inside a chunk-coded body"
            self._reads.end(ConnectionResetError(words))
        self._inner.connection_lost(exc)

    def _in_head(self, data: bytes) -> None:
        stamp = self._reads.now_ns()
        self._reads.reused = False
        self._head += data
        while (end := self._head.find(b"\r\n\r\n") + 4) >= 4 and self._head[8:10] == b" 1":
            self._interim += 1  # the head proper follows
            if self._interim > MAX_INTERIM:
                self._break(ChunkError(f"more than {MAX_INTERIM} interim responses"))
                return
            rest = self._head[end:]
            self._inner.data_received(data[: len(data) - len(rest)])
            self._head = data = rest
        if end < 4:
            self._unfinished(data)
            return
        head, rest = self._head[:end], self._head[end:]
        self._head = b""
        if _is_chunked_sse(head):
            self._reads.head_ns = stamp
            self._reads.alive(stamp)
            self._chunks = Dechunker()
            self._receive = self._in_body
            self._inner.data_received(data[: len(data) - len(rest)])
            if rest:
                self._in_body(rest)
        else:
            self._receive = self._inner.data_received
            self._inner.data_received(data)

    def _unfinished(self, data: bytes) -> None:
        if len(self._head) > MAX_HEAD:
            self._break(ChunkError(f"a response head of more than {MAX_HEAD} bytes"))
        elif data:
            self._inner.data_received(data)

    def _break(self, error: Exception) -> None:
        """The response is over, by our decision."""
        self._receive = _drop
        self._usual = {}
        self._waiting.clear()
        self._reads.end(error)
        self._transport.abort()

    def _in_body(self, data: bytes) -> None:
        stamp = self._reads.now_ns()
        if len(data) <= SLICE and not self._waiting:
            self._take(stamp, data)
            return
        if not self._waiting:
            self._usual = {}
            self._transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._next)
        self._waiting.extend((stamp, data[at : at + SLICE]) for at in range(0, len(data), SLICE))

    def _next(self) -> None:
        """Rule 5."""
        if self._waiting:
            self._take(*self._waiting.popleft())
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._next)
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    def _take(self, stamp: int, data: bytes) -> None:
        chunks = self._chunks
        assert chunks is not None
        try:
            payload = chunks.feed(data)
            if payload:
                self._reads.add(stamp, payload)
        except (ChunkError, TooLarge) as e:
            self._break(e)
            return
        self._usual = {} if self._waiting else chunks.usual
        if chunks.done:
            self._receive = self._inner.data_received
            self._inner.data_received(LAST_CHUNK + chunks.rest + b"".join(data for _, data in self._waiting))
            self._waiting.clear()
            if not self._transport.is_closing():
                self._transport.set_protocol(self._inner)
            self._reads.end()


def _drop(data: bytes) -> None:
    """What comes after broken framing means nothing."""


def _is_chunked_sse(head: bytes) -> bool:
    """Whether a response head announces a body that the tap can take: 200, HTTP/1.1, chunked SSE, not compressed."""
    lines = head.lower().split(b"\r\n")
    if not lines[0].startswith(b"http/1.1 200"):
        return False
    fields = [(name.strip(), value.strip()) for name, _, value in (line.partition(b":") for line in lines[1:])]
    codings = [value for name, value in fields if name == b"transfer-encoding"]
    types = [value for name, value in fields if name == b"content-type"]
    others = {name for name, _ in fields} & {b"content-length", b"content-encoding"}
    return codings == [b"chunked"] and not others and len(types) == 1 and types[0].startswith(b"text/event-stream")


# A list of one, emptied when the head has come: a new connection keeps a copy of the context for as long as it lives.
_READS: ContextVar[Sequence[Reads]] = ContextVar("reads", default=())
_SERVED = weakref.WeakSet[asyncio.BaseProtocol]()  # of connections that have carried a request


class StampedRequest(aiohttp.ClientRequest):
    """A request whose response is tapped when `tapping` is in force; the session's `request_class`."""

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """Called by aiohttp with the connection, before any byte of the request is written."""
        transport, protocol = conn.transport, conn.protocol
        for reads in _READS.get():
            if transport is not None and protocol is not None:
                reads.reused = protocol in _SERVED
                _SERVED.add(protocol)
                transport.set_protocol(Tap(protocol, transport, reads))
        return await super().send(conn)


def request_class() -> type[aiohttp.ClientRequest]:
    """What a session makes its requests with; LOADTEST_CAPTURE=iter_any leaves all reading to aiohttp (rule 3)."""
    return aiohttp.ClientRequest if os.environ.get("LOADTEST_CAPTURE") == "iter_any" else StampedRequest


@contextlib.contextmanager
def tapping(reads: Reads) -> Iterator[None]:
    """The requests that this task sends meanwhile are tapped into `reads`."""
    own = [reads]
    token = _READS.set(own)
    try:
        yield
    finally:
        own.clear()
        _READS.reset(token)
