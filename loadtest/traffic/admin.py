"""The server's control plane: load, unload, list; every answer sorted into ok, fail or info.

Rules
1. `ok`: status 200 with a readable body that states no error. `fail`: a refusal whose body was read and understood, so
   that the operation is known not to have happened. Everything else is `info`: it may have happened, or may yet.
2. Hence `info` for time-outs, resets, refused connections, bodies that say nothing known, a gateway's 408, 502 and
   504 whatever they say, and an engine that died meanwhile.
3. 404 `{"detail":"Not Found"}` comes from the web framework: there is no such route, the feature is off. An unknown
   adapter or folder is a 404 of the shape `{"error":{...}}`.
4. Redirects are not followed: 307 and 308 say that nothing was done, the others may come after the deed.
5. Bodies are bounded, and no message holds a secret of the target.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from loadtest.errors import TargetError, Unreachable
from loadtest.records import Outcome
from loadtest.traffic.words import Redactor, ServerError, error_of, excerpt, without_secrets

MAX_BODY = 4 * 1024 * 1024  # /metrics of a large server is some 200 kB
MAX_MESSAGE = 500
PROBE_S = 5.0  # for questions that a living server answers at once


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one admin operation."""

    outcome: Outcome
    status: int  # 0 without a response head
    reason: str  # "" when ok, else a short code
    message: str  # the server's words, or ours about the failure; no secrets
    sent_ns: int
    at_ns: int


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One entry of `GET /v1/models`."""

    id: str
    root: str  # an adapter's: path of its last acked load
    parent: str  # an adapter's: the base model; "" for a base model


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    body: bytes


class _TooLong(Exception):
    """A body over MAX_BODY."""


class Admin:
    """Admin operations on one server."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        now_ns: Callable[[], int] = time.monotonic_ns,
        timeout_s: float = 30.0,
        redact: Redactor | None = None,
    ) -> None:
        self._session = session
        self._base = url.rstrip("/")
        self._now_ns = now_ns
        self._timeout_s = timeout_s
        self._redact = redact or Redactor(url)

    async def load(self, name: str, path: str, inplace: bool = False) -> Answer:
        """`POST /v1/load_lora_adapter`; `path` as the server sees it."""
        body: dict[str, Any] = {"lora_name": name, "lora_path": path}
        return await self._operate("/v1/load_lora_adapter", body | ({"load_inplace": True} if inplace else {}))

    async def unload(self, name: str) -> Answer:
        """`POST /v1/unload_lora_adapter`."""
        return await self._operate("/v1/unload_lora_adapter", {"lora_name": name})

    async def models(self) -> list[ModelCard]:
        """`GET /v1/models`. Raises Unreachable, or TargetError when the answer is not a list of models."""
        reply = await self._get("/v1/models")
        if reply.status in (401, 403):
            raise TargetError(
                f"{self._where()} refuses our key ({reply.status})",
                remedy="name the variable that holds it: --api-key-env, or target.api_key_env in a scenario",
            )
        try:
            data = orjson.loads(reply.body)["data"]
            return [ModelCard(str(c["id"]), str(c.get("root") or ""), str(c.get("parent") or "")) for c in data]
        except (ValueError, KeyError, TypeError, AttributeError):
            words = self._redact(excerpt(reply.body), MAX_MESSAGE)
            raise TargetError(
                f"{self._where()}/v1/models answered {reply.status} with {words}, not with a list of models",
                remedy="check that the URL is that of an OpenAI-compatible server",
            ) from None

    async def health(self) -> bool:
        """Whether `GET /health` answers 200; never raises for the server's sake."""
        try:
            return (await self._get("/health")).status == 200
        except TargetError:
            return False

    async def version(self) -> str:
        """vLLM's `GET /version`, "" from a server that has none. Raises Unreachable."""
        reply = await self._get("/version")
        try:
            found = orjson.loads(reply.body)["version"]
        except (ValueError, KeyError, TypeError):
            return ""
        return str(found) if reply.status == 200 else ""

    async def metrics(self) -> str:
        """`GET /metrics` as text, "" from a server that has none. Raises Unreachable."""
        reply = await self._get("/metrics")
        return reply.body.decode("utf-8", "replace") if reply.status == 200 else ""

    def _where(self) -> str:
        return without_secrets(self._base)

    async def _get(self, path: str) -> _Reply:
        patience = min(PROBE_S, self._timeout_s)
        try:
            async with asyncio.timeout(patience):
                return await self._request("GET", path, None)
        except (aiohttp.ClientError, OSError, ValueError, _TooLong) as e:  # TimeoutError is an OSError
            words = f"no answer within {patience:g} s" if isinstance(e, TimeoutError) else _named(e)
            raise Unreachable(
                self._redact(f"GET {self._where()}{path} failed: {words}", MAX_MESSAGE),
                remedy="check that the server runs and that the URL is right",
            ) from e

    async def _request(self, method: str, path: str, body: dict[str, Any] | None) -> _Reply:
        data = None if body is None else orjson.dumps(body)
        headers = {"Accept-Encoding": "identity"} | ({"Content-Type": "application/json"} if data else {})
        request = self._session.request(method, self._base + path, data=data, headers=headers, allow_redirects=False)
        async with request as response:
            received = bytearray()
            async for chunk in response.content.iter_any():
                received += chunk
                if len(received) > MAX_BODY:
                    response.close()
                    raise _TooLong(f"the body is longer than {MAX_BODY} bytes")
            return _Reply(response.status, bytes(received))

    async def _operate(self, path: str, body: dict[str, Any]) -> Answer:
        sent_ns = self._now_ns()
        outcome: Outcome = "info"
        status = 0
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await self._request("POST", path, body)
            status = reply.status
            outcome, reason, message = _sort(reply)
        except TimeoutError:
            reason, message = "timeout", f"no answer within {self._timeout_s:g} s"
        except aiohttp.ClientConnectorError as e:
            reason, message = "refused", _named(e)
        except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, ConnectionError) as e:
            reason, message = "reset", _named(e)
        except (aiohttp.ClientError, OSError, ValueError, _TooLong) as e:
            reason, message = "unreadable", _named(e)
        return Answer(outcome, status, reason, self._redact(message, MAX_MESSAGE), sent_ns, self._now_ns())


