"""The command line as a whole: its help, its errors, its output in pipes, and docs/commands.md compared with it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from tools_kit import finish, run, start

from loadtest import cli, errors
from loadtest.tools.terminal import printable

ROOT = Path(__file__).parent.parent
COMMANDS_PAGE = ROOT / "docs" / "commands.md"
Caps = pytest.CaptureFixture[str]
NOBODY = "http://127.0.0.1:9"  # discard: nothing listens there


def commands(group: click.Group = cli.cli, path: str = "loadtest") -> Iterator[tuple[str, click.Command]]:
    """Every command that help shows, with the words that call it."""
    yield path, group
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def options(command: click.Command) -> set[str]:
    return {
        flag
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden
        for flag in (*parameter.opts, *parameter.secondary_opts)
        if flag.startswith("--")
    } - {"--version"}


ALL = dict(commands())


def sections() -> dict[str, str]:
    """docs/commands.md: heading -> what is under it."""
    parts = re.split(r"^##+ `(.+?)`$", COMMANDS_PAGE.read_text(), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("path", [p for p in ALL if p != "loadtest"])
def test_the_page_names_every_command_and_every_option_and_no_other(path: str) -> None:
    found = [text for heading, text in sections().items() if re.match(rf"{path}(?= [A-Z\[]|$)", heading)]
    assert len(found) == 1, f"{path} needs one section"
    named = set(re.findall(r"`(--[a-z-]+)", found[0]))
    assert named == options(ALL[path])


def test_the_page_names_no_command_that_is_not_there() -> None:
    paths = sorted(ALL, key=len, reverse=True)
    for heading in sections():
        assert any(re.match(rf"{path}(?= [A-Z\[]|$)", heading) for path in paths if path != "loadtest"), heading


def test_the_page_lists_the_exit_codes() -> None:
    text = COMMANDS_PAGE.read_text()
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")} | {cli.EXIT_INTERRUPTED}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.M)} == codes


@pytest.mark.parametrize("path", ALL)
def test_help_fits_eighty_columns_and_says_something_of_everything(path: str) -> None:
    command = ALL[path]
    context = click.Context(command, info_name=path, terminal_width=80)
    text = command.get_help(context)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "..." not in text.replace("]...", "").replace("[ARGS]...", ""), "a sentence that help cuts off"
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, f"{path} {parameter.opts} has no help"


def test_help_is_there_at_once() -> None:
    best = min(_seconds(sys.executable, "-m", "loadtest.cli", "--help") for _ in range(3))
    bare = min(_seconds(sys.executable, "-c", "import click") for _ in range(3))
    assert best < 4 * bare + 0.2, "something heavy is imported for --help"


def _seconds(*command: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def test_a_wrong_word_is_answered_with_the_right_one(capsys: Caps) -> None:
    said = run(capsys, "hotfi")
    assert (said.code, said.out) == (64, "")
    assert said.err.startswith("loadtest: ")
    assert said.err.count("\n") == 1
    wrong = run(capsys, "hotfix", "--stream", "3x")
    assert wrong.code == 64
    assert "loadtest hotfix --help" in wrong.err
    assert run(capsys).code == 64


@pytest.mark.parametrize(
    "argv",
    [
        ["adapters", "list", "--url", NOBODY, "--json"],
        ["adapters", "load", "x", "/p", "--url", NOBODY, "--json"],
        ["adapters", "inspect", "/nowhere", "--json"],
        ["adapters", "fetch", "not a name", "--json"],
        ["hotfix", "--url", NOBODY, "--json"],
        ["hotfix", "--swaps", "0", "--json"],
        ["bench", "--ranks", "x", "--json"],
        ["judge", "/nowhere", "--json"],
    ],
)
def test_with_json_an_error_is_a_document_too(argv: list[str], capsys: Caps) -> None:
    said = run(capsys, *argv)
    assert said.code in (64, 69)
    error = said.json["error"]
    assert error["exit_code"] == said.code
    assert error["message"] in said.err
    assert set(error) == {"message", "remedy", "exit_code"}


def test_a_bug_of_ours_is_70_and_no_verdict(capsys: Caps, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Path) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("loadtest.harness.judge", broken)
    said = run(capsys, "judge", "x", "--json")
    assert said.code == 70
    assert "ZeroDivisionError" in said.json["error"]["message"]
    assert "Traceback" in said.err


def test_a_reader_that_goes_away_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{")
    for argv in (["adapters", "inspect", tmp_path], ["schema"], ["--help"]):
        expected = finish(start(*argv)).code
        read_end, write_end = os.pipe()
        os.close(read_end)
        done = subprocess.run(
            [sys.executable, "-m", "loadtest.cli", *map(str, argv)],
            stdout=write_end, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        os.close(write_end)
        assert (done.returncode, done.stderr) == (expected, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_full_is_said(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "loadtest.cli", "schema"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 64
    assert "the output cannot be written (No space left on device)" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_output_at_all_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m loadtest.cli adapters inspect {tmp_path} >&- 2>&-"], check=False
    )
    assert done.returncode == 1


def test_a_server_s_words_do_not_steer_the_terminal() -> None:
    assert printable("a\x1b[31mb\u202ec\nd\te") == "a\\x1b[31mb\\u202ec\nd\\te"
    assert json.loads(json.dumps({"x": printable("é ∞ 漢")})) == {"x": "é ∞ 漢"}


def test_a_port_that_is_none_is_refused(capsys: Caps) -> None:
    said = run(capsys, "serve", "--port", 99999)
    assert said.code == 64
    assert "65535" in said.err
