"""A server whose every token says when it was emitted: what `loadtest calibrate` measures this tool against.

    python -m loadtest.tools.firehose [RATE]

It prints its port and ends at the EOF of its standard input. Token ids are the CLOCK_MONOTONIC microsecond of their
emission, modulo 2^31. bench/firehose.c says the same in C, at a tenth of the cost; to an engine the two are alike.
"""

from __future__ import annotations

import asyncio
import random
import re
import sys
import time
from typing import cast

ID_SPAN = 1 << 31
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
SHORT = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
EVENT = (
    b'data: {"id":"cmpl-0000000000000000","object":"text_completion","created":1700000000,"model":"base","choices":'
    b'[{"index":0,"text":" token","logprobs":null,"finish_reason":%s,"stop_reason":null,"token_ids":[%d]}]}\n\n'
)
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1,"total_tokens":%d,"completion_tokens":%d}}\n\n'
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_TOKENS = re.compile(rb'"max_tokens":[ \t]*(\d+)')


def _chunk(payload: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(payload), payload)


class Connection(asyncio.Protocol):
    """One request after the other; a POST streams, everything else gets an empty object."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._data = b""
        self._total = self._sent = 0
        self._due = 0.0
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """From the loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass

    def connection_lost(self, exc: Exception | None) -> None:
        """From the loop."""
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """From the loop."""
        self._data += data
        head, end, rest = self._data.partition(b"\r\n\r\n")
        found = _LENGTH.search(head)
        length = int(found[1]) if found else 0
        if not end or len(rest) < length or self._timer is not None:
            return
        body, self._data = rest[:length], rest[length:]
        if not head.startswith(b"POST"):
            self._transport.write(SHORT)
            return
        tokens = _TOKENS.search(body)
        self._total, self._sent = int(tokens[1]) if tokens else 16, 0
        self._transport.write(HEAD)
        self._due = self._loop.time() + random.random() * self._period_s  # phases are spread: the load is even
        self._timer = self._loop.call_at(self._due, self._emit)

    def _emit(self) -> None:
        self._sent += 1
        last = self._sent == self._total
        self._transport.write(_chunk(EVENT % (b'"length"' if last else b"null", time.monotonic_ns() // 1000 % ID_SPAN)))
        if last:
            usage = USAGE % (1 + self._total, self._total)
            self._transport.write(_chunk(usage) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            self._timer = None
            return
        self._due += self._period_s
        self._timer = self._loop.call_at(self._due, self._emit)


async def serve(rate: float) -> None:
    """Serve until the standard input ends; `rate`: tokens a second of each stream."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(1 / rate), "127.0.0.1", 0, backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    over = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), over.set)
    await over.wait()


def main() -> int:
    """Serve; the exit status."""
    from loadtest.traffic.process import loop_factory, raise_file_limit

    raise_file_limit()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0))
    return 0


if __name__ == "__main__":
    sys.exit(main())
