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


def test_engines_that_outlive_their_host_for_a_moment_end_before_the_server(tmp_path: Path) -> None:
    """Else they would record a server that went away under their streams: a failure that was ours."""
    stamp = "import pathlib, time; pathlib.Path({!r}).write_text(str(time.monotonic_ns()))"
    server, engine = tmp_path / "server", tmp_path / "engine"
    serving = (
        f"import signal, sys, time\ndef end(*_):\n  {stamp.format(str(server))}\n  sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\nprint('up', flush=True)\ntime.sleep(60)"
    )
    following = (
        "import os, sys, time\nfrom loadtest.traffic.engine import PARENT_POLL_S\nprint('up', flush=True)\n"
        f"while os.getppid() == int(sys.argv[1]): time.sleep(PARENT_POLL_S)\n{stamp.format(str(engine))}"
    )
    code = (
        "import os, subprocess, sys, time; from pathlib import Path; from loadtest.guardian import Guarded\n"
        f"up = open({str(tmp_path / 'up')!r}, 'w')\n"
        f"subprocess.Popen([sys.executable, '-c', {following!r}, str(os.getpid())], stdout=up)\n"
        f"Guarded.start([sys.executable, '-c', {serving!r}], Path({str(tmp_path / 'log')!r})); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code])
    assert first_line(tmp_path / "log") == first_line(tmp_path / "up") == "up"
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    assert wait_for(lambda: server.exists() and server.read_text())
    assert int(engine.read_text()) < int(server.read_text())


def test_last_words_begin_with_the_first_error_and_end_with_the_end(tmp_path: Path) -> None:
    code = "print('KeyError: 3'); print('KeyError: 3'); [print('INFO: 500') for _ in range(40)]; print('bye')"
    guarded = Guarded.start([sys.executable, "-c", code], tmp_path / "log")
    guarded.process.wait(timeout=20)
    words = guarded.last_words().split("\n")
    assert (words[:2], words[-1], len(words)) == (["KeyError: 3", "..."], "bye", 22)
