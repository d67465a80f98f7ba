"""The server's words: error bodies parsed, secrets removed before anything is written down."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus, unquote, urlsplit

import orjson

# Far more than a record keeps: what is cut off must not be the end of a secret, whose beginning would then be kept.
EXCERPT = 2000
LONGEST = 20_000
_USERINFO = re.compile(r"//[^/\s]+@")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}")
# Headers whose values a record must never hold.
_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"})


class Redactor:
    """Removes the secrets of one target from text."""

    def __init__(self, url: str = "", headers: Mapping[str, str] | None = None) -> None:
        self._secrets = sorted(_secrets(url, headers or {}), key=len, reverse=True)

    def __call__(self, text: str, limit: int) -> str:
        """`text` on one line, without secrets and control characters, at most `limit` characters."""
        if not text:
            return text
        text = text[:LONGEST]
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
            found |= {value, value.partition(" ")[2], *_basic(value)}
    found |= {form(s) for s in found for form in (quote_plus, _in_json)}
    found |= {repr(s)[1:-1] for s in found}
    return {s for s in found if len(s) >= 4}


def _basic(value: str) -> Iterable[str]:
    """What an Authorization header of the scheme Basic wraps."""
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "basic":
        return ()
    try:
        pair = base64.b64decode(token).decode()
    except ValueError:
        return ()
    return (pair, pair.partition(":")[2])


def _in_json(text: str) -> str:
    return orjson.dumps(text).decode()[1:-1]


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
        return ServerError(_text(error.get("type")), _text(error.get("message")), "error")
    if isinstance(error, str) and error:
        return ServerError("", error, "error")
    detail = parsed.get("detail")
    if isinstance(detail, str):
        return ServerError("", detail, "detail")
    if isinstance(detail, list):
        return ServerError("", shown(detail[:3]), "detail")
    return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else shown(value) if value else ""


def shown(value: object) -> str:
    """A value that a server sent, as a human may read it: short, whatever it is."""
    try:
        return repr(value[:20] if isinstance(value, list | str) else value)[:EXCERPT]
    except RecursionError:
        return "something nested too deeply to be shown"


def excerpt(body: bytes) -> str:
    """The beginning of a body that says nothing parseable, for a human."""
    text = body[:EXCERPT].decode("utf-8", "replace").strip()
    return repr(text) if text else "an empty body"
