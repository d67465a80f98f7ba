"""docs/workflow.yml: its own shell steps, run as a job would, on a PASS, a FAIL and an UNKNOWN; and the job summary."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import report_maker as maker
import yaml

from loadtest import harness

ROOT = Path(__file__).parent.parent
WORKFLOW = ROOT / "docs" / "workflow.yml"
RUNS = {
    "PASS": maker.Play(torn=False, fail_every=10**9, hangover=1.0),
    "FAIL": maker.Play(torn=True, fail_every=10**9),
    "UNKNOWN": maker.Play(torn=False, fail_every=10**9, hangover=1.0, swaps=3),
}
CODES = {"PASS": 0, "FAIL": 1, "UNKNOWN": 2}
SCENARIO = """title: "Hotfix <tenant>"
target: {url: embedded}
adapters: {tenant-a: {versions: markers}, tenant-b: {versions: markers 1}}
traffic: {users: 4, mix: {tenant-a: 3, tenant-b: 1}, prompts: {synthetic: {tokens: 8..16}}, max_tokens: 16..32}
phases: [{arm: real, hotfix: tenant-a, every: 1s, count: 8}]
require: {level: stream-atomic, min_swaps: 5}
"""
# Stands for `loadtest run SCENARIO --results results`: a run that was recorded, judged by the real command.
SHIM = """#!/bin/sh
[ "$1" = run ] && [ "$3" = --results ] || exit 64
[ -n "$RECORDED" ] || exit 69
mkdir -p "$4" && cp -r "$RECORDED" "$4/run" && ln -s run "$4/latest" || exit 70
exec {python} -m loadtest.cli judge "$4/run"
"""


def steps() -> dict[str, Any]:
    job = yaml.safe_load(WORKFLOW.read_text())["jobs"]["hotfix"]
    return {s["name"]: s for s in job["steps"] if "name" in s} | {"env": job["env"]}


class Job:
    """A folder in which a job's shell steps run, with the files that a runner gives them."""

    def __init__(self, folder: Path, recorded: Path | None, **env: str) -> None:
        self.folder, self.output, self.summary = folder, folder / "output", folder / "summary.md"
        shim = folder / "bin" / "loadtest"
        shim.parent.mkdir(parents=True)
        shim.write_text(SHIM.replace("{python}", sys.executable))
        shim.chmod(0o755)
        self.env = {
            **os.environ, **steps()["env"], "RECORDED": str(recorded or ""), "PYTHONPATH": str(ROOT),
            "PATH": f"{shim.parent}:{os.environ['PATH']}", "GITHUB_OUTPUT": str(self.output),
            "GITHUB_STEP_SUMMARY": str(self.summary), **env,
        }  # fmt: skip

    def step(self, name: str, **env: str) -> subprocess.CompletedProcess[str]:
        """As a runner does: `bash -e` on a file."""
        script = self.folder / "step.sh"
        script.write_text(steps()[name]["run"])
        return subprocess.run(
            ["bash", "-e", str(script)], cwd=self.folder, env={**self.env, **env}, capture_output=True, text=True
        )

    def gate(self) -> subprocess.CompletedProcess[str]:
        run = self.step("Run the scenario")
        assert run.returncode == 0, run.stderr  # the gate decides, after the evidence is kept
        code = dict(line.split("=", 1) for line in self.output.read_text().splitlines())["code"]
        return self.step("Gate", CODE=code)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = {}
    for status, play in RUNS.items():
        folder = tmp_path_factory.mktemp("runs") / status
        maker.write(folder, play)
        (folder / "scenario.yaml").write_text(SCENARIO)
        assert harness.judge(folder).status == status
        out[status] = folder
    return out


@pytest.mark.parametrize(("status", "ends"), [("PASS", 0), ("FAIL", 1), ("UNKNOWN", 1)])
def test_the_gate_lets_a_pass_through_and_nothing_else(
    tmp_path: Path, recorded: dict[str, Path], status: str, ends: int
) -> None:
    job = Job(tmp_path, recorded[status])
    gate = job.gate()
    assert gate.returncode == ends
    assert f"{status}: stream-atomic is required" in gate.stdout
    assert gate.stdout.startswith("::error title=") is (status != "PASS")
    assert f"code={CODES[status]}" in job.output.read_text()


def test_an_unknown_may_be_let_through_with_a_warning_but_a_fail_may_not(
    tmp_path: Path, recorded: dict[str, Path]
) -> None:
    gate = Job(tmp_path / "unknown", recorded["UNKNOWN"], ON_UNKNOWN="warn").gate()
    assert (gate.returncode, gate.stdout[:16]) == (0, "::warning title=")
    assert Job(tmp_path / "fail", recorded["FAIL"], ON_UNKNOWN="warn").gate().returncode == 1


def test_a_run_that_could_not_run_fails_the_build(tmp_path: Path) -> None:
    gate = Job(tmp_path, None, ON_UNKNOWN="warn").gate()
    assert gate.returncode == 1
    assert "exit code 69" in gate.stdout


def test_the_workflow_names_a_scenario_that_exists_and_quotes_what_it_is_given() -> None:
    found = steps()
    assert (ROOT / found["env"]["SCENARIO"]).is_file()
    for name in ("Run the scenario", "Gate"):  # an expression inside a script would be run as shell
        assert "${{" not in found[name]["run"]
    assert found["Keep the evidence"]["if"] == "always()"


def test_a_jobs_summary_gets_the_report_once_and_keeps_what_it_has(
    tmp_path: Path, recorded: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("earlier\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    harness.summarize(recorded["FAIL"] / "report.md")
    text = summary.read_text()
    assert text.startswith("earlier\n# Hotfix &lt;tenant&gt;: FAIL")
    assert text.count("FAIL: stream-atomic is required") == 1


def test_a_summary_that_cannot_be_written_is_said_and_changes_nothing(
    tmp_path: Path, recorded: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "no" / "summary.md"))
    harness.summarize(recorded["FAIL"] / "report.md")
    assert "$GITHUB_STEP_SUMMARY was not written" in capsys.readouterr().err
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    harness.summarize(tmp_path / "missing.md")
