"""Rollbacks that a killed run still owes: found in its journal at the next start, and played.

Pinned copies that a scoring left loaded (scoring.py) are unloaded in the same way.

Rules
1. Only runs against the same URL count, and only adapters whose last undo line is `planned`.
2. A run whose tester is still alive owes nothing yet.
3. What was played is appended to that run's own folder as `history-undo.jsonl`: its history stays append-only.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import orjson

from loadtest import records, scores
from loadtest.errors import LoadtestError
from loadtest.journal import encode
from loadtest.target import request

R = TypeVar("R", records.Undo, records.Pin)

NEWEST = 50  # run folders looked at: an older debt has long been overtaken by other deployments


def boot_id() -> str:
    """Names the domain of CLOCK_MONOTONIC: this boot of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"unknown-{os.uname().nodename}"


def owed(results: Path, url: str) -> list[tuple[Path, records.Undo]]:
    """(run folder, undo) for each adapter that a dead run left hotfixed on the server at `url`."""
    folders = sorted((p for p in results.glob("*/") if not p.is_symlink()), key=lambda p: p.stat().st_mtime)
    return [(f, undo) for f in folders[-NEWEST:] for undo in _debts(f, url)]


def _debts(folder: Path, url: str) -> list[records.Undo]:
    last: dict[str, records.Undo] = {}
    for path in sorted(folder.glob("history-*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            if line.startswith(b'{"kind":"run"') and _alive(line):
                return []
            if line.startswith(b'{"kind":"undo"'):
                undo = _parse(line, records.Undo)
                if undo is not None and undo.url == url:
                    last[undo.adapter] = undo
    return [u for u in last.values() if u.state == "planned"]


def _parse(line: bytes, kind: type[R]) -> R | None:
    try:
        row = orjson.loads(line)
        return kind(**{k: v for k, v in row.items() if k != "kind"})
    except (orjson.JSONDecodeError, TypeError):
        return None


def _alive(line: bytes) -> bool:
    try:
        row = orjson.loads(line)
        same_boot, pid = row["boot_id"] == boot_id(), int(row["pid"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return False
    return same_boot and pid != os.getpid() and Path(f"/proc/{pid}").exists()


def pins(results: Path, url: str) -> list[tuple[Path, records.Pin]]:
    """(run folder, pin) for each pinned copy that a dead scoring left on the server at `url`."""
    found = []
    for path in sorted(results.glob(f"*/{scores.FILE}"), key=lambda p: p.stat().st_mtime)[-NEWEST:]:
        if path.parent.is_symlink():
            continue
        last: dict[str, records.Pin] = {}
        for line in path.read_bytes().split(b"\n"):
            if line.startswith(b'{"kind":"pin"') and not _alive(line) and (pin := _parse(line, records.Pin)):
                last[pin.name] = pin
        found += [(path.parent, p) for p in last.values() if p.url == url and p.state in ("planned", "loaded")]
    return found


def _unpin(folder: Path, pin: records.Pin, headers: Mapping[str, str], say: Callable[[str], None]) -> bool:
    try:
        status, _ = request(pin.url, "POST", "/v1/unload_lora_adapter", headers, {"lora_name": pin.name}, timeout_s=30)
    except LoadtestError as e:
        say(f"could not unload {pin.name} of {folder.name}: {e}")
        return False
    gone = status in (200, 404)
    with (folder / scores.FILE).open("ab") as f:
        f.write(encode(dataclasses.replace(pin, state="unloaded" if gone else "failed")))
    say(
        f"{pin.name}, left loaded by the killed run {folder.name}: {'unloaded' if gone else f'not unloaded ({status})'}"
    )
    return gone


def play(results: Path, url: str, headers: Mapping[str, str], say: Callable[[str], None]) -> int:
    """Undo what dead runs left on the server at `url`; how many were played. Never raises for a refusal."""
    played = sum(_unpin(folder, pin, headers, say) for folder, pin in pins(results, url))
    for folder, undo in owed(results, url):
        body = {"lora_name": undo.adapter, "lora_path": undo.path, "load_inplace": True}
        try:
            status, _ = request(url, "POST", "/v1/load_lora_adapter", headers, body, timeout_s=30)
        except LoadtestError as e:
            say(f"could not undo {undo.adapter} of {folder.name}: {e}")
            continue
        ok = status == 200
        state = records.Undo(
            adapter=undo.adapter,
            version=undo.version,
            path=undo.path,
            local_path=undo.local_path,
            state="played" if ok else "failed",
            at_ns=time.monotonic_ns(),
            url=url,
        )
        with (folder / "history-undo.jsonl").open("ab") as f:
            f.write(encode(state))
        played += ok
        words = "rolled back to" if ok else f"refused ({status}) its rollback to"
        say(f"{undo.adapter}, left hotfixed by the killed run {folder.name}: {words} {undo.version}")
    return played