def _named(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientSSLError):
        return f"no TLS: {error.__cause__ or error}"
    if isinstance(error, aiohttp.ClientConnectorError):
        code, words = error.os_error.errno, error.os_error.strerror
        return (os.strerror(code) if code and code > 0 else str(words)).lower()
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the answer was cut short"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed without an answer"
    if isinstance(error, aiohttp.ClientResponseError):
        return "the answer is not HTTP"
    if isinstance(error, _TooLong):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _sort(reply: _Reply) -> tuple[Outcome, str, str]:
    """(outcome, reason, message) of an answer that was read to its end."""
    try:
        parsed = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        parsed = None
    error = error_of(parsed) if isinstance(parsed, dict) else None
    text = reply.body.decode("utf-8", "replace").strip()
    if reply.status == 200:
        if error is not None:
            return "fail", "error_under_200", error.message
        if _says_nothing(text, parsed):
            return "info", "unreadable", f"status 200 with {excerpt(reply.body)}"
        return "ok", "", text
    if 300 <= reply.status < 400:
        words = f"redirected with {reply.status}, which is not followed"
        return "fail" if reply.status in (307, 308) else "info", "redirect", words
    if reply.status in (408, 502, 504):
        return "info", "gateway", error.message if error else f"status {reply.status}"
    if error is None or reply.status < 400:
        return "info", "unreadable", f"status {reply.status} with {excerpt(reply.body)}"
    if "EngineCore" in error.message:
        return "info", "engine_dead", error.message
    return "fail", _reason(reply.status, error), error.message


def _says_nothing(text: str, parsed: Any) -> bool:
    """Whether a 200 is not an admin endpoint's: a page of markup, half a JSON document, bytes that are no text."""
    half = parsed is None and text[:1] in ("{", "[", '"')
    return text[:1] == "<" or half or "\ufffd" in text or not all(c.isprintable() or c.isspace() for c in text)


def _reason(status: int, error: ServerError) -> str:
    if error.shape == "detail" and error.message in ("Not Found", "Method Not Allowed"):
        return "feature_off"
    if status == 404:
        return "not_found"
    if status in (401, 403):
        return "unauthorized"
    if status == 429:
        return "busy"
    if status >= 500:
        return "server_error"
    return "already_loaded" if "already" in error.message else "invalid"
