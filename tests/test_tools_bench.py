"""`loadtest bench` on the embedded server, and on servers that are wrong, off, or interrupted."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from rawserver import Call, serving, until
from tools_kit import Server, embedded, finish, run, start

from loadtest.target import request
from loadtest.tools.bench import OPERATIONS, Measured, Settings
from loadtest.tools.bench_report import document, shown

Caps = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with embedded(tmp_path_factory.mktemp("server"), "--max-lora-rank", "16") as server:
        yield server


def served(server: Server) -> list[str]:
    return [card["id"] for card in json.loads(request(server.url, "GET", "/v1/models", {})[1])["data"]]


def test_every_operation_is_measured_at_every_rank_idle_and_under_load(
    server: Server, capsys: Caps, tmp_path: Path
) -> None:
    out = tmp_path / "bench.json"
    said = run(capsys, "bench", "--url", server.url, "--ranks", "8,16", "--repeat", 3, "--streams", 2, "--json",
               "--out", out)  # fmt: skip
    assert said.code == 0
    assert json.loads(out.read_text()) == said.json
    keys = {(r["operation"], r["condition"], r["rank"]) for r in said.json["rows"]}
    assert keys == {(o, c, k) for o in OPERATIONS for c in ("idle", "load") for k in (8, 16)}
    assert all(r["n"] == 3 and r["failed"] == 0 and len(r["samples"]) == 3 for r in said.json["rows"])
    assert all(0 < r["p50"]["value"] <= r["p90"]["value"] <= r["p99"]["value"] for r in said.json["rows"])
    assert said.json["background"]["failed"] == 0
    assert said.json["model"] == "base"
    assert served(server) == ["base"]
    assert list(tmp_path.iterdir()) == [out]


def test_a_rank_that_the_server_refuses_is_said_and_makes_it_incomplete(
    server: Server, capsys: Caps, tmp_path: Path
) -> None:
    said = run(capsys, "bench", "--url", server.url, "--ranks", "8,32", "--repeat", 1, "--streams", 0, "--out",
               tmp_path / "b.json")  # fmt: skip
    assert said.code == 2
    assert "rank 32 is not served: fail:" in said.out
    assert "in-place swap\tidle\t8\t1\t" in said.out
    assert "\tload\t" not in said.out
    assert served(server) == ["base"]


def test_adapters_can_lie_where_the_server_sees_them_under_another_name(
    server: Server, capsys: Caps, tmp_path: Path
) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "mount").symlink_to(tmp_path / "local")
    said = run(capsys, "bench", "--url", server.url, "--base", server.base, "--ranks", 8, "--repeat", 1,
               "--adapters-dir", f"{tmp_path}/local:{tmp_path}/mount", "--out", tmp_path / "b.json")  # fmt: skip
    assert said.code == 0
    assert list((tmp_path / "local").iterdir()) == []


def test_ctrl_c_leaves_nothing_loaded_and_nothing_on_disk(server: Server, tmp_path: Path) -> None:
    process = start("bench", "--url", server.url, "--ranks", 16, "--repeat", 1000, "--out", tmp_path / "b.json")
    until(lambda: any("-r16-" in name for name in served(server)), 30)
    process.send_signal(signal.SIGINT)
    said = finish(process)
    assert said.code == 130
    assert served(server) == ["base"]
    assert list(tmp_path.iterdir()) == []


def test_servers_that_cannot_be_measured(server: Server, capsys: Caps, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "b.json", "--ranks", 8, "--repeat", 1)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{s.getsockname()[1]}"
    assert run(capsys, "bench", "--url", nobody, *out).code == 69

    async def garbage(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\x00\xff{")

    async def off(call: Call) -> None:
        cards = b'{"data":[{"id":"m","root":"/nowhere/m"}]}'
        body = cards if call.path == "/v1/models" else b'{"detail":"Not Found"}'
        status = 200 if call.path == "/v1/models" else 404
        await call.send(
            b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(body)) + body
        )

    async def says_success(call: Call) -> None:
        cards = json.dumps({"data": [{"id": "base", "root": str(server.base)}]}).encode()
        body = cards if call.path == "/v1/models" else b"Success"
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)

    with serving(garbage) as raw:
        assert run(capsys, "bench", "--url", raw.url, *out).code == 69
    with serving(says_success) as raw:
        said = run(capsys, "bench", "--url", raw.url, *out, "--streams", 1, "--json")
    assert said.code == 2
    assert "status 200 without a completion" in str(said.json["rows"])
    assert (said.json["background"]["streams"], said.json["background"]["failed"] > 0) == (0, True)
    (tmp_path / "b.json").unlink()
    with serving(off) as raw:
        unknown = run(capsys, "bench", "--url", raw.url, *out)
    assert unknown.code == 64
    assert "--base" in unknown.err
    assert list(tmp_path.iterdir()) == []


def test_a_server_without_runtime_lora(server: Server, capsys: Caps, tmp_path: Path) -> None:
    with embedded(tmp_path, "--no-runtime-lora") as off:
        said = run(capsys, "bench", "--url", off.url, "--ranks", 8, "--out", tmp_path / "b.json")
    assert said.code == 69
    assert "runtime LoRA is off" in said.err


@pytest.mark.parametrize("ranks", ["", "8,", "0", "eight", "8,1024"])
def test_ranks_that_are_none(ranks: str, capsys: Caps) -> None:
    said = run(capsys, "bench", "--url", "http://127.0.0.1:1", "--ranks", ranks)
    assert said.code == 64
    assert "8,16,32,64" in said.err


def test_quantiles_are_order_statistics_and_an_interval_without_an_end_says_so() -> None:
    measured = Measured("base", "1.0")
    measured.samples[("unload", 8, "idle")] = [float(i) for i in range(1, 101)]
    measured.samples[("reload", 8, "idle")] = [5.0]
    measured.failures[("reload", 8, "idle")] = ["info: timeout: no answer"]
    found = document(measured, Settings((8,), 100, 0), "http://h:1", "0")
    reload, unload = found["rows"]
    assert (unload["p50"]["value"], unload["p90"]["value"], unload["p99"]["value"]) == (50.0, 90.0, 99.0)
    assert unload["p50"]["low"] == 40.0
    assert unload["p50"]["high"] == 61.0
    assert unload["p99"]["high"] is None
    assert (reload["n"], reload["failed"], reload["p50"]["high"]) == (1, 1, None)
    text = shown(found).as_text(terminal=True, colour=False)
    assert "99 [97, ∞]" in text
    assert "failed: info: timeout: no answer" in text
    assert shown(found).exit_code == 2
