"""The tester's own figures on a port of their own, for a headless run that Prometheus watches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gevent.pywsgi import WSGIServer

from loadtest import harness
from loadtest.errors import UsageError
from loadtest.swarm import exposition
from loadtest.swarm.board import Board

PATH = "/metrics"


def address(given: str) -> tuple[str, int]:
    """(host, port) of "9646" or "0.0.0.0:9646"; loopback unless a host is named. Raises UsageError."""
    host, _, port = given.rpartition(":")
    if not port.isdigit() or int(port) > 65_535:
        raise UsageError(f"--metrics must be PORT or HOST:PORT, got {given!r}", remedy="give e.g. 9646")
    return host.strip("[]") or "127.0.0.1", int(port)


def serve(given: str, board: Callable[[], Board | None]) -> WSGIServer:
    """Answer GET /metrics at an address until the process ends. Raises UsageError when the port cannot be had."""
    host, port = address(given)

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        found = environ["PATH_INFO"] == PATH and environ["REQUEST_METHOD"] in ("GET", "HEAD")
        body = exposition.render(board(), harness.tool_version()) if found else "see /metrics\n"
        kind = exposition.CONTENT_TYPE if found else "text/plain; charset=utf-8"
        start("200 OK" if found else "404 Not Found", [("Content-Type", kind)])
        return [body.encode()]

    server = WSGIServer((host, port), answer, log=None, error_log=None)
    try:
        server.start()
    except OSError as e:
        words = f"cannot listen on {host}:{port} for --metrics ({e.strerror})"
        raise UsageError(words, remedy="choose another port") from e
    return server
