"""The library: what `from loadtest import ...` gives to a notebook or a test. Every call blocks until it is done.

A call works inside a running event loop too (a notebook): it then happens in a thread. Ctrl-C ends a run as it ends the
command: the swaps stop, the server gets back what it had, and KeyboardInterrupt goes on to the caller.
"""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, Unpack

T = TypeVar("T")
Swap = Literal["pin", "switch", "sticky", "drain"]
Level = Literal["safe", "token-regular", "token-atomic", "stream-regular", "stream-atomic"]
_POLL_S = 0.2
_log = logging.getLogger("loadtest")


# -- runs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A judged run. `str(run)` is what its command would have printed, so `assert run.passed, run` explains itself."""

    folder: Path  # results/<run>: history, verdict.json, report.html
    verdict: Mapping[str, Any] = field(repr=False)  # verdict.json
    ended: str  # "complete", "interrupted", ...
    text: str = field(repr=False)

    def __str__(self) -> str:
        return self.text

    @property
    def status(self) -> str:
        """PASS, FAIL or UNKNOWN."""
        return str(self.verdict["status"])

    @property
    def passed(self) -> bool:
        """Whether the required level was proven to hold."""
        return self.status == "PASS"

    @property
    def level_held(self) -> str | None:
        """The strongest level that held."""
        return self.verdict["level_held"] or None

    @property
    def guarantees(self) -> dict[str, str]:
        """Guarantee -> PASS, FAIL or UNKNOWN."""
        return {name: str(found["status"]) for name, found in self.verdict["guarantees"].items()}

    @property
    def witnesses(self) -> list[str]:
        """One sentence for each witness of a violation: which stream, which token, which swap."""
        return [str(w["text"]) for g in self.verdict["guarantees"].values() for w in g["witnesses"]]

    @property
    def swap_latency_ms(self) -> dict[str, dict[str, float | None]]:
        """ack, effect, drain, stall -> p50, p90, p99, n; None where n is too small."""
        return dict(self.verdict["swap_latency_ms"])

    @property
    def report(self) -> Path:
        """One self-contained page."""
        return self.folder / "report.html"


class HotfixOptions(TypedDict, total=False):
    """What `hotfix` takes beside the server; the defaults are those of `loadtest hotfix`."""

    adapter: str  # what is hotfixed; default: tenant-a, with forged marker adapters
    to: str | Path  # folder of its new version
    origin: str | Path  # folder of its old version, if the server's is not here
    base: str | Path  # folder of the server's base model, if the server does not tell
    adapters_dir: str  # LOCAL[:SERVER]
    api_key_env: str  # environment variable that holds the server's API key
    swap: Swap  # how the embedded server swaps
    streams: int  # users
    swaps: int
    level: Level  # what must hold
    seed: int
    results: str | Path


def hotfix(url: str | None = None, **options: Unpack[HotfixOptions]) -> Run:
    """Replace an adapter on the server `url` while a few streams run; judged. Without a server, on the embedded one.

    Raises LoadtestError: UsageError, or TargetError when the server cannot be used.
    """
    from loadtest.tools import hotfix as tool
    from loadtest.tools.remote import named

    given: dict[str, Any] = dict(options)
    paths = {key: Path(given[key]) for key in ("to", "origin", "base", "results") if given.get(key) is not None}
    wanted, stop = tool.Options(**{**given, **paths, "url": named(url)}), threading.Event()
    result = _blocking(lambda: tool.run(wanted, _log.info, stop), stop)
    if result.reason == "interrupted":
        raise KeyboardInterrupt
    return Run(result.folder, result.verdict, result.reason, result.as_text(terminal=False, colour=False))


class RunOptions(TypedDict, total=False):
    """What `run` takes beside the scenario."""

    target: str  # embedded or http://host:port, instead of the scenario's
    seed: int
    results: str | Path
    users: int
    run_time: str  # Locust's, "30s"
    timeout_s: float  # end it after so long; default: it ends by itself


def run(scenario: str | Path, **options: Unpack[RunOptions]) -> Run:
    """Run a scenario headless under Locust, in processes of its own; judged. Raises LoadtestError."""
    from loadtest import scenario as scenarios
    from loadtest.tools import subrun

    scenarios.load(Path(scenario))  # mistakes of the file as ScenarioError, before anything is started
    limit, stop = options.pop("timeout_s", None), threading.Event()
    arguments = {("run-time" if key == "run_time" else key): str(value) for key, value in options.items()}
    folder = _blocking(lambda: subrun.run(Path(scenario), arguments, _log.info, limit_s=limit, stop=stop), stop)
    return judge(folder)


