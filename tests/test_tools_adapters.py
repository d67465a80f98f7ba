"""`loadtest adapters` on the embedded server, and on servers that are wrong, slow, off or absent."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from rawserver import Call, serving, until
from test_adapters_hub import Hub
from test_adapters_hub import adapter as adapter  # fixtures
from test_adapters_hub import hub as hub
from tools_kit import Server, embedded, finish, markers, run, start

from loadtest.tools.shown import Shown, Table

Caps = pytest.CaptureFixture[str]
CARDS = json.dumps(
    {"data": [{"id": "base", "root": "/m", "parent": None}, {"id": "a", "root": "/srv/a/v0", "parent": "base"}]}
).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with embedded(tmp_path_factory.mktemp("server"), "--max-lora-rank", "16") as server:
        yield server


def answer(status: int, body: bytes, kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def always(status: int, body: bytes, kind: str = "application/json") -> object:
    async def script(call: Call) -> None:
        await call.send(answer(status, body, kind))

    return script


async def hangs(call: Call) -> None:
    await call.wait_left()


@pytest.fixture
def nobody() -> str:
    """A URL where nothing listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}"


def test_an_adapter_s_life_on_a_server(server: Server, capsys: Caps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADTEST_TARGET", server.url)
    first, second = markers(server, "life", 2)
    loaded = run(capsys, "adapters", "load", "life", first.path)
    assert (loaded.code, loaded.err) == (0, "")
    assert loaded.out.startswith("load life: done after ")
    again = run(capsys, "adapters", "load", "life", first.path, "--json")
    assert again.code == 1
    assert (again.json["outcome"], again.json["reason"], again.json["status"]) == ("fail", "already_loaded", 400)
    fixed = run(capsys, "adapters", "hotfix", "life", second.path, "--json")
    assert fixed.code == 0
    assert fixed.json["replaced"]["root"] == str(first.path)
    assert fixed.json["replaced"]["sha"] == first.sha
    assert fixed.json["markers"] == list(second.markers)
    assert fixed.json["first_seen_ms"] > 0
    rows = run(capsys, "adapters", "list", "--json").json
    life = next(row for row in rows if row["id"] == "life")
    assert (life["kind"], life["parent"], life["root"], life["rank"]) == ("adapter", "base", str(second.path), 8)
    assert life["sha"] == second.sha
    assert run(capsys, "adapters", "unload", "life").code == 0
    gone = run(capsys, "adapters", "unload", "life", "--json")
    assert (gone.code, gone.json["reason"]) == (1, "not_found")
    assert "life" not in run(capsys, "adapters", "list").out


def test_a_hotfix_says_in_words_what_it_replaced_and_when_it_was_seen(server: Server, capsys: Caps) -> None:
    first, second = markers(server, "words", 2)
    run(capsys, "adapters", "load", "words", first.path, "--url", server.url)
    said = run(capsys, "adapters", "hotfix", "words", second.path, "--url", server.url)
    assert f"replaced {first.path}, content {first.sha[:12]}, rank 8" in said.out
    assert "new version first seen" in said.out
    run(capsys, "adapters", "unload", "words", "--url", server.url)


def test_a_hotfix_of_nothing_is_a_usage_error_and_touches_nothing(server: Server, capsys: Caps) -> None:
    (only,) = markers(server, "nothing", 1)
    said = run(capsys, "adapters", "hotfix", "nothing", only.path, "--url", server.url)
    assert said.code == 64
    assert "serves no adapter 'nothing'" in said.err
    assert run(capsys, "adapters", "hotfix", "base", only.path, "--url", server.url).code == 64
    assert "nothing" not in run(capsys, "adapters", "list", "--url", server.url).out


def test_relative_paths_are_made_absolute_for_the_server(
    server: Server, capsys: Caps, monkeypatch: pytest.MonkeyPatch
) -> None:
    (only,) = markers(server, "relative", 1)
    monkeypatch.chdir(only.path.parent)
    said = run(capsys, "adapters", "load", "relative", "v0", "--url", server.url, "--json")
    assert (said.code, said.json["path"]) == (0, str(only.path.resolve()))
    run(capsys, "adapters", "unload", "relative", "--url", server.url)


def test_a_pickle_is_refused_before_the_server_is_asked(
    server: Server, capsys: Caps, tmp_path: Path, nobody: str
) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]}')
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04N.")
    said = run(capsys, "adapters", "load", "x", tmp_path, "--url", nobody)
    assert said.code == 64
    assert "a pickle that runs code when loaded" in said.err
    unchecked = run(capsys, "adapters", "load", "x", tmp_path, "--no-check", "--url", server.url)
    assert unchecked.code == 1


