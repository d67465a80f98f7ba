"""A guarded server never outlives us, however we end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from loadtest.guardian import Guarded

FAMILY = (
    "import subprocess, sys, time\n"
    "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "print(p.pid, flush=True)\n"
    "time.sleep(60)"
)


def gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(condition, seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def first_line(log: Path) -> str:
    assert wait_for(lambda: log.exists() and "\n" in log.read_text())
    return log.read_text().split("\n")[0]


def test_stop_ends_the_command_and_its_children(tmp_path: Path) -> None:
    guarded = Guarded.start([sys.executable, "-c", FAMILY], tmp_path / "log")
    grandchild = int(first_line(tmp_path / "log"))
    assert guarded.alive()
    guarded.stop()
    guarded.stop()
    assert not guarded.alive()
    assert wait_for(lambda: gone(grandchild))


def test_sigkill_of_the_owner_ends_the_command(tmp_path: Path) -> None:
    code = (
        "import sys,time; from pathlib import Path; from loadtest.guardian import Guarded;"
        f"Guarded.start([sys.executable,'-c',{FAMILY!r}], Path({str(tmp_path / 'log')!r})); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code])
    grandchild = int(first_line(tmp_path / "log"))
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    assert wait_for(lambda: gone(grandchild))


def test_a_command_that_ends_is_noticed_and_its_log_kept(tmp_path: Path) -> None:
    guarded = Guarded.start([sys.executable, "-c", "print('no memory'); raise SystemExit(3)"], tmp_path / "log")
    assert guarded.process.wait(timeout=20) == 3
    assert not guarded.alive()
    assert guarded.tail() == "no memory"
    guarded.stop()
