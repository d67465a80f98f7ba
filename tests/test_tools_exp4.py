"""exp4-up, health, exp4-benchmark, exp4-down: a server between commands, and nothing left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from rawserver import until
from tools_kit import Said, finish, run, start

from loadtest.errors import Unreachable
from loadtest.target import request
from loadtest.tools import keeper

ROOT = Path(__file__).parent.parent
Caps = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A state folder; whatever is up in it goes down with the test."""
    folder = tmp_path / "exp4"
    yield folder
    finish(start("exp4", "--folder", folder, "down"))


def exp4(folder: Path, *argv: object) -> Said:
    return finish(start("exp4", "--folder", folder, *argv), 120)


def up(folder: Path) -> str:
    said = exp4(folder, "up", "--engine", "embedded")
    assert said.code == 0, said.err
    return said.out.strip()


def processes(folder: Path) -> dict[psutil.Process, list[str]]:
    """Keeper, guardian and server of `folder`, with their command lines, which name it."""
    found = {}
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if process.pid != os.getpid() and any(str(folder) in word for word in words):
            found[process] = words
    return found


def gone(url: str) -> bool:
    try:
        request(url, "GET", "/health", {}, timeout_s=2.0)
    except Unreachable:
        return True
    return False


def test_up_health_and_down(folder: Path) -> None:
    url = up(folder)
    well = exp4(folder, "health")
    assert (well.code, well.out) == (0, f"embedded on {url} is healthy and serves base\n")
    assert exp4(folder, "up", "--engine", "embedded").out.strip() == url
    assert len(processes(folder)) >= 2
    assert exp4(folder, "down").code == 0
    assert gone(url)
    until(lambda: not processes(folder))
    assert not (folder / keeper.STATE).exists()
    assert not (folder / keeper.CONTROL).exists()
    assert exp4(folder, "health").code == 69
    assert exp4(folder, "down").code == 0
    assert exp4(folder, "benchmark").code == 69


