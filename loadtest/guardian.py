"""A process between us and a server we started, so that the server never outlives us.

    python -m loadtest.guardian FD LOG -- COMMAND...

Rules
1. FD is the read end of a pipe whose write end only our process holds. `stop` writes a byte; when we end in any other
   way, also by SIGKILL, the pipe reads EOF. Then the guardian ends the command's whole process group: SIGTERM,
   `GRACE_S`, SIGKILL. After an EOF it waits `ORPHANED_S` first: engines of ours that outlive us for a moment cancel
   their streams and roll back meanwhile, and do not record a server that went away under them.
2. The guardian runs in a session of its own: a Ctrl-C in the terminal is ours to handle, not the server's.
3. If the guardian itself is killed, the kernel kills the command (PR_SET_PDEATHSIG, Linux only).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GRACE_S = 5.0
LOG_BYTES = 262_144  # of the log's end are looked at
FIRST_ERRORS = 5
_NAMES_ERROR = re.compile(r"\b\w*(Error|Exception): \S")
ORPHANED_S = 1.5  # workers and engines look for their parent every 0.5 s
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_group(pgid: int, child: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the group, then SIGKILL to what is left of it."""
    for sig, patience in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        try:
            os.killpg(pgid, sig)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            child.poll()
            try:
                os.killpg(pgid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.02)


def main(argv: Sequence[str]) -> int:
    """Run the command until it ends or the pipe does; the command's exit status."""
    fd, log, command = int(argv[0]), argv[1], list(argv[3:])
    for sig in (signal.SIGINT, signal.SIGHUP):
        signal.signal(sig, signal.SIG_IGN)
    with open(log, "ab") as out:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    signal.signal(signal.SIGTERM, lambda *_: os._exit(_stop(child)))
    while child.poll() is None:
        if select.select([fd], [], [], 0.1)[0]:
            if not os.read(fd, 1):
                time.sleep(ORPHANED_S)
            break
    return _stop(child)


def _stop(child: subprocess.Popen[bytes]) -> int:
    _end_group(child.pid, child)
    return child.wait()


@dataclass
class Guarded:
    """A running command under a guardian; `stop` is idempotent."""

    process: subprocess.Popen[bytes]
    pipe: int
    log: Path

    @classmethod
    def start(cls, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Guarded:
        """Start `command` with its output in `log`; `env` is added to ours."""
        log.touch()  # so that the folder stays, for a guardian that starts up while we give up
        read_end, write_end = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "loadtest.guardian", str(read_end), str(log), "--", *command],
                stdin=subprocess.DEVNULL,
                pass_fds=(read_end,),
                start_new_session=True,
                env={**os.environ, **(env or {})},
            )
        except BaseException:  # under gevent an interrupt can come after the fork
            os.close(write_end)
            raise
        finally:
            os.close(read_end)
        return cls(process, write_end, log)

    def alive(self) -> bool:
        """Whether the command still runs."""
        return self.process.poll() is None

    def tail(self, lines: int = 20) -> str:
        """The last lines of the log."""
        return "\n".join(self._log_lines()[-lines - 1 :]).strip()

    def last_words(self) -> str:
        """The first lines of the log that name an error, then its last lines: a server talks on after its end."""
        last = self.tail().split("\n")
        named = [line for line in self._log_lines() if _NAMES_ERROR.search(line) and line not in last]
        first = list(dict.fromkeys(named))[:FIRST_ERRORS]
        return "\n".join([*first, "...", *last] if first else last)

    def _log_lines(self) -> list[str]:
        try:
            return self.log.read_bytes()[-LOG_BYTES:].decode("utf-8", "replace").split("\n")
        except OSError:
            return []

    def stop(self) -> None:
        """End the command and all of its children; returns when they are gone."""
        if self.pipe >= 0:
            with contextlib.suppress(BrokenPipeError):  # the command has ended, and its guardian with it
                os.write(self.pipe, b".")
            os.close(self.pipe)
            self.pipe = -1
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=3 * GRACE_S)
            return
        self.process.kill()
        self.process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
