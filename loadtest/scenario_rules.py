"""What the keys of a scenario demand of each other; on plain data, so that it is said beside all other mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loadtest import scenario_units as units
from loadtest.scenario_yaml import Path

Found = tuple[Path, str, str]  # where, what is wrong, what to do
SWAPS = ("sham", "real")
EMBEDDED_ONLY = ("swap", "plant", "step_ms")
MANAGED_FLAGS = {
    "--host": "remove it: the server listens on the loopback",
    "--port": "remove it: a free port is chosen",
    "--model": "write target.managed.model",
    "--served-model-name": "write target.model",
    "--max-lora-rank": "write target.max_lora_rank",
    "--max-loras": "write target.max_loras",
    "--api-key": "export VLLM_API_KEY, which the server inherits, and write target.api_key_env: VLLM_API_KEY",
    "--hf-token": "export HF_TOKEN: the server inherits it",
}
MOST_SWAPS = 10_000  # of one phase: all are planned before the run
SECRET = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")  # endings of variables that hold one


def cross_problems(data: dict[str, Any]) -> list[Found]:
    """Every contradiction in a scenario's data; tolerates values of wrong types, which are reported elsewhere."""
    adapters = _mapping(data.get("adapters"))
    listed = data["phases"] if isinstance(data.get("phases"), list) else []
    phases = [_mapping(p) for p in listed if isinstance(p, dict)]
    found = [*_names(adapters), *_traffic(_mapping(data.get("traffic")), adapters)]
    target = _mapping(data.get("target"))
    found += [*_target(target), *_fleet(target, _mapping(data.get("traffic"))), *_forged(adapters, target)]
    for index, phase in enumerate(listed):
        if isinstance(phase, dict):
            found += _phase(("phases", index), _mapping(phase), adapters)
    found += _modes(phases)
    return found + list(_require(_mapping(data.get("require")), phases))


def _mapping(value: object) -> dict[str, Any]:
    """The keys that say something: one without a value is as good as absent."""
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else {}


def _names(adapters: dict[str, Any]) -> Iterator[Found]:
    for name, adapter in adapters.items():
        here: Path = ("adapters", name)
        if name == "base":
            yield here, "base is the base model's own name", "give the adapter another name"
        elif not name or "/" in name or name in (".", "..") or not name.isprintable() or len(name) > 100:
            yield here, f"{name!r} cannot be a folder's name", "use letters, digits, '-' and '_'"
        versions = _mapping(adapter).get("versions")
        if isinstance(versions, list):
            yield from _listed((*here, "versions"), versions)


def _listed(here: Path, versions: list[Any]) -> Iterator[Found]:
    if not versions:
        yield here, "the list is empty", "name at least the version that is served first"
    seen = set()
    for index, version in enumerate(versions):
        if not isinstance(version, dict):
            continue
        if ("path" in version) == ("hub" in version):
            yield (*here, index), "expected either path or hub", "write one of them"
        name = version.get("id")
        if isinstance(name, str) and name in seen:
            yield (*here, index, "id"), f"{name!r} stands twice", "give each version its own id"
        seen.add(str(name))


def _target(target: dict[str, Any]) -> Iterator[Found]:
    if "managed" in target and "url" in target:
        yield ("target", "url"), "url and managed exclude each other", "keep one of them"
    outside = "managed" in target or _elsewhere(target)
    for key in EMBEDDED_ONLY:
        if outside and key in target:
            yield ("target", key), f"{key} is for the embedded server only", "remove it, or set url: embedded"
    server = _mapping(target.get("adapters_dir")).get("server")
    if isinstance(server, str) and not server.startswith("/"):
        yield ("target", "adapters_dir", "server"), f"expected an absolute path, got {server!r}", "write e.g. /adapters"
    yield from _managed_args(_mapping(target.get("managed")).get("args"))
    for name in _mapping(_mapping(target.get("managed")).get("env")):
        if name.upper().endswith(SECRET):
            yield ("target", "managed", "env", name), "looks like a secret", "export it: the server inherits it"


