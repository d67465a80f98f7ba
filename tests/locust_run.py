"""A real Locust in a process of its own, for tests: its output, its exit code, its children, its results."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
SCENARIOS = Path(__file__).parent / "scenarios"
PATIENCE_S = 90.0


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def until(true: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Poll a condition; the time is only a bound for a failing test."""
    deadline = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s for {what}"
        time.sleep(0.05)


class Locust:
    """One started Locust. `seen` collects every process it ever had below it, to see that none is left."""

    def __init__(self, folder: Path, scenario: str, *args: str, locustfile: Path | None = None) -> None:
        self.results = folder / "results"
        self._out = folder / "locust.log"
        port = str(free_port())
        command = [sys.executable, "-m", "locust", "-f", str(locustfile or ROOT / "locustfile.py")]
        command += ["--scenario", str(SCENARIOS / scenario), "--results", str(self.results), "--seed", "1"]
        command += ["--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("LOCUST_", "LOADTEST_S", "LOADTEST_T"))}
        with self._out.open("wb") as out:
            self.process = psutil.Popen(
                [*command, *args],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=environment,
                start_new_session=True,
            )
        self.seen: set[psutil.Process] = set()

    @property
    def output(self) -> str:
        return self._out.read_text(errors="replace")

    def look(self) -> None:
        """Remember the processes that exist now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.seen |= set(self.process.children(recursive=True))

    def commands(self) -> list[tuple[psutil.Process, list[str]]]:
        """Processes below Locust now, and their command lines."""
        self.look()
        found = []
        for process in self.seen:
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append((process, process.cmdline()))
        return found

    def wait_for(self, *words: str, patience_s: float = PATIENCE_S) -> None:
        """Until the output has all of the words, while Locust runs."""

        def there() -> bool:
            self.look()
            output = self.output
            assert self.process.poll() is None or all(w in output for w in words), output
            return all(w in output for w in words)

        until(there, f"{words} in\n{self.output}", patience_s)

    def exit_code(self, patience_s: float = PATIENCE_S) -> int:
        """Wait for the end."""

        def ended() -> bool:
            self.look()
            return self.process.poll() is not None

        until(ended, f"the end of\n{self.output}", patience_s)
        return int(self.process.wait())

    def nothing_left(self) -> bool:
        """Whether all processes that were ever below Locust are gone, or go within seconds."""
        _, alive = psutil.wait_procs(list(self.seen), timeout=15)
        return not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def kill(self) -> None:
        """For the end of a test that failed."""
        for process in (self.process, *self.seen):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    @property
    def run(self) -> Path:
        """The newest run's folder."""
        return (self.results / "latest").resolve()

    def verdict(self) -> dict[str, Any]:
        return dict(json.loads((self.run / "verdict.json").read_text()))

    def lines(self, kind: str, engine: str = "*") -> list[dict[str, Any]]:
        """The history's records of a kind, over all engines or one."""
        files = sorted(self.run.glob(f"history-{engine}.jsonl"))
        rows = [json.loads(line) for f in files for line in f.read_text().splitlines()]
        return [row for row in rows if row["kind"] == kind]


@contextlib.contextmanager
def locust(folder: Path, scenario: str, *args: str, locustfile: Path | None = None) -> Iterator[Locust]:
    """A Locust that is gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    running = Locust(folder, scenario, *args, locustfile=locustfile)
    try:
        yield running
    finally:
        running.look()
        running.kill()


class Web:
    """Locust's web UI."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=PATIENCE_S) as answer:
            return str(answer.read().decode())

    def post(self, path: str, **form: object) -> dict[str, Any]:
        data = urllib.parse.urlencode(form).encode()
        with urllib.request.urlopen(self.url + path, data=data, timeout=PATIENCE_S) as answer:
            return dict(json.loads(answer.read()))

    def stats(self) -> dict[str, Any]:
        return dict(json.loads(self.get("/stats/requests")))

    def up(self) -> bool:
        try:
            self.get("/")
        except OSError:
            return False
        return True
