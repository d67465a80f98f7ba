"""A server that answers: what a run knows of it, and the small blocking requests that find it out."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from loadtest.errors import TargetDied, Unreachable, UsageError
from loadtest.guardian import Guarded

if TYPE_CHECKING:
    from loadtest.scenario import Target as Spec

Say = Callable[[str], None]

EMBEDDED_START_S = 60.0
MANAGED_START_S = 600.0
# One BLAS thread: more only fight with the client for the machine's cores, and sums would depend on their number.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass
class Target:
    """A server that answered, and what a run has to know of it."""

    url: str  # without user and password
    model: str  # the name by which it serves the base model
    base: Path | None  # the base model's folder, needed to forge markers
    vocab: int  # size of its vocabulary, 0 when unknown: prompts are then text
    root_local: Path  # where swap folders are written
    root_server: str  # the same folder as the server sees it
    headers: dict[str, str] = field(default_factory=dict)
    guarded: Guarded | None = None
    about: dict[str, Any] = field(default_factory=dict)  # for meta.json
    replicas: tuple[str, ...] = ()  # of a fleet, `url` first; () for one server

    @property
    def urls(self) -> tuple[str, ...]:
        """Every server of the target."""
        return self.replicas or (self.url,)

    def check_alive(self) -> None:
        """Raise TargetDied when a server that we started has ended."""
        if self.guarded is not None and not self.guarded.alive():
            code = self.guarded.process.returncode
            raise TargetDied(f"the server ended by itself with status {code}", log_tail=self.guarded.tail())

    def stop(self) -> None:
        """End the server if it is ours; idempotent."""
        if self.guarded is not None:
            self.guarded.stop()


def key_headers(spec: Spec) -> dict[str, str]:
    """The header that carries the key which `spec.api_key_env` names; empty without one."""
    if not spec.api_key_env:
        return {}
    key = os.environ.get(spec.api_key_env)
    if not key:
        raise UsageError(f"target.api_key_env names {spec.api_key_env}, which is not set", remedy="export it")
    return {"Authorization": f"Bearer {key}"}


def cache_dir() -> Path:
    """Where generated base models are kept between runs."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LOADTEST_CACHE") or Path(home) / "loadtest")


def wait_until(ready: Callable[[], bool], guarded: Guarded, patience_s: float, what: str) -> None:
    """Poll until `ready`; TargetDied when the server ends first, Unreachable when it takes too long.

    Left in any such way, or by Ctrl-C, the server has ended.
    """
    deadline = time.monotonic() + patience_s
    try:
        while not ready():
            if not guarded.alive():
                tail = guarded.tail()
                raise TargetDied(f"{what} did not start; its log ends with:\n{tail}", log_tail=tail)
            if time.monotonic() > deadline:
                raise Unreachable(f"{what} was not ready after {patience_s:.0f} s", remedy=f"see {guarded.log}")
            time.sleep(0.05)
    except BaseException:
        guarded.stop()
        raise


def vocab_of(base: Path) -> int:
    """`vocab_size` of a Hugging Face folder. Raises UsageError when it cannot be read."""
    try:
        return int(json.loads((base / "config.json").read_text())["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UsageError(f"{base} is not a model folder ({type(e).__name__})", remedy="set target.base to one") from e


def request(
    url: str, method: str, path: str, headers: Mapping[str, str], body: object = None, timeout_s: float = 5.0
) -> tuple[int, bytes]:
    """One small HTTP request. Raises Unreachable with what was tried."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
        try:
            data = None if body is None else json.dumps(body).encode()
            sent = {**headers, **({"Content-Type": "application/json"} if data is not None else {})}
            connection.request(method, parts.path.rstrip("/") + path, data, sent)
            answer = connection.getresponse()
            return answer.status, answer.read(1 << 20)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as e:
        raise Unreachable(
            f"{method} {url}{path} got no answer ({e or type(e).__name__})",
            remedy="is the server up, and the URL right?",
        ) from e
