"""What an engine needs of its process: a log, descriptors, a loop, a name for its clock."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def boot_id() -> str:
    """Names the domain of CLOCK_MONOTONIC: this boot of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"unknown-{os.uname().nodename}"


def log_to(folder: Path) -> None:
    """Standard output and error into the run's folder, which is made: an engine has no terminal of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "engine.log").open("ab") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())


def complain(error: BaseException) -> None:
    """Into engine.log; a full disk must not make an error of an error."""
    with contextlib.suppress(OSError):
        traceback.print_exception(error)


def raise_file_limit() -> None:
    """One descriptor a stream: the soft limit is often 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop  # type: ignore[no-any-return]
