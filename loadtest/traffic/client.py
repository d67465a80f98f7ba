"""One streamed completion over aiohttp: stamp the raw reads, decode after the end, journal both edges.

Rules
1. `send` is journaled before the first byte leaves, `stream` after the end, also when the task is cancelled.
2. While a stream runs, a read costs one stamp and one append. Nothing is parsed before the end.
3. Deadlines are kept here, by one timer per stream that looks at the last read; aiohttp's own sum timeout is off.
4. A server's fault never raises: it is the record's outcome. Only CancelledError passes, after it was journaled and
   the connection closed, so that the server sees its client leave.
5. A shortage on our side (no file descriptors, no ports) is `info`: the server did nothing.
6. No answer takes more memory than what was asked for can need, and never more than `Limits.kept_bytes`.
7. A server may close a connection between two requests whenever it likes. A request that met such a close on a
   connection that had served before, without a byte of an answer, is sent again, and an event `resent` says so.
"""

from __future__ import annotations

import asyncio
import errno
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import aiohttp

from loadtest.records import Event, Record, Send, Stream
from loadtest.traffic.ask import Ask as Ask
from loadtest.traffic.capture import ChunkError, Reads, TooLarge, request_class, tapping
from loadtest.traffic.decode import Decoded, Ending, Exchange, decode, decoding
from loadtest.traffic.fleet import Spread
from loadtest.traffic.words import Redactor

NS = 1_000_000_000
# Below uvicorn's 5 s: a request never meets a connection that the server is about to close, which would look as if
# the server had refused it.
KEEPALIVE_S = 3.0
COMMENTS = 2 * 1024 * 1024  # bytes that any answer may have beside what its tokens need
_JSON = {"Content-Type": "application/json", "Accept": "text/event-stream", "Accept-Encoding": "identity"}
# Errors that say the tester's machine, not the server, is out of something.
_OUR_SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM})


