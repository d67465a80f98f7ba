"""A server as the commands reach it: which one, with what key, and a session to talk to it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from loadtest.errors import FeatureOff, TargetError, Unreachable, UsageError

if TYPE_CHECKING:
    import aiohttp

    from loadtest.traffic.admin import Admin, Answer

ENVIRONMENT = "LOADTEST_TARGET"


@dataclass(frozen=True, slots=True)
class Remote:
    """A server's address; `headers` may hold a secret."""

    url: str  # without user and password
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    timeout_s: float = 60.0  # for one admin operation


def remote(url: str | None, *, key_env: str | None = None, timeout_s: float = 60.0) -> Remote:
    """The server that `url` names, else LOADTEST_TARGET, else what `make exp4-up` started. Raises UsageError."""
    from loadtest.target import public_url

    found = named(url)
    if not found:
        raise UsageError("no server is named", remedy=f"give --url http://HOST:PORT or set {ENVIRONMENT}")
    try:
        parts = urlsplit(found)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
    if not sound:
        raise UsageError(f"{public_url(found)[0]!r} is no server's URL", remedy="give http://HOST:PORT")
    public, headers = public_url(found)
    if key_env:
        if not os.environ.get(key_env):
            raise UsageError(f"--api-key-env names {key_env}, which is not set", remedy="export it")
        headers["Authorization"] = f"Bearer {os.environ[key_env]}"
    return Remote(public, headers, timeout_s)


def named(url: str | None) -> str:
    """The URL that `remote` will take, "" when there is none; without the /v1 that OpenAI's clients want in it."""
    found = (url or os.environ.get(ENVIRONMENT) or _kept()).strip().rstrip("/")
    return found.removesuffix("/v1")


def _kept() -> str:
    from loadtest.tools import exp4

    state = exp4.running(Path(exp4.FOLDER))
    return state.url if state else ""


@asynccontextmanager
async def talking(server: Remote) -> AsyncIterator[tuple[aiohttp.ClientSession, Admin]]:
    """A session and its admin operations; both end with the block."""
    from loadtest.traffic.admin import Admin
    from loadtest.traffic.client import open_session
    from loadtest.traffic.words import Redactor

    async with open_session(server.headers, min(10.0, server.timeout_s)) as session:
        redact = Redactor(server.url, server.headers)
        yield session, Admin(session, server.url, timeout_s=server.timeout_s, redact=redact)


def raise_unless_served(server: Remote, answer: Answer) -> None:
    """Raise when the answer says that the server cannot do such a thing at all: not there, feature off, no entry."""
    if answer.reason == "refused":
        raise Unreachable(
            f"{server.url} does not answer ({answer.message})", remedy="check that the server runs and the URL is right"
        )
    if answer.reason == "feature_off":
        raise FeatureOff(
            f"{server.url} answers, but has no such route: runtime LoRA is off",
            remedy="start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
        )
    if answer.reason == "unauthorized":
        raise TargetError(f"{server.url} refuses our key ({answer.status})", remedy="name its variable: --api-key-env")
