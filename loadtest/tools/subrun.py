"""A scenario's run under Locust from within another program: in processes of its own, which end with it.

Locust patches sockets and threads when it is imported, so it cannot share a process with a notebook or a test.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from loadtest import errors, harness
from loadtest.guardian import Guarded

Say = Callable[[str], None]

_POLL_S = 0.1
_PREFIX = "loadtest: "
_JUDGED = (errors.EXIT_PASS, errors.EXIT_FAIL, errors.EXIT_UNKNOWN)


def run(
    scenario: Path, arguments: Mapping[str, str], say: Say, *, limit_s: float | None, stop: threading.Event
) -> Path:
    """The folder of a judged run. Ends when Locust does, after `limit_s`, or when `stop` is set.

    Raises LoadtestError of the kind that Locust's exit code tells.
    """
    command = harness.locust_command(scenario, arguments)
    deadline = None if limit_s is None else time.monotonic() + limit_s
    with tempfile.TemporaryDirectory(prefix="loadtest-") as scratch:
        lines = _Lines(Path(scratch) / "log", say)
        guarded = Guarded.start(command, lines.log)
        try:
            while guarded.alive() and not stop.is_set():
                if deadline is not None and time.monotonic() > deadline:
                    raise errors.TargetError(f"the run was not over after {limit_s:g} s", remedy="raise timeout_s")
                time.sleep(_POLL_S)
                lines.read()
        finally:
            guarded.stop()  # Locust takes SIGTERM as Ctrl-C: swaps end and are rolled back
            lines.read()
        return lines.folder_or_error(guarded.process.returncode)


class _Lines:
    """What Locust says, as it says it."""

    def __init__(self, log: Path, say: Say) -> None:
        self.log, self._say = log, say
        self._at = 0
        self._folder: Path | None = None
        self._said: list[str] = []

    def read(self) -> None:
        """Pass on the new whole lines that are ours."""
        data = self.log.read_bytes() if self.log.is_file() else b""
        whole = data[self._at : data.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.decode("utf-8", "replace").splitlines():
            if line.startswith(_PREFIX):
                self._said.append(line.removeprefix(_PREFIX))
                self._say(self._said[-1])
                if self._said[-1].startswith(harness.RESULTS_IN):
                    self._folder = Path(self._said[-1].removeprefix(harness.RESULTS_IN))

    def folder_or_error(self, code: int) -> Path:
        """The run's folder when it was judged. Raises LoadtestError."""
        if code in _JUDGED and self._folder is not None and (self._folder / "verdict.json").is_file():
            return self._folder
        words = self._said[-1] if self._said else f"Locust ended with status {code} before the run began"
        kinds = {errors.EXIT_USAGE: errors.UsageError, errors.EXIT_UNAVAILABLE: errors.TargetError}
        raise kinds.get(code, errors.LoadtestError)(words)