class Sink(Protocol):
    """The part of a Journal that a stream needs."""

    def emit(self, record: Record, flush: bool = False) -> bool: ...

    def stream(
        self, record: Stream, ids: array[int], arrivals_us: array[int], prompt: Sequence[int] = ()
    ) -> Stream: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how much one stream may take."""

    stream_deadline_s: float = 300.0
    stall_s: float = 60.0  # from the send, or the last read, to the next read
    connect_s: float = 10.0
    kept_bytes: int = 64 * 1024 * 1024  # a stream of a million tokens of 60 bytes


@dataclass(frozen=True, slots=True)
class Options:
    """What all streams of a client share."""

    model_base: str = "base"  # the name the server knows the base model by
    limits: Limits = field(default_factory=Limits)
    redact: Redactor = field(default_factory=Redactor)
    spread: Spread = field(default_factory=Spread)  # of a fleet's streams; `url` is its first server's


class _Watch:
    """Expires the enclosing `asyncio.timeout` when a deadline passes; one timer, re-armed lazily."""

    def __init__(self, limits: Limits, reads: Reads, now_ns: Callable[[], int]) -> None:
        self._limits = limits
        self._reads = reads
        self._now_ns = now_ns
        self._end_ns = reads.last_ns + int(limits.stream_deadline_s * NS)
        self._loop = asyncio.get_running_loop()
        self.timeout = asyncio.timeout(None)
        self.words = ""
        self._timer: asyncio.TimerHandle | None = None

    def check(self) -> None:
        """Expire, or look again when the next deadline could pass."""
        now = self._now_ns()
        stall_ns = self._reads.last_ns + int(self._limits.stall_s * NS)
        if now >= min(self._end_ns, stall_ns):
            if self._end_ns <= stall_ns:
                self.words = f"not over after {self._limits.stream_deadline_s:g} s"
            else:
                self.words = f"no byte for {self._limits.stall_s:g} s"
            self.timeout.reschedule(self._loop.time())
            return
        delay = (min(self._end_ns, stall_ns) - now) / NS
        self._timer = self._loop.call_later(delay + 0.001, self.check)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()


@dataclass(slots=True)
class _State:
    """How far one exchange has come."""

    head_ns: int = 0
    status: int = 0
    content_type: str = ""
    framed: bool = True  # the body's end is told by its framing, not by the close
    ending: Ending = "end"
    words: str = ""


class StreamClient:
    """Sends completions of one target; many streams at once, one session."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        journal: Sink,
        *,
        options: Options | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
        reading: set[Reads] | None = None,
    ) -> None:
        """`reading` always holds the reads of the streams that are not journaled yet, for whoever watches."""
        self._session = session
        self.spread = (options or Options()).spread
        self._urls = [u.rstrip("/") + "/v1/completions" for u in self.spread.urls or (url,)]
        self._journal = journal
        self._options = options or Options()
        self._now_ns = now_ns
        self._turn = asyncio.Lock()  # to decode
        self._reading = set() if reading is None else reading

    async def stream(self, ask: Ask) -> Stream:
        """Send `ask` and read to the end; the journaled record. Raises CancelledError only."""
        options = self._options
        body = ask.body(options.model_base if ask.adapter == "base" else ask.adapter)
        sent_ns = self._now_ns()
        self._journal.emit(
            Send(
                stream=ask.stream,
                adapter=ask.adapter,
                user=ask.user,
                intended_ns=ask.intended_ns or sent_ns,
                sent_ns=sent_ns,
                max_tokens=ask.max_tokens,
                ignore_eos=not ask.may_stop_early,
                replica=ask.replica,
            )
        )
        reads = Reads(min(options.limits.kept_bytes, COMMENTS + ask.answer_bytes), self._now_ns)
        self._reading.add(reads)
        try:
            return await self._read(ask, body, sent_ns, reads)
        finally:
            self._reading.discard(reads)

    async def _read(self, ask: Ask, body: bytes, sent_ns: int, reads: Reads) -> Stream:
        state = _State()
        try:
            await self._watched(self._urls[ask.replica], body, reads, state)
        except asyncio.CancelledError:
            state.ending, state.words = "cancelled", "cancelled by the user or the end of the run"
            await self._decoded(self._seen(ask, sent_ns, reads, state))  # at once when it is cancelled again
            raise
        return await self._decoded(self._seen(ask, sent_ns, reads, state))

    async def _decoded(self, exchange: Exchange) -> Stream:
        """Decode, one stream at a time and in steps, so that many that end at once do not make the loop late."""
        steps = decoding(exchange, self._options.redact)
        try:
            async with self._turn:
                for found in steps:
                    if found is not None:
                        return self._keep(found)
                    await asyncio.sleep(0)
            raise AssertionError("decoding ends with a result")
        except asyncio.CancelledError:  # the stream had ended already, or nobody has time for steps
            self._keep(decode(exchange, self._options.redact))
            raise

    def _keep(self, found: Decoded) -> Stream:
        return self._journal.stream(found.record, found.ids, found.arrivals, found.prompt)

    def _seen(self, ask: Ask, sent_ns: int, reads: Reads, state: _State) -> Exchange:
        return Exchange(
            ask=ask,
            sent_ns=sent_ns,
            head_ns=state.head_ns,
            ended_ns=self._now_ns(),
            status=state.status,
            content_type=state.content_type,
            stamps=reads.stamps,
            payloads=reads.payloads,
            ending=state.ending,
            words=state.words,
        )

    async def _watched(self, url: str, body: bytes, reads: Reads, state: _State) -> None:
        """Run the exchange under the deadlines and turn every failure into `state.ending`."""
        watch = _Watch(self._options.limits, reads, self._now_ns)
        try:
            async with watch.timeout:
                watch.check()
                await self._exchange(url, body, reads, state)
            if not state.framed:
                state.ending = "close"
        except TimeoutError as e:
            state.ending = "stalled"
            connect = f"no connection within {self._options.limits.connect_s:g} s"
            state.words = watch.words or (connect if isinstance(e, aiohttp.ServerTimeoutError) else str(e))
        except (aiohttp.ClientError, OSError, ValueError) as e:
            state.ending, state.words = _ending_of(e)
        finally:
            watch.stop()

    async def _exchange(self, url: str, body: bytes, reads: Reads, state: _State) -> None:
        try:
            response = await self._answer(url, body, reads)
        except aiohttp.ClientError:
            if reads.error is not None:  # why the tap ended the connection
                raise reads.error from None
            raise
        try:
            state.head_ns = reads.head_ns or self._now_ns()
            reads.alive(state.head_ns)
            state.content_type = response.headers.get("Content-Type", "")
            coding = response.headers.get("Transfer-Encoding", "")
            state.framed = "chunked" in coding.lower() or "Content-Length" in response.headers
            state.status = response.status
            await reads.capture(response)
        except BaseException:
            response.close()  # the connection is not to be used again, and the server shall see it end
            raise
        response.release()

    async def _answer(self, url: str, body: bytes, reads: Reads) -> aiohttp.ClientResponse:
        """Rule 7. Ends: each turn uses up a connection that had served before."""
        while True:
            try:
                with tapping(reads):
                    return await self._session.post(url, data=body, headers=_JSON, allow_redirects=False)
            except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, aiohttp.ClientConnectionResetError) as e:
                if not reads.reused:
                    raise
                reads.reused = False
                words = f"sent again, for a connection that had served before was closed without a byte: {e}"
                self._journal.emit(Event(self._now_ns(), "resent", self._options.redact(words, 300)))


def open_session(headers: Mapping[str, str], connect_s: float) -> aiohttp.ClientSession:
    """A session without limits, sum time-outs, cookies or proxies, whose reads are stamped. Needs a running loop."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S, ttl_dns_cache=300),
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        request_class=request_class(),
        trust_env=False,
    )


def _ending_of(error: Exception) -> tuple[Ending, str]:
    """(ending, words) of a failed exchange."""
    words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    number = getattr(error, "errno", None)
    if number in _OUR_SHORTAGE:
        return "cancelled", f"the tester's own machine is short: {words}"
    if isinstance(error, TooLarge | ChunkError):
        return "protocol", str(error)
    if _is_garbled(error):
        return "protocol", words
    return "cut", words


def _is_garbled(error: BaseException) -> bool:
    """Whether what came breaks HTTP itself; what merely ends too early does not."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, aiohttp.http_exceptions.ContentEncodingError):
            return True
        early = "Not enough data" in str(chain)
        if isinstance(chain, aiohttp.http_exceptions.HttpProcessingError) and not early:
            return True
        chain = chain.__cause__
    return isinstance(error, ValueError)
