"""Rollbacks that a killed run still owes: found in its journal at the next start, and played.

Pinned copies that a scoring left loaded (scoring.py) are unloaded in the same way.

Rules
1. Only runs against the same URL count, and only adapters whose last undo line is `planned`, or `failed` by the run
   itself: its server may not have answered just then. What is refused here is said, and not tried again.
2. A run whose engine is still alive owes nothing yet. It holds a lock on its history, which its death releases.
3. What is played is appended to that run's own folder as `history-undo.jsonl`: its history stays append-only.
4. As with every load, a line is on disk before its bytes leave.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import orjson

from loadtest import records, scores
from loadtest.errors import LoadtestError
from loadtest.journal import encode, held
from loadtest.lines import File, typed
from loadtest.target import request

Say = Callable[[str], None]
PLAYED = "history-undo.jsonl"
NEWEST = 50  # run folders looked at: an older debt has long been overtaken by other deployments


def boot_id() -> str:
    """Names the domain of CLOCK_MONOTONIC: this boot of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"unknown-{os.uname().nodename}"


def owed(results: Path, url: str) -> list[tuple[Path, records.Undo]]:
    """(run folder, undo) for each adapter that a dead run left hotfixed on the server at `url`."""
    folders = sorted((p for p in results.glob("*/") if not p.is_symlink()), key=_changed)
    return [(f, undo) for f in folders[-NEWEST:] for undo in _debts(f, url)]


def _changed(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:  # removed meanwhile
        return 0.0


def _debts(folder: Path, url: str) -> list[records.Undo]:
    debts: dict[str, records.Undo] = {}
    for path in sorted(folder.glob("history-*.jsonl")):
        try:
            if held(path):
                return []
            found = _undos(path)
        except OSError:
            continue
        for undo in found:
            if undo.url != url:
                continue
            if undo.state == "planned" or (undo.state == "failed" and path.name != PLAYED):
                debts[undo.adapter] = undo
            else:
                debts.pop(undo.adapter, None)
    return list(debts.values())


def _undos(path: Path) -> list[records.Undo]:
    """The undo lines of a file that may be large and torn."""
    rows = []
    with path.open("rb") as lines:
        for line in lines:
            if line.startswith(b'{"kind":"undo"'):
                with contextlib.suppress(orjson.JSONDecodeError):
                    rows.append(orjson.loads(line))
    return typed(File("", path.parent, {"undo": rows}), records.Undo, [])


def _pin(line: bytes) -> records.Pin | None:
    try:
        row = orjson.loads(line)
        return records.Pin(**{k: v for k, v in row.items() if k != "kind"})
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
            if line.startswith(b'{"kind":"pin"') and not _alive(line) and (pin := _pin(line)):
                last[pin.name] = pin
        found += [(path.parent, p) for p in last.values() if p.url == url and p.state in ("planned", "loaded")]
    return found


def _unpin(folder: Path, pin: records.Pin, headers: Mapping[str, str], say: Say) -> bool:
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


def play(results: Path, url: str, headers: Mapping[str, str], say: Say) -> int:
    """Undo what dead runs left on the server at `url`; how many were played. Never raises for a refusal."""
    played = sum(_unpin(folder, pin, headers, say) for folder, pin in pins(results, url))
    for folder, undo in owed(results, url):
        if not _note(folder, undo, "planned", say):
            continue
        body = {"lora_name": undo.adapter, "lora_path": undo.path, "load_inplace": True}
        try:
            status, _ = request(url, "POST", "/v1/load_lora_adapter", headers, body, timeout_s=30)
        except LoadtestError as e:
            say(f"could not undo {undo.adapter} of {folder.name}: {e}")
            continue
        ok = status == 200
        _note(folder, undo, "played" if ok else "failed", say)
        played += ok
        words = "rolled back to" if ok else f"refused ({status}) its rollback to"
        say(f"{undo.adapter}, left hotfixed by the killed run {folder.name}: {words} {undo.version}")
    return played


def _note(folder: Path, undo: records.Undo, state: Literal["planned", "played", "failed"], say: Say) -> bool:
    """Rules 3 and 4; False when the disk does not take the line."""
    line = encode(dataclasses.replace(undo, state=state, at_ns=time.monotonic_ns()))
    try:
        with (folder / PLAYED).open("ab") as f:
            f.write(line)
    except OSError as e:
        say(f"cannot write to {folder}, so {undo.adapter} is not rolled back yet: {e.strerror}")
        return False
    return True
