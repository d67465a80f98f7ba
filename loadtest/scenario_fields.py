"""Field types of a scenario: the quantities of scenario_units, addresses, names and lists, as pydantic reads them."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from loadtest import scenario_units as units
from loadtest.scenario_units import IntRange, SecondsRange

_TEXT = WithJsonSchema({"type": "string"})
_TEXT_OR_NUMBER = WithJsonSchema({"type": ["string", "number"]})
Duration = Annotated[float, BeforeValidator(units.parse_positive_duration), PlainSerializer(units.show_duration), _TEXT]
Rate = Annotated[float, BeforeValidator(units.parse_rate), PlainSerializer(units.show_rate), _TEXT]
SpawnRate = Annotated[float, BeforeValidator(units.parse_spawn_rate), _TEXT_OR_NUMBER]
Factor = Annotated[float, BeforeValidator(units.parse_factor), PlainSerializer(units.show_factor), _TEXT_OR_NUMBER]
Ints = Annotated[IntRange, BeforeValidator(units.parse_int_range), PlainSerializer(str), _TEXT_OR_NUMBER]
Seconds = Annotated[SecondsRange, BeforeValidator(units.parse_seconds_range), PlainSerializer(str), _TEXT]
Every = Annotated[SecondsRange, BeforeValidator(units.parse_every), PlainSerializer(str), _TEXT]


def _url(value: object) -> object:
    if not isinstance(value, str) or value == "embedded":
        return value
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if "@" in value:  # not shown: what stands before it is a secret
        raise units.BadValue("the URL holds a user or password", "name the variable that holds the key: api_key_env")
    if not good or any(c.isspace() for c in value):
        raise units.BadValue(
            f"expected embedded or http://host:port, got {units.found(value)}", "write the address whole"
        )
    return value


def _address(value: object) -> object:
    if value == "embedded":
        raise units.BadValue("expected http://host:port, got 'embedded'", "start one: loadtest serve --port 8001")
    return _url(value)


def _variable(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):  # not shown: it may be the key
        raise units.BadValue("expected the name of an environment variable", "write e.g. VLLM_API_KEY, never the key")
    return value


def _label(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        raise units.BadValue(
            f"expected a label, got {units.found(value)}", "use letters, digits, '.', '_' and '-', at most 64"
        )
    return value


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _versions(value: object) -> object:
    """ "markers", "markers 3" or a list."""
    if isinstance(value, list):
        return tuple(value)
    words = value.split() if isinstance(value, str) else []
    if words[:1] == ["markers"] and (
        len(words) == 1 or (len(words) == 2 and re.fullmatch("[1-9][0-9]{0,3}", words[1]))
    ):
        return value
    raise units.BadValue(
        f"expected markers, markers N or a list of versions, got {units.found(value)}", "write markers, or markers 3"
    )


Url = Annotated[str, BeforeValidator(_url)]
Address = Annotated[str, BeforeValidator(_address)]
Variable = Annotated[str, BeforeValidator(_variable)]
Label = Annotated[str, BeforeValidator(_label)]
Level = Literal["safe", "token-regular", "token-atomic", "stream-regular", "stream-atomic"]
Arm = Literal["aa", "sham", "real", "bad"]
How = Literal["missing", "corrupt", "rank-too-high"]
Attribution = Literal["auto", "markers", "reference", "margins", "none"]
AsTuple = BeforeValidator(_tuple)  # models are strict, and YAML has lists
AsVersions = BeforeValidator(_versions)
