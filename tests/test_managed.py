"""Managed servers, on a stand-in that takes vLLM's command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_vllm import install
from locust_run import Locust
from managed_run import PLAYING, dies_in_the_middle, dies_with_the_tool

from loadtest.errors import ScenarioError, TargetDied, UsageError
from loadtest.managed import open_managed
from loadtest.scenario import Managed, Target, loads

HEADLESS = ("--headless", "--only-summary")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Locust]:
    monkeypatch.setenv("LOADTEST_VLLM_PYTHON", str(install(tmp_path)))
    locust = Locust(tmp_path, "managed.yaml", *HEADLESS)
    yield locust
    locust.kill()


def test_a_server_that_dies_ends_the_run_judged_with_its_last_words(run: Locust) -> None:
    dies_in_the_middle(run, "RuntimeError: Engine core died")
    assert "\x1b[31m" not in (run.run / "report.md").read_text()


def test_a_killed_tool_takes_the_server_and_its_children_along(run: Locust) -> None:
    run.wait_for(PLAYING)
    dies_with_the_tool(run, "fake_vllm.py", "loadtest.server.app", "loadtest.traffic.engine")


def test_a_server_that_refuses_its_arguments_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADTEST_VLLM_PYTHON", str(install(tmp_path)))
    managed = Managed(args=("--no-such-flag",))
    with pytest.raises(TargetDied, match="unrecognized arguments: --no-such-flag"):
        open_managed(Target(managed=managed), tmp_path, lambda line: None)


def test_arguments_that_the_run_chooses_or_that_are_secret_are_refused_by_name() -> None:
    args = "[--port=80, --api_key, x, --dtype, bfloat16]"
    text = f"adapters: {{a: {{}}}}\nphases: [{{arm: aa, for: 1s}}]\ntarget: {{managed: {{args: {args}}}}}"
    with pytest.raises(ScenarioError) as e:
        loads(text)
    assert [p.key for p in e.value.problems] == ["target.managed.args[0]", "target.managed.args[1]"]


def test_a_key_that_is_not_exported_is_named_before_the_server_starts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="NO_SUCH_KEY"):
        open_managed(Target(managed=Managed(), api_key_env="NO_SUCH_KEY"), tmp_path, lambda line: None)
