"""`loadtest hotfix`: a real run without Locust, on servers that swap well, badly, or not at all."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rawserver import Call, serving, until
from tools_kit import Said, Server, embedded, finish, markers, run, start

from loadtest.target import request

Caps = pytest.CaptureFixture[str]
FEW = ("--streams", 4, "--swaps", 2, "--seed", 7)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with embedded(tmp_path_factory.mktemp("server"), "--step-ms", "10") as server:
        yield server


def hotfix(folder: Path, *argv: object) -> Said:
    return finish(start("hotfix", "--results", folder, *argv), 120)


def served(server: Server) -> dict[str, str]:
    cards = json.loads(request(server.url, "GET", "/v1/models", {})[1])["data"]
    return {card["id"]: card["root"] for card in cards}


def children_of(folder: Path) -> list[int]:
    """Processes whose command line or log names the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def test_with_no_arguments_it_shows_on_one_screen_what_happened(tmp_path: Path) -> None:
    said = hotfix(tmp_path, *FEW)
    assert said.code in (0, 2), said.err  # 2: a busy machine saturates the client, which then proves nothing
    lines = said.out.splitlines()
    assert lines[0].startswith("swaps")
    assert lines[0].count("▼") == 2
    assert [line.split("  ")[0] for line in lines[1:5]] == ["user 1", "user 2", "user 3", "user 4"]
    bars = "".join(lines[1:5])
    assert {"0", "1", "2", "["} <= set(bars)
    assert {"?", "x", "!"} & set(bars) == set()
    for word in ("ack", "effect", "drain", "stall", "tokens of tenant-a:", "2 ok, 0 fail, 0 info"):
        assert word in said.out
    assert len(lines) < 40
    (folder,) = tmp_path.glob("*-hotfix-*")
    assert {"scenario.yaml", "verdict.json", "report.md"} <= {f.name for f in folder.iterdir()}
    assert not children_of(tmp_path)


@pytest.mark.slow
def test_a_server_that_tears_streams_is_convicted_with_a_witness(tmp_path: Path) -> None:
    said = hotfix(tmp_path, "--swap", "switch", "--streams", 6, "--swaps", 4, "--json")
    assert said.code == 1
    verdict: dict[str, Any] = json.loads(said.out)
    assert verdict["status"] == "FAIL"
    assert verdict["guarantees"]["untorn"]["violations"] > 0
    assert verdict["guarantees"]["complete"]["status"] == "PASS"
    assert Path(verdict["folder"]).is_dir()
    allowed = hotfix(tmp_path, "--swap", "switch", "--streams", 6, "--swaps", 4, "--level", "token-atomic")
    assert allowed.code in (0, 2)


def test_a_server_by_url_is_left_with_what_it_had(server: Server, tmp_path: Path) -> None:
    before = served(server)
    said = hotfix(tmp_path, "--url", server.url, *FEW)
    assert said.code in (0, 2), said.err
    assert "tokens of tenant-a:" in said.out
    assert served(server) == before


def test_one_adapter_of_mine_to_one_new_version(server: Server, tmp_path: Path, capsys: Caps) -> None:
    old, new = markers(server, "mine", 2)
    assert run(capsys, "adapters", "load", "mine", old.path, "--url", server.url).code == 0
    said = hotfix(tmp_path, "--url", server.url, "--adapter", "mine", "--to", new.path, "--swaps", 1, "--streams", 3)
    assert said.code in (0, 2), said.err
    assert "by old" in said.out
    assert "by new" in said.out
    (verdict,) = tmp_path.glob("*-hotfix-*/verdict.json")
    assert json.loads(verdict.read_text())["swaps"]["ok"] >= 1
    assert served(server)["mine"] == str(old.path)  # not from a folder of the run
    assert run(capsys, "adapters", "unload", "mine", "--url", server.url).code == 0


def test_ctrl_c_rolls_back_judges_and_leaves_nothing_running(tmp_path: Path) -> None:
    process = start("hotfix", "--results", tmp_path, "--swaps", 500)

    def swaps() -> int:
        journals = list(tmp_path.glob("*-hotfix-*/history-e0.jsonl"))
        return journals[0].read_text().count('"by":"scenario"') if journals else 0

    until(lambda: swaps() >= 1, 60)
    process.send_signal(signal.SIGINT)
    said = finish(process)
    assert said.code in (0, 1, 2), said.err
    assert "interrupted: rolling back" in said.err
    assert "the run ended early: interrupted" in said.out
    until(lambda: not children_of(tmp_path))


def test_servers_on_which_nothing_can_be_tried(tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{s.getsockname()[1]}"
    assert hotfix(tmp_path, "--url", nobody).code == 69

    async def garbage(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\n\x00\xff{")

    async def elsewhere(call: Call) -> None:
        body = b'{"data":[{"id":"m","root":"/nowhere/m"}]}'
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)

    with serving(garbage) as raw:
        assert hotfix(tmp_path, "--url", raw.url).code == 69
    with serving(elsewhere) as raw:
        unknown = hotfix(tmp_path, "--url", raw.url)
        unloaded = hotfix(tmp_path, "--url", raw.url, "--adapter", "a", "--to", tmp_path)
    assert unknown.code == unloaded.code == 64
    assert "--base" in unknown.err
    assert "--from" in unloaded.err
    assert hotfix(tmp_path, "--to", tmp_path).code == 64
    with embedded(tmp_path, "--no-runtime-lora") as off:
        said = hotfix(tmp_path, "--url", off.url)
    assert said.code == 69
    assert "runtime LoRA is off" in said.err