def test_the_benchmark_runs_on_what_is_up_and_other_commands_find_it(folder: Path, tmp_path: Path) -> None:
    url = up(folder)
    default = tmp_path / ".exp4"
    default.symlink_to(folder)
    env = {k: v for k, v in os.environ.items() if k != "LOADTEST_TARGET"}
    command = [sys.executable, "-m", "loadtest.cli"]
    listed = subprocess.run(
        [*command, "adapters", "list", "--json"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert [card["id"] for card in json.loads(listed.stdout)] == ["base"]
    done = subprocess.run(
        [*command, "exp4", "benchmark", "--ranks", "8", "--repeat", "2", "--json"],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["url"] == url
    assert {row["n"] for row in found["rows"]} == {2}


def test_a_killed_keeper_takes_its_server_along_and_up_starts_afresh(folder: Path) -> None:
    url = up(folder)
    (holder,) = (p for p, words in processes(folder).items() if "loadtest.tools.keeper" in words)
    holder.send_signal(signal.SIGKILL)
    until(lambda: gone(url))
    until(lambda: not processes(folder))
    assert exp4(folder, "health").code == 69
    assert not gone(up(folder))


def test_a_server_that_dies_is_noticed(folder: Path) -> None:
    url = up(folder)
    (server,) = (p for p, w in processes(folder).items() if "--served-model-name" in w and "--" not in w)
    server.kill()
    until(lambda: not processes(folder))
    assert gone(url)
    said = exp4(folder, "health")
    assert said.code == 69
    assert "make exp4-up" in said.err
    assert "ended by itself" in (folder / keeper.LOG).read_text()


def test_ctrl_c_while_it_starts_leaves_nothing(folder: Path) -> None:
    process = start("exp4", "--folder", folder, "up", "--engine", "embedded")
    until(lambda: any("loadtest.tools.keeper" in words for words in processes(folder).values()))
    process.send_signal(signal.SIGINT)
    code = finish(process).code
    assert code in (0, 130)  # 0: it was up before the signal came
    if code == 130:
        assert not processes(folder), "it ended before its server"
        assert not (folder / keeper.CONTROL).exists()
    exp4(folder, "down")
    until(lambda: not processes(folder))


def test_a_keeper_that_cannot_start_says_why(folder: Path, capsys: Caps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADTEST_CACHE", "/proc/nowhere")
    said = exp4(folder, "up", "--engine", "embedded")
    assert said.code == 69
    assert "embedded did not start" in said.err
    assert not processes(folder)


def test_insisting_on_what_is_not_there(folder: Path, tmp_path: Path) -> None:
    for engine, word in (("docker", "no containers"), ("vllm-cpu", "make vllm")):
        process = start("exp4", "--folder", folder, "up", "--engine", engine, cwd=tmp_path)
        said = finish(process)
        assert said.code == 69
        assert word in said.err
    assert not processes(folder)


def test_auto_says_why_it_takes_what_it_takes(folder: Path, tmp_path: Path) -> None:
    said = finish(start("exp4", "--folder", folder, "up", cwd=tmp_path))
    assert said.code == 0
    assert "no compose/ here, so no containers" in said.err
    assert "no managed vLLM" in said.err
    assert "using the embedded server" in said.err


FAKE_DOCKER = """#!/bin/sh
echo "$@" >> "$DOCKER_CALLS"
case "$1 $2" in
  "info --format") echo '{"runc":{}}' ;;
  "compose version"|"info ") ;;
  "compose -p") [ -z "$DOCKER_FAILS" ] || case "$*" in *" up "*) exit 17 ;; esac ;;
  *) exit 1 ;;
esac
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `docker` that answers and writes down what it was asked; in the working directory compose/ is the real one."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "docker").write_text(FAKE_DOCKER)
    (tmp_path / "bin" / "docker").chmod(0o755)
    (tmp_path / "compose").symlink_to(ROOT / "compose")
    calls = tmp_path / "calls"
    calls.touch()
    monkeypatch.setenv("DOCKER_CALLS", str(calls))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return calls


def test_with_a_docker_engine_compose_is_used(
    docker: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Caps
) -> None:
    inner = tmp_path / "inner"
    url = up(inner)  # stands in for the container's server
    monkeypatch.setenv("EXP4_PORT", url.rpartition(":")[2])
    said = run(capsys, "exp4", "--folder", folder, "up")
    assert said.code == 0, said.err
    assert "without an NVIDIA runtime: using compose/cpu.yml" in said.err
    assert "compose -p exp4 -f compose/cpu.yml up --detach" in docker.read_text()
    assert run(capsys, "exp4", "--folder", folder, "health").out.startswith("docker on ")
    state = keeper.load(folder)
    assert state is not None
    assert state.adapters == f"{(folder / 'adapters').resolve()}:/adapters"
    assert (folder / "adapters").is_dir()
    assert run(capsys, "exp4", "--folder", folder, "down").code == 0
    assert "compose -p exp4 -f compose/cpu.yml down" in docker.read_text()
    assert keeper.load(folder) is None
    exp4(inner, "down")


def test_containers_that_do_not_start_are_taken_down(
    docker: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Caps
) -> None:
    monkeypatch.setenv("DOCKER_FAILS", "1")
    said = run(capsys, "exp4", "--folder", folder, "up")
    assert said.code == 69
    assert "ended with status 17" in said.err
    assert docker.read_text().splitlines()[-1].endswith("down --remove-orphans")
    assert keeper.load(folder) is None


def test_the_make_targets_call_these_commands(folder: Path) -> None:
    make = ["make", "-s", "-o", ".venv/.installed", f"EXP4={folder}", "ENGINE=embedded"]
    make += [f"BIN={Path(sys.executable).parent}", "BENCH=--ranks 8 --repeat 1 --json"]

    def target(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*make, name], cwd=ROOT, capture_output=True, text=True, check=False)

    assert target("health").returncode != 0
    url = target("exp4-up").stdout.strip()
    assert url.startswith("http://127.0.0.1:")
    assert "healthy" in target("health").stdout
    measured = target("exp4-benchmark")
    assert measured.returncode == 0, measured.stderr
    written = Path(measured.stderr.rpartition("written to ")[2].strip())
    (ROOT / written).unlink()
    assert target("exp4-down").returncode == 0
    assert gone(url)
    until(lambda: not processes(folder))
