"""What the tests of the tools share: an embedded server, marker adapters, and the command line in a process or here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loadtest import cli
from loadtest.adapters.marker import VersionFile, forge_versions
from loadtest.guardian import Guarded
from loadtest.server.base import ensure_base
from loadtest.target import ONE_THREAD, embedded_command, wait_until


@dataclass(frozen=True)
class Server:
    """A running embedded server."""

    url: str
    base: Path
    folder: Path  # for adapters
    guarded: Guarded


@contextmanager
def embedded(folder: Path, *options: str) -> Iterator[Server]:
    """An embedded server with `options`, ended with the block."""
    base = ensure_base(folder / "cache")
    port = folder / "port"
    command = [*embedded_command(base, 0, "pin"), "--port-file", str(port), "--max-loras", "8", *options]
    guarded = Guarded.start(command, folder / "server.log", ONE_THREAD)
    try:
        wait_until(port.exists, guarded, 60.0, "the embedded server")
        yield Server(f"http://127.0.0.1:{port.read_text().strip()}", base, folder, guarded)
    finally:
        guarded.stop()


def markers(server: Server, name: str, count: int) -> list[VersionFile]:
    """`count` marker versions of adapter `name` in the server's folder."""
    return forge_versions(server.base, server.folder / "markers", name, count)


@dataclass(frozen=True)
class Said:
    """What a command printed and returned."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its output, parsed."""
        return json.loads(self.out)


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> Said:
    """The command line, in this process."""
    capsys.readouterr()
    code = cli.main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return Said(code, out, err)


def start(*argv: object, cwd: Path | None = None, **env: str) -> subprocess.Popen[str]:
    """The command line, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "loadtest.cli", *(str(a) for a in argv)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, **env},
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 60.0) -> Said:
    """Wait for a process of `start`."""
    with process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except BaseException:
            process.kill()
            raise
    return Said(process.returncode, out, err)
