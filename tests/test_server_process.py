"""The server as a process: its ends, its options, and the planted faults that only HTTP shows."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
from pathlib import Path

import pytest
from embedded import Answer, Embedded, embedded, until
from peft_maker import make

from loadtest.server.base import ensure_base

PROMPT = [1, 2, 300, 400, 500]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def paths(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("adapters")
    return [make(base, out / f"v{i}", i) for i in range(2)]


def plant(*faults: dict[str, object]) -> tuple[str, str]:
    return "--plant", json.dumps(faults)


def raw_stream(server: Embedded, max_tokens: int) -> socket.socket:
    """A stream whose answer has begun to come."""
    body = json.dumps({"model": "base", "prompt": PROMPT, "max_tokens": max_tokens, "ignore_eos": True, "stream": True})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    raw = socket.create_connection(("127.0.0.1", server.port), timeout=15)
    raw.sendall(f"{head}\r\n\r\n{body}".encode())
    raw.recv(10)
    return raw


def test_it_ends_when_its_parent_does_even_with_streams_open(base: Path, tmp_path: Path) -> None:
    with embedded(base, tmp_path, "--step-ms", "20") as server, raw_stream(server, 2000):
        os.close(server.parent_end)
        assert server.process.wait(timeout=10) == 0


def test_sigterm_ends_it_in_order(base: Path, tmp_path: Path) -> None:
    with embedded(base, tmp_path) as server:
        server.process.terminate()
        assert server.process.wait(timeout=10) == 0


def test_serve_ends_with_its_server_on_a_sigint_that_only_it_gets(tmp_path: Path) -> None:
    port = tmp_path / "port"
    command = [sys.executable, "-m", "loadtest.cli", "serve", "--port", "0", "--", "--port-file", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(port.exists, patience_s=60)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(port.read_text())))
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--swap", "sideways"], "invalid choice: 'sideways'"),
        (["--plant", '[{"fault": "nope"}]'], "known faults: torn, flip"),
        (["--lora-modules", "a=/nowhere"], "No adapter found"),
        (["--lora-modules", "a"], "is not NAME=PATH"),
        (["--max-lora-rank", "7"], "invalid choice"),
    ],
)
def test_bad_options_are_usage_errors(base: Path, options: list[str], words: str) -> None:
    command = [sys.executable, "-m", "loadtest.server.app", "--model", str(base), "--port", "0", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 64
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_no_model_is_a_usage_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtest.server.app", "--model", str(tmp_path), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 64
    assert "no readable config.json" in done.stderr


@pytest.mark.parametrize(("swap", "torn"), [("pin", False), ("switch", True)])
def test_a_swap_over_http_tears_streams_or_not_as_the_policy_says(
    base: Path, paths: list[Path], tmp_path: Path, swap: str, torn: bool
) -> None:
    with embedded(base, tmp_path, "--swap", swap, "--step-ms", "5") as server:
        server.load("a", paths[0])
        pure = server.ids("a", PROMPT, 80)
        answers: list[Answer] = []
        thread = threading.Thread(target=lambda: answers.append(server.complete("a", PROMPT, 80, stream=True)))
        before = server.metric("vllm:generation_tokens_total")
        thread.start()
        until(lambda: server.metric("vllm:generation_tokens_total") > before + 5)
        assert server.load("a", paths[1], inplace=True).status == 200
        thread.join()
        ids = [i for f in answers[0].frames[:-1] for i in f["choices"][0]["token_ids"]]
        assert ids[:5] == pure[:5]
        assert (ids != pure) is torn


def test_cut_closes_without_an_end(base: Path, tmp_path: Path) -> None:
    with embedded(base, tmp_path, *plant({"fault": "cut", "at": 3})) as server:
        with raw_stream(server, 20) as raw:
            rest = b"".join(iter(lambda: raw.recv(65536), b""))
        assert rest.count(b"data: ") == 3
        assert b"[DONE]" not in rest
        assert not rest.endswith(b"0\r\n\r\n")
        until(lambda: server.metric("vllm:num_requests_running") == 0)


def test_error_frame_comes_under_200_before_done(base: Path, tmp_path: Path) -> None:
    with embedded(base, tmp_path, *plant({"fault": "error_frame", "at": 2})) as server:
        answer = server.complete("base", PROMPT, 8, stream=True)
        assert answer.status == 200
        *tokens, error, done = answer.frames
        assert len(tokens) == 2
        assert error["error"]["type"] == "InternalServerError"
        assert done == "[DONE]"


def test_short_lies_about_usage(base: Path, tmp_path: Path) -> None:
    with embedded(base, tmp_path, *plant({"fault": "short", "at": 2})) as server:
        frames = server.complete("base", PROMPT, 8, stream=True, stream_options={"include_usage": True}).frames
        assert sum(len(f["choices"][0]["token_ids"]) for f in frames[:-2]) == 3
        assert frames[-2]["usage"]["completion_tokens"] == 8


def test_a_load_that_hangs_is_applied_although_the_client_gives_up(
    base: Path, paths: list[Path], tmp_path: Path
) -> None:
    with embedded(base, tmp_path, *plant({"fault": "hang_load", "ms": 50, "every": 2})) as server:
        assert server.load("a", paths[0]).status == 200
        body = json.dumps({"lora_name": "a", "lora_path": str(paths[1]), "load_inplace": True}).encode()
        head = "POST /v1/load_lora_adapter HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}"
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
            raw.sendall(f"{head}\r\n\r\n".encode() + body)
            raw.settimeout(0.02)
            with pytest.raises(TimeoutError):
                raw.recv(1)
        until(lambda: server.call("GET", "/v1/models").json["data"][1]["root"] == str(paths[1]))


def test_die_takes_the_process_down_after_n_swaps(base: Path, paths: list[Path], tmp_path: Path) -> None:
    with embedded(base, tmp_path, *plant({"fault": "die", "n": 1})) as server:
        server.load("a", paths[0])
        assert server.ids("a", PROMPT)
        server.load("a", paths[1], inplace=True)
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            server.complete("a", PROMPT)
        assert server.process.wait(timeout=10) == 1


def test_a_dead_engine_fails_streams_in_band_and_health_then_ends(
    base: Path, paths: list[Path], tmp_path: Path
) -> None:
    """vLLM's policy reads the folder at every step: taking it away kills the engine under its streams."""
    import shutil

    folder = Path(shutil.copytree(paths[1], tmp_path / "gone"))
    with embedded(base, tmp_path / "server", "--swap", "sticky", "--step-ms", "5") as server:
        server.load("a", paths[0])
        server.load("a", folder, inplace=True)
        answers: list[Answer] = []
        thread = threading.Thread(target=lambda: answers.append(server.complete("a", PROMPT, 2000, stream=True)))
        thread.start()
        until(lambda: server.metric("vllm:num_requests_running") == 1)
        shutil.rmtree(folder)
        thread.join()
        *_, error, done = answers[0].frames
        assert answers[0].status == 200
        assert error["error"]["message"].startswith("EngineCore encountered an issue.")
        assert done == "[DONE]"
        assert server.call("GET", "/health").status == 503
        assert server.process.wait(timeout=10) == 1
