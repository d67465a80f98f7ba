"""What the commands share at the terminal: results and progress printed, options that name a server. Only click."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import click

from loadtest.errors import UsageError

if TYPE_CHECKING:
    from loadtest.tools.remote import Remote

TARGET_HELP = "Server, http://HOST:PORT; also LOADTEST_TARGET; else the one that make exp4-up started."
OR_EMBEDDED = f"{TARGET_HELP} Without any an embedded server is started."
NARROWEST = 60  # columns; below it tables fold into noise
FOLDER = click.Path(path_type=Path)
SECONDS = click.FloatRange(min=0, min_open=True)


class Showable(Protocol):
    """A command's result."""

    @property
    def exit_code(self) -> int:
        """Of the process."""

    def as_json(self) -> str:
        """For scripts."""

    def as_text(self, *, terminal: bool, colour: bool, width: int = 118) -> str:
        """For people and pipes."""


def printable(text: str) -> str:
    """`text` with control characters (but line ends) shown as escapes: a server's words must not steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def out(text: str) -> None:
    """Print to standard output."""
    _write(text, sys.stdout)


def progress(line: str) -> None:
    """A line of progress, on standard error."""
    _write(printable(f"loadtest: {line}"), sys.stderr)


def _write(text: str, stream: IO[str] | None) -> None:
    """A reader that went away (`| head`) is no error: what is left to do gets done, and the exit code stays.

    Raises UsageError when the text cannot be written for another reason, such as a full disk.
    """
    if stream is None:  # closed by whoever started us
        return
    try:
        click.echo(text, file=stream)
    except OSError as error:
        # Else the interpreter's last flush would fail once more, with a traceback.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError) and stream is sys.stdout:
            raise UsageError(f"the output cannot be written ({error.strerror})", remedy="write it elsewhere") from error


def show(found: Showable, as_json: bool) -> int:
    """Print a result for whoever reads (a script, a person at a terminal, a pipe); the exit code."""
    terminal = sys.stdout is not None and sys.stdout.isatty()
    colour = terminal and not os.environ.get("NO_COLOR")
    width = max(shutil.get_terminal_size((118, 24)).columns, NARROWEST)
    text = found.as_json() if as_json else found.as_text(terminal=terminal, colour=colour, width=width)
    if text:
        out(text)
    return found.exit_code


def as_json() -> Callable[[Callable[..., int]], Callable[..., int]]:
    """The option --json, everywhere the same."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document, and nothing else.")


def key_option() -> Callable[[Callable[..., int]], Callable[..., int]]:
    """The option --api-key-env, everywhere the same."""
    return click.option("--api-key-env", metavar="NAME", help="Environment variable that holds the server's API key.")


def on_server(command: Callable[..., int]) -> Callable[..., int]:
    """Options that say which server, how to reach it and how to answer; they arrive as `as_json` and `connection`."""
    for option in (
        as_json(),
        click.option("--timeout", default=60.0, show_default=True, type=SECONDS, help="Seconds for one operation."),
        key_option(),
        click.option("--url", metavar="URL", help=TARGET_HELP),
    ):
        command = option(command)
    return command


def server(url: str | None, api_key_env: str | None, timeout: float) -> Remote:
    """What the options of `on_server` name. Raises UsageError."""
    from loadtest.tools.remote import remote

    return remote(url, key_env=api_key_env, timeout_s=timeout)


def place_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say where adapters are made for a server, and for which base model."""
    for option in (
        click.option(
            "--adapters-dir", metavar="LOCAL[:SERVER]", help="Folder to write adapters to [: its server path]."
        ),
        click.option("--base", type=FOLDER, help="Folder of the server's base model, if the server does not tell."),
    ):
        command = option(command)
    return command