def test_a_rank_above_the_server_s_maximum_is_refused_by_it(server: Server, capsys: Caps, tmp_path: Path) -> None:
    forge = ("adapters", "forge", tmp_path / "m", "--base", server.base, "--count", 1, "--rank", 32)
    path = run(capsys, *forge, "--json").json[0]["path"]
    assert run(capsys, *forge[:2], tmp_path / "n", *forge[3:]).out.startswith("v0\ttoken ")
    said = run(capsys, "adapters", "load", "wide", path, "--url", server.url, "--json")
    assert (said.code, said.json["outcome"]) == (1, "fail")
    told = run(capsys, "adapters", "inspect", path, "--max-rank", 16, "--json")
    assert told.code == 1
    assert "maximum of 16" in told.json["refusals"][0]
    assert run(capsys, "adapters", "inspect", path, "--base", server.base).code == 0


def test_inspect_describes_what_it_can_and_says_why_not(server: Server, capsys: Caps, tmp_path: Path) -> None:
    (only,) = markers(server, "inspected", 1)
    said = run(capsys, "adapters", "inspect", only.path, "--json")
    assert said.code == 0
    assert (said.json["rank"], said.json["sha"], said.json["markers"]) == (8, only.sha, list(only.markers))
    words = run(capsys, "adapters", "inspect", only.path).out
    assert "alpha\t8 (scaling is alpha/rank)" in words
    assert "no reason known to refuse it" in words
    (tmp_path / "adapter_config.json").write_text("{")
    broken = run(capsys, "adapters", "inspect", tmp_path)
    assert broken.code == 1
    assert "is not JSON" in broken.out
    assert "adapter_model.safetensors is missing" in broken.out
    assert run(capsys, "adapters", "inspect", tmp_path / "none").code == 64


@pytest.mark.parametrize("command", [["list"], ["load", "x", "/p"], ["unload", "x"], ["hotfix", "x", "/p"]])
def test_a_server_that_is_not_there(command: list[str], capsys: Caps, nobody: str) -> None:
    said = run(capsys, "adapters", *command, "--url", nobody)
    assert (said.code, said.out) == (69, "")
    assert nobody in said.err


@pytest.mark.parametrize("command", [["load", "x", "/p"], ["unload", "x"], ["hotfix", "a", "/p"]])
def test_runtime_lora_switched_off_is_told_from_an_unknown_adapter(command: list[str], capsys: Caps) -> None:
    async def off(call: Call) -> None:
        await call.send(answer(200, CARDS) if call.path == "/v1/models" else answer(404, b'{"detail":"Not Found"}'))

    with serving(off) as raw:
        said = run(capsys, "adapters", *command, "--url", raw.url)
    assert said.code == 69
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in said.err
    missing = b'{"error":{"message":"The lora adapter \'x\' cannot be found.","type":"NotFoundError","code":404}}'
    with serving(always(404, missing)) as raw:  # type: ignore[arg-type]
        said = run(capsys, "adapters", "unload", "x", "--url", raw.url, "--json")
    assert (said.code, said.json["reason"]) == (1, "not_found")


def test_a_slow_server_leaves_it_open_whether_the_load_happened(capsys: Caps) -> None:
    with serving(hangs) as raw:
        said = run(capsys, "adapters", "load", "x", "/p", "--timeout", 0.2, "--url", raw.url, "--json")
    assert (said.code, said.json["outcome"], said.json["reason"]) == (2, "info", "timeout")


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"<html>hello"), (200, b'{"data": 7}'), (500, b"\xff\xfe"), (200, b"[]")]
)
def test_a_server_that_answers_garbage(status: int, body: bytes, capsys: Caps) -> None:
    with serving(always(status, body)) as raw:  # type: ignore[arg-type]
        assert run(capsys, "adapters", "list", "--url", raw.url).code == 69
    with serving(always(500, b"\x1b[31m\xff")) as raw:  # type: ignore[arg-type]
        said = run(capsys, "adapters", "unload", "x", "--url", raw.url)
    assert said.code == 2
    assert "\x1b" not in said.out


