"""What a Locust user streams with by the book: HttpUser (`iter_lines`) or FastHttpUser (`readline`).

    locust -f bench/locust_peers.py HttpPeer|FastPeer --headless -u N -r N -t 20s -H URL

TOKENS and LAGS (a file for read times, ns, and lags, ms) come from the environment. Each event is decoded as it comes.
"""

from __future__ import annotations

import os
import time
from typing import Any

import orjson
from locust import FastHttpUser, HttpUser, events, task

TOKENS = int(os.environ.get("TOKENS", "256"))
BODY = {
    "model": "base",
    "prompt": [1, 2, 3],
    "max_tokens": TOKENS,
    "stream": True,
    "ignore_eos": True,
    "return_token_ids": True,
    "stream_options": {"include_usage": True},
}
LAGS: list[tuple[int, float]] = []  # (read at, ms)


def take(line: bytes) -> None:
    """Decode one line of the body."""
    now = time.monotonic_ns()
    if line[:6] != b"data: " or line[6:12] == b"[DONE]":
        return
    choices = orjson.loads(line[6:])["choices"]
    if choices:
        late = (now // 1000 - int(choices[0]["text"])) % 10**12  # µs
        LAGS.append((now, (late if late < 5 * 10**11 else late - 10**12) / 1e3))


class HttpPeer(HttpUser):
    """requests' `iter_lines`, in its default blocks."""

    @task
    def complete(self) -> None:
        """One stream."""
        with self.client.post("/v1/completions", json=BODY, stream=True, catch_response=True) as response:
            for line in response.iter_lines(chunk_size=None):
                take(line)
            response.success()


class FastPeer(FastHttpUser):
    """geventhttpclient's `readline` on the response behind Locust's: its `iter_lines` waits for 1,024 bytes."""

    network_timeout = 120.0

    @task
    def complete(self) -> None:
        """One stream."""
        with self.client.post("/v1/completions", json=BODY, stream=True, catch_response=True) as response:
            stream = response._response
            while line := stream.readline(b"\n"):
                take(bytes(line).rstrip(b"\n"))
            response.success()


@events.quitting.add_listener
def _write(**_: Any) -> None:
    path = os.environ.get("LAGS")
    if path:
        with open(path, "w") as out:
            out.writelines(f"{at} {lag:.3f}\n" for at, lag in LAGS)
