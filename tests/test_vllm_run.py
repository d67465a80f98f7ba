"""scenarios/vllm-cpu.yaml and a dying server, on a real vLLM that the tool starts itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from locust_run import ROOT, Locust
from managed_run import dies_in_the_middle, dies_with_the_tool
from vllm_kit import MARKS, need_vllm

from loadtest import history

pytestmark = MARKS
HEADLESS = ("--headless", "--only-summary")
VERSION_GUARANTEES = ("valid", "fresh", "untorn", "ordered", "monotonic")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Locust:
    need_vllm()
    locust = Locust(tmp_path_factory.mktemp("run"), str(ROOT / "scenarios" / "vllm-cpu.yaml"), *HEADLESS)
    try:
        assert locust.exit_code(600) == 1, locust.output
        assert locust.nothing_left()
    finally:
        locust.kill()
    return locust


def test_streams_are_torn_and_the_level_that_held_is_named(run: Locust) -> None:
    verdict = run.verdict()
    untorn = verdict["guarantees"]["untorn"]
    assert (verdict["status"], untorn["status"]) == ("FAIL", "FAIL")
    assert untorn["kinds"]["torn"] == untorn["violations"] >= 5
    # What else in-place loads do to a stream depends on who shares its batch: the level is named either way.
    flips = verdict["guarantees"]["ordered"]["status"] == "FAIL"
    held = verdict["level_held"]
    assert held in (("token-regular", "safe", None) if flips else ("token-atomic", "token-regular", "safe", None))
    witness = untorn["witnesses"][0]
    assert (witness["kind"], len(witness["versions"])) == ("torn", 2)


def test_all_streams_complete_and_all_swaps_are_answered(run: Locust) -> None:
    verdict = run.verdict()
    streams, swaps = verdict["streams"], verdict["swaps"]
    assert streams["fail"] == 0
    assert verdict["guarantees"]["complete"]["status"] == "PASS"
    assert streams["attempted"] > 50
    assert (swaps["ok"], swaps["fail"], swaps["info"]) == (26, 3, 0)
    assert swaps["by_arm"]["bad"]["fail"] == 3


def test_nobody_is_accused_where_nothing_changes(run: Locust) -> None:
    alarms = run.verdict()["false_alarms"]
    assert set(alarms) == {"aa", "sham"}
    for arm in alarms.values():
        assert {name: arm[name]["violations"] for name in VERSION_GUARANTEES} == dict.fromkeys(VERSION_GUARANTEES, 0)
        assert arm["valid"]["streams"] > 5


def test_every_token_of_an_adapter_is_attributed(run: Locust) -> None:
    verdict = run.verdict()
    assert verdict["tokens"]["unexplained"] == {"tenant-a": 0, "tenant-b": 0}
    assert verdict["guarantees"]["valid"]["violations"] == 0
    assert len(history.load(run.run).ids) == verdict["tokens"]["total"]


def test_a_vllm_that_dies_ends_the_run_judged_with_its_last_words(tmp_path: Path) -> None:
    need_vllm()
    locust = Locust(tmp_path, "managed.yaml", *HEADLESS)
    try:
        dies_in_the_middle(locust, "EngineCore", 400)
    finally:
        locust.kill()


def test_a_killed_tool_takes_vllm_and_its_engine_along(tmp_path: Path) -> None:
    need_vllm()
    locust = Locust(tmp_path, "managed.yaml", *HEADLESS)
    try:
        dies_with_the_tool(locust, "api_server", "EngineCore", patience_s=400)
    finally:
        locust.kill()