def test_a_hotfix_without_token_ids_says_that_it_saw_nothing(server: Server, capsys: Caps) -> None:
    async def old(call: Call) -> None:
        bodies = {"/v1/models": CARDS, "/v1/completions": b'{"choices":[{"text":"hi"}]}'}
        await call.send(answer(200, bodies.get(call.path, b"Success")))

    (only,) = markers(server, "seen", 1)
    with serving(old) as raw:
        said = run(capsys, "adapters", "hotfix", "a", only.path, "--watch", 0.2, "--url", raw.url)
    assert said.code == 0
    assert "replaced /srv/a/v0" in said.out
    assert "new version not seen: the server sends no token ids" in said.out


def test_the_key_is_sent_and_never_shown(capsys: Caps, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sk-very-secret-0123456789"
    monkeypatch.setenv("MY_KEY", secret)

    async def echo(call: Call) -> None:
        body = json.dumps({"error": {"message": f"bad key {call.headers.get('authorization')}", "code": 401}})
        await call.send(answer(401, body.encode()))

    with serving(echo) as raw:
        said = run(capsys, "adapters", "unload", "x", "--api-key-env", "MY_KEY", "--url", raw.url)
        assert raw.calls[0].headers["authorization"] == f"Bearer {secret}"
        listed = run(capsys, "adapters", "list", "--url", raw.url.replace("://", f"://user:{secret}@"))
    assert said.code == listed.code == 69
    assert secret not in said.out + said.err + listed.out + listed.err
    assert run(capsys, "adapters", "list", "--api-key-env", "NOT_SET", "--url", raw.url).code == 64


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x", "http://", "http://h:99999"])
def test_a_url_that_is_none(url: str, capsys: Caps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOADTEST_TARGET", raising=False)
    said = run(capsys, "adapters", "list", *(["--url", url] if url else []))
    assert said.code == 64
    assert "--url http://HOST:PORT" in said.err or "give http://HOST:PORT" in said.err


@pytest.mark.parametrize("command", [["list"], ["load", "x", "/p"], ["unload", "x"], ["hotfix", "x", "/p"]])
def test_ctrl_c_ends_a_command_at_once_and_quietly(command: list[str]) -> None:
    with serving(hangs) as raw:
        process = start("adapters", *command, "--url", raw.url)
        until(lambda: raw.calls)
        process.send_signal(signal.SIGINT)
        said = finish(process)
    assert said.code == 130
    assert said.err.strip() == "loadtest: interrupted"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["sigterm", "sigint"])
def test_a_command_that_a_script_began_in_the_background_can_be_stopped(number: int) -> None:
    with serving(hangs) as raw:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what it starts with `&`
        try:
            process = start("adapters", "hotfix", "x", "/p", "--url", raw.url)
        finally:
            signal.signal(signal.SIGINT, before)
        until(lambda: raw.calls)
        process.send_signal(number)
        said = finish(process)
    assert said.code == 130
    assert said.err.strip() == "loadtest: interrupted"


def test_fetch_pins_and_reuses_and_answers_in_json(hub: Hub, capsys: Caps, tmp_path: Path) -> None:
    first = run(capsys, "adapters", "fetch", "--dest", tmp_path / "d", "--json")
    assert first.code == 0
    (found,) = first.json
    assert (found["repo"], found["reused"]) == ("lewtun/Qwen2.5-0.5B-SFT-LoRA", False)
    assert (tmp_path / "d" / "adapters.lock.json").is_file()
    assert run(capsys, "adapters", "inspect", found["path"]).code == 0
    again = run(capsys, "adapters", "fetch", "--dest", tmp_path / "d")
    assert "\tkept\t" in again.out
    assert run(capsys, "adapters", "fetch", "no/such", "--dest", tmp_path / "d").code == 64


def test_fetch_without_a_network_names_the_way_on(
    capsys: Caps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nobody: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", nobody)
    said = run(capsys, "adapters", "fetch", "--dest", tmp_path)
    assert said.code == 69
    assert "loadtest adapters forge" in said.err
    assert said.err.count("\n") == 1


def test_a_terminal_gets_an_aligned_table_and_a_pipe_gets_tabs() -> None:
    shown = Shown([], [Table(("name", "n"), [("a\nb", "1"), ("long name", "100")], frozenset({"n"}))], ["done\x1b[2J"])
    assert shown.as_text(terminal=False, colour=False) == "a b\t1\nlong name\t100\ndone [2J"
    lines = shown.as_text(terminal=True, colour=False).splitlines()
    assert lines[0].split() == ["name", "n"]
    assert lines[2].endswith("100")
    assert "\x1b" not in "".join(lines)
