"""From a scenario to folders on disk: the versions of every adapter that the run will load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.adapters.marker import VersionFile
from loadtest.errors import AdapterError, UsageError

if TYPE_CHECKING:
    from loadtest.plan import PhasePlan
    from loadtest.scenario import Adapter, Scenario
    from loadtest.target import Target

SPARE = 4  # marker versions beyond the plan, for an operator's hotfixes


def swaps_of(phases: Iterable[PhasePlan]) -> Counter[str]:
    """How many real swaps the plan makes, per adapter."""
    return Counter(p.adapter for p in phases if p.arm == "real" for _ in p.swaps)


def versions(
    scenario: Scenario, phases: Iterable[PhasePlan], target: Target, out: Path, seed: int
) -> dict[str, list[VersionFile]]:
    """Versions of each adapter, first the one that is loaded before traffic starts. Raises AdapterError, UsageError."""
    real = swaps_of(phases)
    made: dict[str, list[VersionFile]] = {}
    for name, adapter in scenario.adapters.items():
        found = (
            _markers(name, adapter, real[name], target, out, seed) if adapter.markers else _listed(name, adapter, out)
        )
        made[name] = _one_label_per_content(found)
        _check(name, made[name], scenario.target.max_lora_rank, target.base)
    return made


def _markers(name: str, adapter: Adapter, real: int, target: Target, out: Path, seed: int) -> list[VersionFile]:
    from loadtest.adapters.marker import Recipe, forge_versions

    if target.base is None:
        raise UsageError(
            f"adapters.{name}: markers are forged from the base model's weights, and where they are is not known",
            remedy="set target.base to the base model's folder, or list versions with paths",
        )
    count = adapter.marker_count or 1 + real + (SPARE if real else 0)
    return forge_versions(target.base, out, name, count, recipe=Recipe(adapter.rank, seed))


def _listed(name: str, adapter: Adapter, out: Path) -> list[VersionFile]:
    from loadtest.adapters.marker import read_markers
    from loadtest.adapters.peft import content_hash

    found = []
    for version in adapter.listed:
        path = Path(version.path) if version.path else _fetched(version.hub or "", out)
        found.append(VersionFile(version.id, path.resolve(), content_hash(path), read_markers(path)))
    return found


def _fetched(repo: str, out: Path) -> Path:
    from loadtest.adapters.hub import fetch

    return Path(fetch([repo], out / "hub", progress=lambda *_: None)[0].path)


def _one_label_per_content(found: list[VersionFile]) -> list[VersionFile]:
    """Equal contents cannot be told apart by what they emit, so they carry one label: the first."""
    labels: dict[str, str] = {}
    for v in found:
        labels.setdefault(v.sha, v.version)
    return [VersionFile(labels[v.sha], v.path, v.sha, v.markers) for v in found]


def _check(name: str, found: list[VersionFile], max_rank: int, base: Path | None) -> None:
    from loadtest.adapters.peft import refusals

    problems = [f"{v.version}: {r}" for v in found for r in refusals(v.path, max_rank=max_rank, base=base)]
    if problems:
        raise AdapterError(f"adapters.{name} would be refused: " + "; ".join(problems))
