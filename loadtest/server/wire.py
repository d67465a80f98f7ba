"""Bodies of requests and errors, as vLLM 0.32 reads and writes them. Pure: no sockets, no engine."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from loadtest.server.state import Entry, Params, Refusal

BAD = "BadRequestError"
MAX_LOGPROBS = 20  # vLLM's default


@dataclass(frozen=True, slots=True)
class Ask:
    """A parsed body of /v1/completions."""

    model: str  # "" when the client named none: the base
    prompt: str | list[int]
    params: Params
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    stop: tuple[str, ...]


def error_body(refusal: Refusal) -> dict[str, Any]:
    """vLLM's error object."""
    body = {"message": refusal.message, "type": refusal.kind, "param": refusal.param, "code": refusal.status}
    return {"error": body}


def parse_body(content_type: str, raw: bytes) -> dict[str, Any]:
    """A JSON object. Raises Refusal 400 for another content type, broken JSON or something else than an object."""
    if content_type.lower() != "application/json":
        raise _invalid_line("Unsupported Media Type: Only 'application/json' is allowed", None)
    if not raw:
        raise _invalid("missing", "body", "Field required", None)
    try:
        body = json.loads(raw)
    except json.JSONDecodeError as error:
        raise _invalid("json_invalid", f"body.{error.pos}", "JSON decode error", {}, {"error": error.msg}) from error
    except UnicodeDecodeError as error:
        raise Refusal(400, "Bad Request", "There was an error parsing the body") from error
    if not isinstance(body, dict):
        words = "Input should be a valid dictionary or object to extract fields from"
        raise _invalid("model_attributes_type", "body", words, body)
    return body


def _invalid(kind: str, at: str, message: str, found: object, context: object = None) -> Refusal:
    shown = f"<{type(found).__name__} of {len(found)} items>" if isinstance(found, dict | list) else str(found)
    detail = {"type": kind, "loc": at, "msg": message, "input": shown}
    return _invalid_line(str(detail | {"ctx": context} if context else detail), at)


def _invalid_line(line: str, at: str | None) -> Refusal:
    return Refusal(400, "Bad Request", f"1 validation error:\n  {line}", at)


def text_field(body: Mapping[str, Any], key: str) -> str:
    """A required string. Raises Refusal 400."""
    if key not in body:
        raise _invalid("missing", f"body.{key}", "Field required", body)
    value = body[key]
    if not isinstance(value, str):
        raise _invalid("string_type", f"body.{key}", "Input should be a valid string", value)
    return value


def bool_field(body: Mapping[str, Any], key: str) -> bool:
    """An optional boolean, false by default; reads what pydantic reads. Raises Refusal 400."""
    value = body.get(key)
    if value is None or isinstance(value, bool):
        return bool(value)
    word = str(value).lower()
    if word in ("1", "true", "t", "yes", "y", "on", "1.0"):
        return True
    if word in ("0", "false", "f", "no", "n", "off", "0.0"):
        return False
    words = "Input should be a valid boolean, unable to interpret input"
    raise _invalid("bool_parsing", f"body.{key}", words, value)


def number_field(body: Mapping[str, Any], key: str, default: float | None, whole: bool = True) -> Any:
    """An optional number; strings of digits count, as in pydantic. Raises Refusal 400."""
    value = body.get(key)
    if value is None:
        return default
    try:
        number = float(value) if not isinstance(value, list | dict) else float("nan")
    except ValueError:
        number = float("nan")
    if number != number or (whole and number != int(number)):
        kind, noun = ("int", "integer") if whole else ("float", "number")
        words = f"Input should be a valid {noun}, unable to parse string as {'an' if whole else 'a'} {noun}"
        raise _invalid(f"{kind}_parsing", f"body.{key}", words, value)
    return int(number) if whole else number


def parse_completion(body: Mapping[str, Any]) -> Ask:
    """Read a completion request. Raises Refusal 400 for what vLLM refuses and for what this engine does not compute."""
    _check_early(body)
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise _invalid("model_attributes_type", "body.stream_options", "Input should be a valid dictionary", options)
    stop = body.get("stop") or []
    ask = Ask(
        model=text_field(body, "model") if body.get("model") is not None else "",
        prompt=_prompt(body["prompt"]),
        params=Params(
            max_tokens=number_field(body, "max_tokens", 16),
            temperature=number_field(body, "temperature", 1.0, whole=False),
            seed=number_field(body, "seed", None),
            ignore_eos=bool_field(body, "ignore_eos"),
            logprobs=number_field(body, "logprobs", None),
            prompt_logprobs=number_field(body, "prompt_logprobs", None),
            salt=body.get("cache_salt") or "",
        ),
        stream=bool_field(body, "stream"),
        include_usage=bool_field(options, "include_usage"),
        continuous_usage=bool_field(options, "continuous_usage_stats"),
        return_token_ids=bool_field(body, "return_token_ids"),
        stop=tuple([stop] if isinstance(stop, str) else stop),
    )
    _check_late(body, ask.params)
    return ask


