"""What a process and all its descendants cost: CPU seconds and memory, from /proc."""

from __future__ import annotations

import os
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from `state` on; empty when it has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def running(pid: int) -> bool:
    """Whether it has not ended; one that waits to be reaped has."""
    stat = _stat(pid)
    return bool(stat) and stat[0] != "Z"


def tree(root: int) -> list[int]:
    """`root` and its descendants that live."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := _stat(int(entry))):
            children.setdefault(int(stat[1]), []).append(int(entry))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return found


def cpu_s(root: int) -> float:
    """User and system seconds of the tree so far, the reaped descendants' too."""
    total = 0
    for pid in tree(root):
        stat = _stat(pid)
        total += sum(int(stat[i]) for i in (11, 12, 13, 14)) if stat else 0
    return total / TICK


def rss_mb(root: int) -> float:
    """Resident memory of the tree, MB; shared pages count once per process (PSS where the kernel tells)."""
    return sum(_pss_kb(pid) for pid in tree(root)) / 1024


def _pss_kb(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
