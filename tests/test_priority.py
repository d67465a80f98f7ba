"""Real-time scheduling is taken where it is given, and given back by an engine that needs much."""

from __future__ import annotations

import os
import subprocess
import sys

from loadtest.traffic.priority import BUSY, CALM, Priority

LOOK = """
import os, threading
from loadtest.traffic.priority import Priority
priority = Priority()
seen = []
thread = threading.Thread(target=lambda: seen.append(os.sched_getscheduler(0)))
thread.start(); thread.join()
print(priority.on, os.sched_getscheduler(0) & os.SCHED_RR == os.SCHED_RR, seen == [os.SCHED_OTHER])
priority.second(1.0)
print(os.sched_getscheduler(0) == os.SCHED_OTHER)
"""


def test_a_busy_engine_gives_it_back_and_takes_it_when_calm() -> None:
    switched: list[bool] = []

    def switch(on: bool) -> bool:
        switched.append(on)
        return True

    priority = Priority(switch)
    states = []
    for share in (0.1, BUSY - 0.01, BUSY + 0.01, CALM + 0.01, CALM - 0.01, 0.9, 0.9):
        priority.second(share)
        states.append(priority.on)
    assert states == [True, True, False, False, True, False, False]
    assert switched == [True, False, True, False]


def test_where_it_is_refused_nobody_asks_again() -> None:
    asked: list[bool] = []

    def switch(on: bool) -> bool:
        asked.append(on)
        return False

    priority = Priority(switch)
    priority.second(0.9)
    priority.second(0.1)
    assert (priority.on, asked) == (False, [True])


def test_the_system_does_what_is_said_and_threads_are_left_alone() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=60, check=True)
    first, second = done.stdout.splitlines()
    on, realtime, thread_usual = (word == "True" for word in first.split())
    assert on == realtime
    assert thread_usual
    assert second == "True"
    assert on or os.geteuid() != 0 or not sys.platform.startswith("linux") or _without_nice()


def _without_nice() -> bool:
    """Root without CAP_SYS_NICE (bit 23), as in most containers."""
    with open("/proc/self/status") as f:
        caps = next(int(line.split()[1], 16) for line in f if line.startswith("CapEff"))
    return not caps >> 23 & 1