def _check_early(body: Mapping[str, Any]) -> None:
    """What vLLM refuses before it looks at types."""

    def refuse(message: str, param: str) -> None:
        raise Refusal(400, BAD, f"{message} (parameter={param})", param)

    salt = body.get("cache_salt")
    if salt is not None and not (isinstance(salt, str) and salt):
        refuse("Parameter 'cache_salt' must be a non-empty string if provided.", "cache_salt")
    for key in ("prompt_logprobs", "logprobs"):
        value = body.get(key)
        if value is not None and not isinstance(value, int | float):
            refuse(f"`{key}` must be an integer.", key)
        if value is not None and value < 0 and value != -1:
            refuse(f"`{key}` must be a positive value or -1.", key)
    if body.get("stream") and body.get("prompt_logprobs"):
        refuse("`prompt_logprobs` are not available when `stream=True`.", "prompt_logprobs")
    if body.get("stream_options") and not body.get("stream"):
        refuse("Stream options can only be defined when `stream=True`.", "stream_options")
    if body.get("prompt") in (None, ""):
        refuse("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")


def _prompt(value: object) -> str | list[int]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _invalid("string_type", "body.prompt", "Input should be a valid string", value)
    if not value:
        raise Refusal(400, BAD, "You must pass at least one prompt")
    if isinstance(value[0], str | list):
        raise Refusal(400, BAD, "the embedded engine takes one prompt per request", "prompt")
    for i, item in enumerate(value):
        if not isinstance(item, int) or isinstance(item, bool):
            raise _invalid("int_type", f"body.prompt.{i}", "Input should be a valid integer", item)
        if item < 0:
            words = "Input should be greater than or equal to 0"
            raise _invalid("greater_than_equal", f"body.prompt.{i}", words, item, {"ge": 0})
    return value


NEUTRAL: dict[str, tuple[object, ...]] = {  # what this engine does not compute, and the values that ask for nothing
    "n": (1,),
    "echo": (False,),
    "use_beam_search": (False,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "min_p": (0,),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "prompt_embeds": (),
    "truncate_prompt_tokens": (),
}
SAMPLING = {"top_p": (1,), "top_k": (0, -1)}  # the same, but without meaning under greedy decoding


def _check_late(body: Mapping[str, Any], params: Params) -> None:
    """Values out of range, and parameters this engine would have to ignore."""

    def refuse(message: str, param: str, value: object) -> None:
        raise Refusal(400, BAD, f"{message}, got {value}. (parameter={param}, value={value})", param)

    if body.get("suffix"):
        raise Refusal(400, BAD, "suffix requires text prompt input for FIM completion rendering", "suffix")
    if params.max_tokens < 1:
        refuse("max_tokens must be at least 1", "max_tokens", params.max_tokens)
    if params.temperature < 0:
        refuse("temperature must be non-negative", "temperature", params.temperature)
    top_p = number_field(body, "top_p", 1.0, whole=False)
    if not 0 < top_p <= 1:
        refuse("top_p must be in (0, 1]", "top_p", top_p)
    if params.temperature == 0 and number_field(body, "n", 1) > 1:
        raise Refusal(400, BAD, f"n must be 1 when using greedy sampling, got {body['n']}.")
    for kind, value in (("sample", params.logprobs), ("prompt", params.prompt_logprobs)):
        if value is not None and value > MAX_LOGPROBS:
            key = "logprobs" if kind == "sample" else "prompt_logprobs"
            words = f"Requested {kind} logprobs of {value}, which is greater than max allowed: {MAX_LOGPROBS}"
            raise Refusal(400, BAD, f"{words} (parameter={key}, value={value})", key)
    neutral = NEUTRAL if params.temperature == 0 else NEUTRAL | SAMPLING
    for key, values in neutral.items():
        if body.get(key) is not None and body[key] not in values:
            raise Refusal(400, BAD, f"{key}={body[key]!r} is not supported by the embedded engine", key)


def check_prompt(prompt: Sequence[int], vocab: int, longest: int) -> None:
    """Refuse ids outside the vocabulary and prompts that leave no room for a token."""
    if prompt and max(prompt) >= vocab:
        raise Refusal(400, BAD, f"Token id {max(prompt)} is out of vocabulary")
    if len(prompt) >= longest:
        words = (
            f"This model's maximum context length is {longest} tokens. However, your prompt contains {len(prompt)} "
            "input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the "
            f"input prompt. (parameter=input_tokens, value={len(prompt)})"
        )
        raise Refusal(400, BAD, words, "input_tokens")


def unknown_model(model: str, base: str) -> Refusal:
    """The 404 of a model that is not served."""
    return Refusal(404, "NotFoundError", f"The model `{model}` does not exist. Valid aliases: {base}.", "model")


def model_cards(base: str, root: str, longest: int, entries: Sequence[Entry]) -> dict[str, Any]:
    """The body of /v1/models: the base, then the adapters with the path of their last acked load."""
    now = int(time.time())

    def card(name: str, root: str, parent: str | None, longest: int | None) -> dict[str, Any]:
        permission = {
            "id": f"modelperm-{secrets.token_hex(8)}",
            "object": "model_permission",
            "created": now,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        out = {"id": name, "object": "model", "created": now, "owned_by": "vllm", "root": root, "parent": parent}
        return out | {"max_model_len": longest, "permission": [permission]}

    cards = [card(base, root, None, longest), *(card(e.name, e.path, base, None) for e in entries)]
    return {"object": "list", "data": cards}


def dumps(value: object) -> bytes:
    """JSON bytes."""
    return orjson.dumps(value)