def _managed_args(args: object) -> Iterator[Found]:
    """Arguments that the run itself chooses, and those that hold a secret."""
    for index, arg in enumerate(args if isinstance(args, list) else []):
        flag = str(arg).partition("=")[0].replace("_", "-")
        if flag in MANAGED_FLAGS:
            here = ("target", "managed", "args", index)
            yield here, f"{flag} cannot be given as an argument", MANAGED_FLAGS[flag]


def _elsewhere(target: dict[str, Any]) -> bool:
    """Whether the server is at an address, not one that the run starts."""
    return "managed" not in target and ("replicas" in target or str(target.get("url", "")).startswith("http"))


def _fleet(target: dict[str, Any], traffic: dict[str, Any]) -> Iterator[Found]:
    """Replicas of one service, and how its streams are spread."""
    replicas = target.get("replicas")
    for key in ("url", "managed"):
        if replicas is not None and key in target:
            yield ("target", key), f"{key} and replicas exclude each other", "keep one of them"
    if isinstance(replicas, list):
        if len(replicas) < 2:
            words = f"a fleet has two or more servers, got {len(replicas)}"
            yield ("target", "replicas"), words, "add some, or write url instead"
        for index, url in enumerate(replicas):
            if url in replicas[:index]:
                yield ("target", "replicas", index), f"{units.found(url)} stands twice", "name each server once"
    if "spread" in target and replicas is None:
        yield ("target", "spread"), "spread is for replicas only", "remove it, or list replicas"
    if target.get("spread") == "user" and "arrivals" in traffic:
        yield ("target", "spread"), "an open loop has no users to spread by", "write round-robin"


def _forged(adapters: dict[str, Any], target: dict[str, Any]) -> Iterator[Found]:
    """Markers fit the server and can be forged for its base."""
    limit, served = target.get("max_lora_rank", 64), target.get("model")
    for name, adapter in adapters.items():
        rank = _mapping(adapter).get("rank", 8)
        if isinstance(rank, int) and isinstance(limit, int) and rank > limit:
            remedy = "lower it, or raise max_lora_rank"
            yield ("adapters", name, "rank"), f"{rank} is above target.max_lora_rank ({limit})", remedy
        if name == served and name != "base":
            yield ("adapters", name), f"{name!r} is the served base model's name", "give the adapter another name"
        if (
            _elsewhere(target)
            and "base" not in target
            and isinstance(_mapping(adapter).get("versions", "markers"), str)
        ):
            remedy = "set target.base to its folder, or list versions with paths"
            yield ("adapters", name, "versions"), "markers are forged for a base model, and which is not known", remedy


def _traffic(traffic: dict[str, Any], adapters: dict[str, Any]) -> Iterator[Found]:
    for key in ("arrivals", "stages"):
        if key in traffic and "users" in traffic:
            yield ("traffic", key), f"users and {key} exclude each other", "keep one of them"
    if "arrivals" in traffic and "stages" in traffic:
        yield ("traffic", "stages"), "arrivals and stages exclude each other", "keep one of them"
    if isinstance(traffic.get("arrivals"), dict) and len({"poisson", "constant"} & set(traffic["arrivals"])) != 1:
        yield ("traffic", "arrivals"), "expected either poisson or constant", "write e.g. arrivals: {poisson: 8/s}"
    for key, loop in (("spawn_rate", "arrivals"), ("think", "arrivals"), ("spawn_rate", "stages")):
        if key in traffic and loop in traffic:
            remedy = "remove it" if loop == "arrivals" else "write it in each stage"
            yield ("traffic", key), f"{key} and {loop} exclude each other", remedy
    yield from _patience(traffic)
    for name in _mapping(traffic.get("mix")):
        if name != "base" and adapters and name not in adapters:
            yield ("traffic", "mix", name), "no such adapter", units.suggest(name, [*adapters, "base"])
    prompts = traffic.get("prompts")
    if isinstance(prompts, dict) and len({"synthetic", "texts", "file"} & set(prompts)) != 1:
        yield ("traffic", "prompts"), "expected one of synthetic, texts and file", "keep one of them"


def _patience(traffic: dict[str, Any]) -> Iterator[Found]:
    stall, deadline = _seconds(traffic.get("stall", "60s")), _seconds(traffic.get("stream_deadline", "300s"))
    if stall is not None and deadline is not None and stall > deadline:
        key = "stall" if "stall" in traffic else "stream_deadline"
        words = f"stall ({units.show_duration(stall)}) is above stream_deadline ({units.show_duration(deadline)})"
        yield ("traffic", key), words, "lower stall, or raise stream_deadline"


