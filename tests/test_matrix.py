"""A small part of the planted-fault matrix and of the innocent kinds; `make matrix` plays all of it."""

from __future__ import annotations

import matrix
import pytest

CHEAP_AT_ONE_PERCENT = ("torn at token j", "flip v1 v2 v1", "stale by 1 s", "an adapter answers as base")
CASES = [(name, level) for name, cell in matrix.CELLS.items() for level in cell.levels[:2]]
CASES += [(name, 0.01) for name in CHEAP_AT_ONE_PERCENT]


@pytest.mark.parametrize(("name", "level"), CASES)
def test_a_planted_fault_is_found_under_its_own_name_only(name: str, level: float) -> None:
    found = matrix.case(matrix.CELLS[name], level, seed=1)
    assert found.hits > 0 or name == "hangover of x"
    assert (found.detected, found.strays) == (True, frozenset())


@pytest.mark.parametrize("kind", matrix.INNOCENT)
def test_what_is_innocent_is_not_accused(kind: str) -> None:
    for seed in range(6):
        assert matrix.innocent(kind, seed) == set(), f"seed {seed}"


def test_the_model_knows_what_it_made() -> None:
    """Without a fault every token is of the version that the registry named when its stream was admitted."""
    world = matrix.make(matrix.Fault, 1.0, matrix.SHORT, seed=3)
    history = world.history()
    marker = {(v.adapter, v.version): v.markers[0] for v in history.versions}
    for i, stream in enumerate(world.streams):
        ids = history.ids[history.streams.start[i] :][: history.streams.tokens[i]]
        if stream.adapter != "base":
            assert set(ids.tolist()) == {marker[world.serving(stream.adapter, stream.admitted)]}
        assert list(stream.at) == sorted(stream.at)
    assert len({s.made[0] for s in world.streams if s.adapter == "a"}) == matrix.SHORT.swaps + 1
