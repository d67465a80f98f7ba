"""The embedded server as a child process on a free port, gone when the test is."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One HTTP answer, read to its end."""

    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str, str]:
        """(status, type, message); the code in the body equals the status."""
        error = self.json["error"]
        assert error["code"] == self.status
        assert set(error) == {"message", "type", "param", "code"}
        return self.status, error["type"], error["message"]

    @property
    def frames(self) -> list[Any]:
        """The SSE events, "[DONE]" as a string."""
        parts = self.body.decode().split("\n\n")
        assert parts.pop() == ""
        assert all(p.startswith("data: ") for p in parts)
        return [p[6:] if p == "data: [DONE]" else json.loads(p[6:]) for p in parts]


@dataclass(frozen=True)
class Embedded:
    """A running server."""

    url: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    parent_end: int  # closing it tells the server that its parent is gone

    def call(self, method: str, path: str, body: object = None, content_type: str = "application/json") -> Answer:
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=raw, method=method)
        if raw is not None:
            request.add_header("Content-Type", content_type)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    def load(self, name: str, path: Path, inplace: bool = False) -> Answer:
        return self.call(
            "POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path), "load_inplace": inplace}
        )

    def unload(self, name: str) -> Answer:
        return self.call("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    def complete(self, model: str, prompt: object, max_tokens: int = 4, **more: object) -> Answer:
        body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        return self.call("POST", "/v1/completions", body | {"return_token_ids": True} | more)

    def ids(self, model: str, prompt: list[int], max_tokens: int = 4) -> list[int]:
        answer = self.complete(model, prompt, max_tokens)
        assert answer.status == 200, answer.body
        return list(answer.json["choices"][0]["token_ids"])

    def metric(self, name: str) -> float:
        """The sum of a series."""
        lines = self.call("GET", "/metrics").body.decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


@contextlib.contextmanager
def embedded(base: Path, work: Path, *options: str) -> Iterator[Embedded]:
    """Start a server for `base`, its port file and log in `work`; end it, however the test ends."""
    work.mkdir(parents=True, exist_ok=True)
    port_file, log = work / "port", work / "log"
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "loadtest.server.app", "--model", str(base), "--port", "0"]
    command += ["--port-file", str(port_file), "--parent-fd", str(read_end), *options]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, pass_fds=(read_end,))
    os.close(read_end)
    try:
        deadline = time.monotonic() + 30
        while not port_file.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        port = int(port_file.read_text())
        yield Embedded(f"http://127.0.0.1:{port}", port, process, log, write_end)
    finally:
        with contextlib.suppress(OSError):  # the test may have closed it
            os.close(write_end)
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until(met: Any, patience_s: float = 10.0) -> None:
    """Poll a condition; fails when it is not met in time."""
    deadline = time.monotonic() + patience_s
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)
