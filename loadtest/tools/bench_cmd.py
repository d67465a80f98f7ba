"""`loadtest bench` from its options to its files: a server found or started, measured, and left as it was."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loadtest.errors import UsageError
from loadtest.tools import bench, bench_report
from loadtest.tools.remote import Remote, named, remote
from loadtest.tools.shown import Shown

Say = Callable[[str], None]

SERVED = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank may be


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may say."""

    settings: bench.Settings
    url: str | None = None
    api_key_env: str | None = None
    timeout_s: float = 60.0
    base: Path | None = None
    adapters_dir: str | None = None  # LOCAL[:SERVER]
    size: Literal["tiny", "wide"] = "wide"  # of the embedded server's base, when one is started
    out: Path | None = None  # the JSON document; default results/bench-<time>.json


def run(options: Options, step: bench.Step, say: Say) -> Shown:
    """Measure, write the document, return it. Raises LoadtestError."""
    from loadtest.harness import tool_version, write

    stem = f"bench-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    out = options.out or Path("results") / f"{stem}.json"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"cannot write to {out.parent} ({e.strerror})", remedy="choose another --out") from e
    scratch = out.parent / stem
    with _server(options, scratch, say) as (server, base), _place(options, base, scratch) as place:
        measured = bench.run(server, place, options.settings, step)
    found = bench_report.shown(
        bench_report.document(measured, options.settings, server.url, tool_version()),
    )
    write(out, found.as_json() + "\n")
    say(f"written to {out}")
    return found


@contextmanager
def _server(options: Options, scratch: Path, say: Say) -> Iterator[tuple[Remote, Path | None]]:
    """The server that is named, else an embedded one of our own; and its base's folder where that is known."""
    if named(options.url):
        yield remote(options.url, key_env=options.api_key_env, timeout_s=options.timeout_s), None
        return
    from loadtest.scenario import Target as Spec
    from loadtest.target import open_target

    top = next(rank for rank in SERVED if rank >= max(options.settings.ranks))
    scratch.mkdir(parents=True)
    spec = Spec(url="embedded", size=options.size, step_ms=0.0, max_loras=8, max_lora_rank=top)
    target = open_target(spec, scratch, say)
    try:
        yield Remote(target.url, timeout_s=options.timeout_s), target.base
    finally:
        target.stop()
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _place(options: Options, base: Path | None, scratch: Path) -> Iterator[bench.Place]:
    """A folder of this benchmark's own for adapters, removed at the end: each is as large as a real one."""
    root, server = scratch / "adapters", ""
    if options.adapters_dir:
        given, _, seen_as = options.adapters_dir.partition(":")
        root = Path(given) / scratch.name
        server = f"{seen_as.rstrip('/')}/{scratch.name}" if seen_as else ""
    try:
        root.mkdir(parents=True)
    except OSError as e:
        raise UsageError(f"cannot write to {root} ({e.strerror})", remedy="choose another --adapters-dir") from e
    try:
        yield bench.Place(options.base or base, root.resolve(), server or str(root.resolve()))
    finally:
        shutil.rmtree(root, ignore_errors=True)
        if scratch.is_dir() and not any(scratch.iterdir()):
            scratch.rmdir()


def ranks(text: str) -> tuple[int, ...]:
    """Ranks out of "8,16,32". Raises UsageError."""
    try:
        found = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        found = ()
    if not found or any(not 1 <= rank <= 512 for rank in found):
        raise UsageError(f"--ranks is {text!r}", remedy="give numbers from 1 to 512 such as 8,16,32,64")
    return found
