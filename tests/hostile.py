"""A server that breaks every rule on purpose, in a process of its own: `python tests/hostile.py PORT_FILE`.

The adapter's name chooses what it does, on streams (`model`) and on admin calls (`lora_name`); a GET's name is the
first part of its path. "good" streams a right completion, one token each 20 ms. Every attack goes on until the client
leaves. `seen` of /seen/ lists the Authorization headers that arrived on the address that redirects point to.
"""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rawserver import CHUNKED, DONE, LAST_CHUNK, SSE_HEAD, completion, event, usage

OK = b"HTTP/1.1 200 OK\r\n"
JSON = OK + b"Content-Type: application/json\r\n"
IDS = [11, 12, 13, 14]
PLENTY = 1 << 34  # bytes: more than any attack gets rid of

SEEN: list[str] = []  # Authorization of whatever followed a redirect
Attack = Callable[[socket.socket], None]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def flood(piece: bytes, head: bytes = CHUNKED, framed: bool = True) -> Attack:
    """`head`, then `piece` for ever, as chunks or bare."""
    block = piece * max(1, 65536 // len(piece))

    def attack(s: socket.socket) -> None:
        s.sendall(head)
        for _ in range(PLENTY // len(block)):
            s.sendall(chunk(block) if framed else block)

    return attack


def says(*parts: bytes, every_s: float = 0.0) -> Attack:
    """The parts, then the close."""

    def attack(s: socket.socket) -> None:
        for part in parts:
            s.sendall(part)
            time.sleep(every_s)

    return attack


def trickle(head: bytes, piece: bytes) -> Attack:
    """`head`, then one piece each 50 ms for ever."""

    def attack(s: socket.socket) -> None:
        s.sendall(head)
        while True:
            time.sleep(0.05)
            s.sendall(piece)

    return attack


def good(s: socket.socket) -> None:
    s.sendall(CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    for i in IDS[:-1]:
        s.sendall(chunk(event([i])))
        time.sleep(0.02)
    s.sendall(chunk(event(IDS[-1:], "length")) + chunk(usage(4) + DONE) + LAST_CHUNK)


def one_byte_chunks(s: socket.socket) -> None:
    """A million chunks of one byte: comments, then a right completion."""
    s.sendall(CHUNKED)
    data = (b":" + b"x" * 998 + b"\n") * 1000 + completion(IDS)
    for at in range(0, len(data), 4096):
        s.sendall(b"".join(b"1\r\n%c\r\n" % b for b in data[at : at + 4096]))
    s.sendall(LAST_CHUNK)


def one_byte_reads(s: socket.socket) -> None:
    """As many segments as the machine can send, of one byte of a comment each."""
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    s.sendall(CHUNKED)
    s.sendall(chunk(b":"))
    while True:
        s.sendall(b"1\r\nx\r\n")


def gzip_bomb(head: bytes) -> Attack:
    """A gigabyte of zeros in a megabyte of gzip."""

    def attack(s: socket.socket) -> None:
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        s.sendall(head)
        for _ in range(1024):
            piece = packer.compress(bytes(1 << 20))
            if piece:
                s.sendall(chunk(piece))
        s.sendall(chunk(packer.flush()) + LAST_CHUNK)

    return attack


def redirect(status: int, same: bool) -> Attack:
    """To itself for ever, or to the address that writes down who came."""

    def attack(s: socket.socket) -> None:
        port = s.getsockname()[1]
        where = b"http://127.0.0.1:%d/v1/completions" % port if same else b"http://localhost:%d/seen/" % port
        s.sendall(b"HTTP/1.1 %d Go\r\nLocation: %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % (status, where))

    return attack


def tls_alert(s: socket.socket) -> None:
    """What a TLS port says to plain HTTP."""
    s.sendall(b"\x15\x03\x01\x00\x02\x02\x46")


def length(n: int, body: bytes) -> bytes:
    return SSE_HEAD + b"Content-Length: %d\r\n\r\n%s" % (n, body)


GZIP_HEAD = SSE_HEAD + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
DEEP = b"[" * 1000 + b"]" * 1000
WHOLE = completion(IDS)
CHOICE = b'data: {"choices":[{"index":0,"token_ids":%s}]}\n\n'

# name: (attack, what a stream must end as)
STREAMS: dict[str, tuple[Attack, set[str]]] = {
    "good": (good, {""}),
    "endless_line": (flood(b"data: x"), {"protocol"}),
    "endless_comments": (flood(b":\n"), {"protocol"}),
    "endless_blank_lines": (flood(b"\n"), {"protocol"}),
    "endless_events": (flood(b"data:\n\n"), {"protocol"}),
    "endless_json": (flood(event([11])), {"protocol", "duplicated"}),
    "endless_unframed": (flood(b"data: x\n\n", SSE_HEAD + b"\r\n", framed=False), {"protocol"}),
    "endless_html": (flood(b"<p>", OK + b"Content-Type: text/html\r\n\r\n", framed=False), {"protocol"}),
    "endless_error": (flood(b"x", b"HTTP/1.1 500 No\r\n\r\n", framed=False), {"protocol", "rejected"}),
    "endless_headers": (flood(b"X-A: b\r\n", OK, framed=False), {"protocol"}),
    "endless_header_line": (flood(b"x", OK + b"X-A: ", framed=False), {"protocol"}),
    "endless_status_line": (flood(b"x", b"HTTP/1.1 200 ", framed=False), {"protocol"}),
    "endless_continue": (flood(b"HTTP/1.1 100 Continue\r\n\r\n", b"", framed=False), {"protocol", "stalled"}),
    "endless_trailers": (flood(b"X-A: b\r\n", CHUNKED + chunk(WHOLE) + b"0\r\n", framed=False), {"", "protocol"}),
    "endless_chunk_size": (flood(b"0", CHUNKED, framed=False), {"protocol"}),
    "endless_extension": (flood(b"x", CHUNKED + b"1;", framed=False), {"protocol"}),
    "endless_after_done": (flood(b"data: x\n\n", CHUNKED + chunk(WHOLE)), {"protocol"}),
    "gzip_bomb": (gzip_bomb(GZIP_HEAD), {"protocol"}),
    "one_byte_chunks": (one_byte_chunks, {"", "stalled"}),
    "one_byte_reads": (one_byte_reads, {"protocol", "stalled"}),
    "invalid_utf8": (says(CHUNKED, chunk(b'data: {"choices":[{"text":"\xff\xfe"}]}\n\n')), {"protocol"}),
    "invalid_utf8_header": (says(OK + b"Content-Type: \xff\xfe\r\nContent-Length: 0\r\n\r\n"), {"protocol"}),
    "lone_surrogate": (says(CHUNKED, chunk(b'data: {"error":{"message":"\\ud800"}}\n\n')), {"protocol"}),
    "redirect_loop": (redirect(307, True), {"rejected"}),
    "redirect_away": (redirect(307, False), {"rejected"}),
    "redirect_post_get": (redirect(303, False), {"rejected"}),
    "type_html": (says(OK + b"Content-Type: text/html\r\nContent-Length: 4\r\n\r\n<p>\n"), {"protocol"}),
    "type_json_in_sse": (says(OK + b"Content-Type: application/json\r\n\r\n" + WHOLE), {"protocol"}),
    "type_twice": (
        says(OK + b"Content-Type: text/html\r\nContent-Type: text/event-stream\r\n\r\n" + WHOLE),
        {"protocol"},
    ),
    "html_in_sse": (says(CHUNKED, chunk(b"<html>\n\n" * 9), LAST_CHUNK), {"truncated", "protocol"}),
    "http10": (says(SSE_HEAD.replace(b"1.1", b"1.0") + b"\r\n" + WHOLE), {""}),
    "http10_cut": (says(SSE_HEAD.replace(b"1.1", b"1.0") + b"\r\n" + WHOLE[:-20]), {"cut"}),
    "http09": (says(b"<html>hello</html>"), {"protocol"}),
    "http2": (says(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" * 9), {"protocol"}),
    "tls_alert": (tls_alert, {"protocol"}),
    "nothing": (says(), {"refused"}),
    "after_done": (says(CHUNKED, chunk(WHOLE + event([15])), LAST_CHUNK), {"protocol"}),
    "done_twice": (says(CHUNKED, chunk(WHOLE + DONE), LAST_CHUNK), {"protocol"}),
    "length_too_long": (says(length(len(WHOLE) + 9, WHOLE[:-20])), {"cut"}),
    "length_too_short": (says(length(len(WHOLE) - 20, WHOLE)), {"truncated", "protocol"}),
    "length_negative": (says(SSE_HEAD + b"Content-Length: -5\r\n\r\n" + WHOLE), {"protocol"}),
    "length_and_chunked": (says(SSE_HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"), {"protocol"}),
    "two_answers": (says((CHUNKED + chunk(WHOLE) + LAST_CHUNK) * 2), {""}),
    "slow_head": (trickle(OK, b"X-A: b\r\n"), {"stalled", "protocol"}),
    "slow_header_bytes": (trickle(OK + b"X-A: ", b"x"), {"stalled"}),
    "slow_comments": (trickle(CHUNKED, chunk(b":\n")), {"stalled"}),
    "silent": (trickle(b"", b""), {"stalled"}),
    "silent_after_head": (trickle(CHUNKED, b""), {"stalled"}),
    "switch_protocols": (says(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n"), {"rejected"}),
    "huge_ids": (says(CHUNKED, chunk(CHOICE % (b"[" + b"7," * 3_900_000 + b"7]")), LAST_CHUNK), {"protocol"}),
    "huge_prompt_ids": (
        says(CHUNKED, chunk(b'data: {"choices":[{"prompt_token_ids":[%s7]}]}\n\n' % (b"7," * 450_000))),
        {"cut", "protocol"},
    ),
    "deep_ids": (says(CHUNKED, chunk(CHOICE % DEEP)), {"protocol"}),
    "deep_finish": (says(CHUNKED, chunk(b'data: {"choices":[{"finish_reason":%s}]}\n\n' % DEEP)), {"protocol"}),
    "deep_usage": (says(CHUNKED, chunk(b'data: {"usage":{"completion_tokens":%s}}\n\n' % DEEP)), {"protocol"}),
    "deep_error": (says(CHUNKED, chunk(b'data: {"error":{"message":%s}}\n\n' % DEEP)), {"in_band_error", "protocol"}),
    "deeper": (says(CHUNKED, chunk(b"data: " + b"[" * 100_000 + b"\n\n")), {"protocol"}),
}


def admin_says(body: bytes, status: bytes = b"200 OK", head: bytes = b"") -> Attack:
    return says(b"HTTP/1.1 %s\r\n%sConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (status, head, len(body), body))


# name: (attack, the outcomes that a load or an unload may have)
ADMIN: dict[str, tuple[Attack, set[str]]] = {
    "good": (admin_says(b"Success"), {"ok"}),
    "endless_body": (flood(b"x", JSON + b"\r\n", framed=False), {"info"}),
    "endless_chunks": (flood(b"x", JSON + b"Transfer-Encoding: chunked\r\n\r\n"), {"info"}),
    "endless_headers": (flood(b"X-A: b\r\n", OK, framed=False), {"info"}),
    "endless_continue": (flood(b"HTTP/1.1 100 Continue\r\n\r\n", b"", framed=False), {"info"}),
    "gzip_bomb": (gzip_bomb(JSON + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"), {"info"}),
    "gzip_error": (
        admin_says(gzip.compress(b'{"error":{"message":"no"}}'), head=b"Content-Encoding: gzip\r\n"),
        {"info", "fail"},
    ),
    "redirect_loop": (redirect(307, True), {"fail"}),
    "redirect_away": (redirect(308, False), {"fail"}),
    "redirect_post_get": (redirect(303, False), {"info"}),
    "moved": (redirect(301, False), {"info"}),
    "html": (admin_says(b"<html>welcome</html>"), {"info"}),
    "http09": (says(b"Success"), {"info"}),
    "tls_alert": (tls_alert, {"info"}),
    "nothing": (says(), {"info"}),
    "length_too_long": (says(OK + b"Content-Length: 99\r\n\r\nSuccess"), {"info"}),
    "slow_head": (trickle(OK, b"X-A: b\r\n"), {"info"}),
    "slow_body": (trickle(OK + b"\r\n", b"x"), {"info"}),
    "silent": (trickle(b"", b""), {"info"}),
    "deep_error": (admin_says(b'{"error":{"message":%s}}' % DEEP, b"400 Bad"), {"info", "fail"}),
    "deep_detail": (admin_says(b'{"detail":[%s]}' % DEEP, b"422 Bad"), {"info", "fail"}),
    "deeper": (admin_says(b"[" * 100_000, b"400 Bad"), {"info"}),
    "invalid_utf8": (admin_says(b'{"error":{"message":"\xff"}}', b"400 Bad"), {"info"}),
    "lone_surrogate": (admin_says(b'{"error":{"message":"\\udfff"}}', b"400 Bad"), {"info"}),
    "status_999": (admin_says(b"{}", b"999 What"), {"info"}),
    "accepted": (admin_says(b"{}", b"202 Accepted"), {"info"}),
    "switch_protocols": (says(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n"), {"info"}),
}


def _read(s: socket.socket) -> tuple[str, dict[str, str], bytes]:
    data = b""
    while b"\r\n\r\n" not in data and data[:1] != b"\x16":  # a TLS client says hello to a plain port
        got = s.recv(65536)
        if not got:
            raise ConnectionError
        data += got
    if data[:1] == b"\x16":
        s.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        raise ConnectionError
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
    while len(body) < int(headers.get("content-length", 0)):
        body += s.recv(65536)
    return lines[0].split(" ")[1], headers, body


def _answer(s: socket.socket) -> None:
    path, headers, body = _read(s)
    if path == "/seen/":
        SEEN.append(headers.get("authorization", "none"))
        s.sendall(OK + b"Content-Length: 0\r\n\r\n")
    elif path == "/who":
        admin_says(json.dumps(SEEN).encode())(s)
    elif path == "/v1/completions":
        STREAMS[json.loads(body)["model"]][0](s)
    elif body:
        ADMIN[json.loads(body)["lora_name"]][0](s)
    else:
        ADMIN[path.split("/")[1]][0](s)


def _serve(s: socket.socket) -> None:
    with suppress(OSError), s:
        _answer(s)
        s.shutdown(socket.SHUT_WR)
        s.settimeout(5)
        while s.recv(65536):  # a close with unread bytes would reset what was sent
            pass


def main(port_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as server:
        port_file.with_suffix(".new").write_text(str(server.getsockname()[1]))
        port_file.with_suffix(".new").rename(port_file)
        threading.Thread(target=_follow, daemon=True).start()
        while True:
            threading.Thread(target=_serve, args=(server.accept()[0],), daemon=True).start()


def _follow() -> None:
    """Never outlive whoever started this."""
    sys.stdin.read()
    os._exit(0)


@contextmanager
def hostile(folder: Path) -> Iterator[int]:
    """The server in a process of its own; its port."""
    port_file = folder / "hostile.port"
    command = [sys.executable, __file__, str(port_file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            deadline = time.monotonic() + 20
            while not port_file.exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield int(port_file.read_text())
        finally:
            process.kill()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