def _seconds(value: object) -> float | None:
    try:
        return units.parse_duration(value)
    except units.BadValue:
        return None


def _phase(here: Path, phase: dict[str, Any], adapters: dict[str, Any]) -> Iterator[Found]:
    arm = phase.get("arm")
    if arm == "aa":
        for key in ("hotfix", "every", "count", "with", "mode", "timeout"):
            if key in phase:
                yield (*here, key), f"an aa phase makes no swaps, so it takes no {key}", "remove it, or change the arm"
        if "for" not in phase:
            yield here, "an aa phase needs a length", "add e.g. for: 10s"
    elif arm in (*SWAPS, "bad"):
        yield from _swap_phase(here, phase, adapters)


def _swap_phase(here: Path, phase: dict[str, Any], adapters: dict[str, Any]) -> Iterator[Found]:
    arm, name = phase["arm"], phase.get("hotfix")
    if name is None:
        yield here, f"a {arm} phase needs the adapter to hotfix", "add e.g. hotfix: tenant-a"
    elif isinstance(name, str) and adapters and name not in adapters:
        yield (*here, "hotfix"), f"no adapter {units.found(name)}", units.suggest(str(name), adapters)
    if "every" not in phase:
        yield here, f"a {arm} phase needs the time between swaps", "add e.g. every: 1s..2s"
    if arm == "bad" and not phase.get("with"):
        yield here, "a bad phase needs to know what is bad", "add e.g. with: [missing, corrupt, rank-too-high]"
    if arm != "bad" and "with" in phase:
        yield (*here, "with"), "with is for bad phases only", "remove it"
    if arm != "bad" and ("count" in phase) == ("for" in phase):
        yield here, f"a {arm} phase needs either count or for", "write how many swaps, or for how long"
    if arm == "bad" and "count" in phase and "for" in phase:
        yield (*here, "for"), "count and for exclude each other", "keep one of them"
    if arm == "bad" and phase.get("mode") == "reload":
        yield (*here, "mode"), "a reload would unload the adapter before the bad load is refused", "remove it"
    yield from _pace(here, phase)
    versions = _mapping(adapters.get(str(name))).get("versions")
    if arm == "real" and ((isinstance(versions, list) and len(versions) == 1) or versions == "markers 1"):
        yield (*here, "hotfix"), f"{name} has one version only, nothing to swap to", "give it two or more"


def _pace(here: Path, phase: dict[str, Any]) -> Iterator[Found]:
    """A phase with a length makes some swaps, and not too many."""
    length = _seconds(phase.get("for"))
    try:
        every = units.parse_every(phase.get("every"))
    except units.BadValue:
        return
    if length is not None and every.hi > length:
        words = f"may be over before the first swap, which comes after {every}"
        yield (*here, "for"), words, "make it longer, or every shorter"
    if length is not None and length / every.lo > MOST_SWAPS:
        yield (*here, "every"), f"makes more than {MOST_SWAPS} swaps in this phase", "make it longer"


def _modes(phases: list[dict[str, Any]]) -> Iterator[Found]:
    """One way of swapping in a run: the ledger and the latencies would mix two things otherwise."""
    for key, default in (("mode", "inplace"), ("timeout", "30s")):
        values = [(i, p.get(key, default)) for i, p in enumerate(phases) if p.get("arm") in (*SWAPS, "bad")]
        for index, value in values[1:]:
            if value != values[0][1]:
                yield ("phases", index, key), f"{key} differs from an earlier phase's", "use one per scenario"


def _require(require: dict[str, Any], phases: list[dict[str, Any]]) -> Iterator[Found]:
    arms = [p.get("arm") for p in phases]
    if "hangover" in require and phases:
        swaps = [i for i, arm in enumerate(arms) if arm in SWAPS]
        if not swaps or "aa" not in arms[: swaps[0]] or "aa" not in arms[swaps[-1] + 1 :]:
            where = "before the first and after the last swap"
            yield ("require", "hangover"), f"needs an aa phase {where}", "add them, or remove hangover"