def judge(folder: str | Path) -> Run:
    """Judge a recorded run again from its files alone. Raises HistoryError."""
    from loadtest import harness

    folder = Path(folder)
    outcome = harness.judge(folder)
    verdict = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
    return Run(folder, verdict, harness.ended(folder), outcome.text)


# -- servers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Served:
    """A model that a server serves; `rank` and `sha` where its folder lies on this machine too."""

    name: str
    kind: str  # "base" or "adapter"
    path: str  # of an adapter's last acked load, as the server sees it
    rank: int | None
    sha: str  # of the content, "" when unknown


@dataclass(frozen=True, slots=True)
class Operation:
    """What came of a load, unload or hotfix."""

    outcome: str  # ok: done; fail: refused, nothing changed; info: it may have happened, or may yet
    reason: str  # "" when ok, else a short code
    message: str  # the server's words
    ack_ms: float  # request sent to answer read
    replaced: str | None = None  # hotfix: the path of the version before
    first_seen_ms: float | None = None  # hotfix by a marker: request sent to the first answer by the new version

    @property
    def ok(self) -> bool:
        """Whether it was done."""
        return self.outcome == "ok"


class Server:
    """A server that speaks vLLM's contract. Each method raises TargetError when it cannot be asked at all."""

    def __init__(self, url: str | None = None, *, api_key_env: str | None = None, timeout_s: float = 60.0) -> None:
        """Without `url`: LOADTEST_TARGET, else the one that `make exp4-up` started. Raises UsageError."""
        from loadtest.tools.remote import remote

        self._remote = remote(url, key_env=api_key_env, timeout_s=timeout_s)
        self.url = self._remote.url

    def __repr__(self) -> str:
        return f"Server({self.url!r})"

    def models(self) -> list[Served]:
        """What it serves: base models and adapters."""
        from loadtest.tools import adapters_cmd

        found: Any = _blocking(lambda: adapters_cmd.list_models(self._remote)).document
        return [Served(d["id"], d["kind"], d["root"], d["rank"], d["sha"]) for d in found]

    def load(self, name: str, path: str | Path, *, check: bool = True) -> Operation:
        """Load an adapter folder under a new name. AdapterError for a folder that no engine would take."""
        from loadtest.tools import adapters_cmd

        return _operation(lambda: adapters_cmd.load(self._remote, name, str(path), check=check))

    def unload(self, name: str) -> Operation:
        """Take an adapter out of service."""
        from loadtest.tools import adapters_cmd

        return _operation(lambda: adapters_cmd.unload(self._remote, name))

    def hotfix(self, name: str, path: str | Path, *, check: bool = True, watch_s: float = 5.0) -> Operation:
        """Replace an adapter in place. UsageError when there is nothing to replace."""
        from loadtest.tools import adapters_cmd

        return _operation(lambda: adapters_cmd.hotfix(self._remote, name, str(path), check=check, watch_s=watch_s))


def _operation(work: Callable[[], Any]) -> Operation:
    found = _blocking(work).document
    answer = (found["outcome"], found["reason"], found["message"], found["ack_ms"])
    return Operation(*answer, (found.get("replaced") or {}).get("root"), found.get("first_seen_ms"))


@contextmanager
def embedded(swap: Swap = "pin") -> Iterator[Server]:
    """The embedded server, running while the block does: vLLM's contract, real LoRA arithmetic, no GPU."""
    from loadtest.scenario import Target as Spec
    from loadtest.target import open_target

    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        target = open_target(Spec(url="embedded", swap=swap), Path(folder), _log.info)
        try:
            yield Server(target.url)
        finally:
            target.stop()


def forge(
    out: str | Path, base: str | Path | None = None, *, adapter: str = "tenant-a", count: int = 2, rank: int = 8
) -> list[Path]:
    """Forge `count` marker versions of an adapter into `out`; their folders. `base`: default the embedded server's."""
    from loadtest import target

    found = target.forge(Path(out), Path(base) if base else None, adapter, count, rank, 0)
    return [path for _, path, _ in found]


# -- threads -----------------------------------------------------------------------------------------------------------


def _blocking(work: Callable[[], T], stop: threading.Event | None = None) -> T:
    """The result of `work`, done in a thread when this one runs an event loop. An interrupt sets `stop` and waits."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
        try:
            while not wait((done,), _POLL_S).done:
                task = asyncio.current_task()
                if task is not None and task.cancelling():  # so asyncio.run takes a Ctrl-C
                    raise asyncio.CancelledError
            return done.result()
        except BaseException:
            if stop is not None:
                stop.set()
            raise
