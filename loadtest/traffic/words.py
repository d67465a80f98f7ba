"""The server's words: error bodies parsed, secrets removed before anything is written down."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import orjson

_USERINFO = re.compile(r"//[^/@\s]+@")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}")
# Headers whose values a record must never hold.
_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"})


class Redactor:
    """Removes the secrets of one target from text."""

    def __init__(self, url: str = "", headers: Mapping[str, str] | None = None) -> None:
        self._secrets = sorted(_secrets(url, headers or {}), key=len, reverse=True)

    def __call__(self, text: str, limit: int) -> str:
        """`text` on one line, without secrets and control characters, at most `limit` characters."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = _BEARER.sub(r"\1 ***", _USERINFO.sub("//***@", text))
        text = "".join(c if c.isprintable() else " " for c in text)  # no word of a server steers a terminal
        text = " ".join(text.split())
        return text if len(text) <= limit else text[: limit - 1] + "…"


def _secrets(url: str, headers: Mapping[str, str]) -> Iterable[str]:
    """Strings worth hiding; those under four characters would tear up ordinary words."""
    found: set[str] = set()
    parts = urlsplit(url)
    for word in (parts.username, parts.password):
        if word:
            found |= {word, unquote(word)}
    if parts.password:
        pair = f"{unquote(parts.username or '')}:{unquote(parts.password)}"
        found.add(base64.b64encode(pair.encode()).decode())
    for name, value in headers.items():
        if name.lower() in _SECRET_HEADERS:
            found |= {value, value.partition(" ")[2]}
    return {s for s in found if len(s) >= 4}


def without_secrets(url: str) -> str:
    """`url` without user and password."""
    return _USERINFO.sub("//", url, count=1)


@dataclass(frozen=True, slots=True)
class ServerError:
    """A parsed error body."""

    type: str  # "NotFoundError", ...; "" when the body has none
    message: str
    shape: str  # "error" (vLLM, OpenAI) or "detail" (the web framework itself)


def parse_error(body: bytes) -> ServerError | None:
    """The error that a body of a refusal states, None when it is none of the known shapes."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return error_of(parsed) if isinstance(parsed, dict) else None


def error_of(parsed: dict[str, Any]) -> ServerError | None:
    """The same for a parsed object: `{"error": {...}|"text"}`, `{"object": "error", ...}`, `{"detail": ...}`."""
    error = parsed.get("error")
    if error is None and parsed.get("object") == "error":
        error = parsed
    if isinstance(error, dict):
        return ServerError(str(error.get("type") or ""), str(error.get("message") or ""), "error")
    if isinstance(error, str) and error:
        return ServerError("", error, "error")
    detail = parsed.get("detail")
    if isinstance(detail, str):
        return ServerError("", detail, "detail")
    if isinstance(detail, list):
        return ServerError("", orjson.dumps(detail[:3]).decode(), "detail")
    return None


def excerpt(body: bytes) -> str:
    """The beginning of a body that says nothing parseable, for a human."""
    text = body[:200].decode("utf-8", "replace").strip()
    return repr(text) if text else "an empty body"
