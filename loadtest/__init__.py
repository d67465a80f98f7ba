"""Load and chaos testing for LoRA hotfixes: what happens to the users who stream from an adapter that is replaced?

For a notebook or a test (docs/library.md); each name is imported when it is first used:

    hotfix(url)              replace an adapter while a few streams run; a judged Run
    run(scenario)            a scenario under Locust; a judged Run
    judge(folder)            a recorded run judged again
    Server(url)              adapters listed, loaded, unloaded, replaced
    embedded()               a server to try it on, for the length of a `with` block
    forge, refusals          marker adapters made; why an engine would refuse a folder
    LoadtestError            what all of these raise; errors.py has the tree

The map. Imports go downwards only:

    cli tools swarm api      the commands, and Locust on top (the only package that imports it)
    harness prepare target   one run from start to end; the server found, or started and guarded
    report analysis          files in, verdict and pages out; numpy
    chaos traffic            swaps on schedule; streams sent and stamped, in an engine process of their own
    adapters server          PEFT folders and marker adapters; the embedded server, which shares nothing with its tester
    plan scenario history    pure: YAML to plan, journal to columns
    records errors           the types that cross borders; every error a user can cause

Vocabulary, one word per thing:

    adapter        a LoRA name, what clients put in `model`; base is the base model
    version        one content (a PEFT folder) under that name
    bystander      an adapter, or base, that is not being swapped
    hotfix, swap   the user's goal; one admin operation doing it, in place or by reload
    invoked, acked, seen     a swap: before its bytes leave, its answer read, first token of the new version
    ok, fail, info           outcome of an operation: done; refused; may have happened, or may yet
    PASS, FAIL, UNKNOWN      status of a claim
    exposed, torn, flip, stale, leak, alien, hangover ...    docs/guarantees.md
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loadtest.adapters.checks import refusals
    from loadtest.api import Operation, Run, Served, Server, embedded, forge, hotfix, judge, run
    from loadtest.errors import AdapterError, FeatureOff, LoadtestError, ScenarioError, TargetError, Unreachable
    from loadtest.errors import UsageError as UsageError

_HOME = {
    "loadtest.adapters.checks": ("refusals",),
    "loadtest.api": ("Operation", "Run", "Served", "Server", "embedded", "forge", "hotfix", "judge", "run"),
    "loadtest.errors": (
        "AdapterError", "FeatureOff", "LoadtestError", "ScenarioError", "TargetError", "Unreachable", "UsageError",
    ),
}  # fmt: skip

__all__ = [
    "AdapterError",
    "FeatureOff",
    "LoadtestError",
    "Operation",
    "Run",
    "ScenarioError",
    "Served",
    "Server",
    "TargetError",
    "Unreachable",
    "UsageError",
    "embedded",
    "forge",
    "hotfix",
    "judge",
    "refusals",
    "run",
]


def __getattr__(name: str) -> Any:
    """The public names, imported late: `import loadtest` must not pay for numpy or aiohttp."""
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'loadtest' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
