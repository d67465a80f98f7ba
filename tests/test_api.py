"""The library: docs/library.md as it stands, inside a running event loop, interrupted, and with what goes wrong."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rawserver import until
from tools_kit import Server as Embedded
from tools_kit import embedded as started
from tools_kit import markers

import loadtest
from loadtest.target import request

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "library.md").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with started(tmp_path_factory.mktemp("server")) as server:
        yield server


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.mark.parametrize("number", range(len(blocks())))
def test_the_page_s_examples_run_as_they_stand(number: int, tmp_path: Path) -> None:
    script = tmp_path / "test_example.py"
    script.write_text(blocks()[number])
    how = ["-m", "pytest", "-q", "-p", "no:cacheprovider"] if "def test_" in script.read_text() else []
    done = subprocess.run(
        [sys.executable, *how, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if not how:
        assert done.stderr == "", "progress is logged, not printed"


def test_every_public_name_exists_and_is_on_the_page_or_in_the_docstring() -> None:
    for name in loadtest.__all__:
        assert getattr(loadtest, name).__doc__
        assert name in dir(loadtest)
        assert (
            name in PAGE + str(loadtest.__doc__)
            or issubclass(getattr(loadtest, name), loadtest.LoadtestError)
            or (name in ("Operation", "Run", "Served"))
        ), name
    with pytest.raises(AttributeError, match="no attribute 'hotfx'"):
        loadtest.hotfx  # noqa: B018


def test_the_package_is_typed_for_its_users(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(
        "from loadtest import Run, Server, hotfix\n"
        "def check(url: str) -> Run:\n"
        "    held: str | None = hotfix(url, streams=3, level='safe').level_held\n"
        "    Server(url).hotfix('a', held or 'b').first_seen_ms\n"
        "    return hotfix(url, strems=3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent", "user.py"],
        cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Found 1 error" in done.stdout, done.stdout
    assert (ROOT / "loadtest" / "py.typed").is_file()
    assert 'Unexpected keyword argument "strems"' in done.stdout


def test_calls_work_inside_a_running_event_loop(server: Embedded, tmp_path: Path) -> None:
    old, new = markers(server, "looped", 2)

    async def cell() -> tuple[loadtest.Operation, list[str], loadtest.Run]:
        remote = loadtest.Server(server.url)
        assert remote.load("looped", old.path).ok
        swapped = remote.hotfix("looped", new.path)
        names = [model.name for model in remote.models()]
        run = loadtest.hotfix(server.url, streams=3, swaps=1, results=tmp_path)
        assert remote.unload("looped").ok
        return swapped, names, run

    swapped, names, run = asyncio.run(cell())
    assert swapped.replaced == str(old.path)
    assert swapped.first_seen_ms is not None
    assert "looped" in names
    assert run.status in ("PASS", "UNKNOWN"), run
    assert (run.ended, run.folder.parent) == ("complete", tmp_path)
    assert run.report.is_file()
    assert "swap latency" in str(run)
    assert loadtest.judge(run.folder).guarantees == run.guarantees


def test_a_server_that_tears_streams_gives_witnesses_to_read(tmp_path: Path) -> None:
    with loadtest.embedded("switch") as torn:
        run = loadtest.hotfix(torn.url, streams=6, swaps=3, results=tmp_path)
    assert (run.status, run.passed, run.guarantees["untorn"]) == ("FAIL", False, "FAIL")
    assert any("torn at" in sentence for sentence in run.witnesses)
    assert run.level_held in ("token-atomic", "token-regular")


INTERRUPTED = """
import asyncio, sys
import loadtest
url, results, looped = sys.argv[1:]

def call():
    loadtest.hotfix(url, streams=3, swaps=500, results=results)

async def cell():
    call()

try:
    asyncio.run(cell()) if looped == "looped" else call()
except KeyboardInterrupt:
    print("passed on")
"""


@pytest.mark.parametrize("looped", ["looped", "plain"])
def test_an_interrupt_rolls_back_and_goes_on_to_the_caller(server: Embedded, tmp_path: Path, looped: str) -> None:
    def journal() -> str:
        return "".join(f.read_text() for f in tmp_path.glob("*-hotfix-*/history-e0.jsonl"))

    def served() -> dict[str, str]:
        cards = json.loads(request(server.url, "GET", "/v1/models", {})[1])["data"]
        return {card["id"]: card["root"] for card in cards}

    before = served()
    command = [sys.executable, "-c", INTERRUPTED, server.url, str(tmp_path), looped]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            until(lambda: '"by":"scenario"' in journal(), 60)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert out == "passed on\n"
    assert served() == before


def test_a_scenario_with_mistakes_and_a_target_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("target: {url: embedded}\nusers: 3\n")
    with pytest.raises(loadtest.ScenarioError, match=r"bad\.yaml"):
        loadtest.run(tmp_path / "bad.yaml")
    with pytest.raises(loadtest.TargetError, match="got no answer"):
        loadtest.run(ROOT / "scenarios" / "quickstart.yaml", target="http://127.0.0.1:9", results=tmp_path)
    with pytest.raises(loadtest.Unreachable, match="connection refused"):
        loadtest.hotfix("http://127.0.0.1:9", results=tmp_path)
    with pytest.raises(loadtest.Unreachable):
        loadtest.Server("http://127.0.0.1:9").models()
    with pytest.raises(loadtest.UsageError):
        loadtest.judge(tmp_path)


def test_a_run_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(loadtest.TargetError, match=r"not over after 0\.5 s"):
        loadtest.run(ROOT / "scenarios" / "quickstart.yaml", results=tmp_path, timeout_s=0.5)
