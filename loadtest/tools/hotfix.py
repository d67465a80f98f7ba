"""`loadtest hotfix`: a few streams, one or a few swaps, an answer in seconds. No Locust; the engine is the same.

It writes a scenario, runs it as any other (results/<run>, journal, verdict, rollback) with threads as users, and shows
every stream as a bar of versions. With no arguments the server is the embedded one.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest import harness
from loadtest.errors import TargetError, UsageError
from loadtest.target import public_url
from loadtest.tools.hotfix_report import Result
from loadtest.tools.remote import Remote, remote, talking
from loadtest.traffic.ipc import EngineHandle, Message

if TYPE_CHECKING:
    from loadtest.traffic.admin import ModelCard

Say = Callable[[str], None]

BASE, BYSTANDER = "base", "bystander"
_TOKENS = 48  # per stream: half a second at the embedded server's 10 ms a token
_DRAIN_S = 10.0
_POLL_S = 0.2
_PAUSE_S = 0.2  # after a stream without a token, so that a dead server is not hammered


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may say; without a `url` it is an embedded server with swap policy `swap`."""

    url: str = ""  # may hold a password
    api_key_env: str | None = None
    base: Path | None = None
    adapters_dir: str | None = None  # LOCAL[:SERVER]
    swap: str = "pin"
    adapter: str = ""
    to: Path | None = None  # the new version; without one marker adapters are forged
    origin: Path | None = None  # the old version; without one what the server has under that name
    streams: int = 6
    swaps: int = 3
    level: str = "stream-atomic"
    seed: int | None = None
    results: Path | None = None


def run(options: Options, say: Say, stop: threading.Event | None = None) -> Result:
    """Run, judge, and describe. Raises LoadtestError; Ctrl-C ends the swaps, rolls back, judges what was seen.

    So does `stop`, from another thread.
    """
    if options.to is not None and not options.adapter:
        raise UsageError("--to says what, but not which adapter", remedy="give --adapter NAME")
    server = remote(options.url, key_env=options.api_key_env) if options.url else None
    cards = asyncio.run(_cards(server)) if server else []
    adapter = options.adapter or "tenant-a"
    lanes = _lanes(adapter, options.streams, bystander=options.to is None)
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        file = Path(folder) / "hotfix.yaml"
        file.write_text(json.dumps(_scenario(options, cards, adapter, lanes)), encoding="utf-8")  # JSON is YAML
        given = harness.Options(scenario=file, seed=options.seed, results=options.results)
        session = harness.Session.open(given, "cli", say)
    try:
        reason = _Play(session, lanes, say, stop or threading.Event()).run()
        outcome = session.judge(reason)
    finally:
        try:
            if server:
                asyncio.run(_restore(server, cards, {name for name in lanes if name != BASE}))
        finally:
            session.close()
    return Result(session.folder, adapter, outcome.exit_code, reason)


def _lanes(adapter: str, users: int, *, bystander: bool) -> list[str]:
    """Whom each user streams from: most from the hotfixed adapter, one each from those it must not disturb."""
    others = [BASE, BYSTANDER] if bystander else [BASE]
    others = others[: users - 1]
    return [adapter] * (users - len(others)) + others


async def _restore(server: Remote, cards: list[ModelCard], names: set[str]) -> None:
    """The server as it was: what it had from the path it had it from, and nothing that it did not have.

    The run's own rollback has put the contents back, but from a path of the run, which must not be needed any more.
    """
    before = {card.id: card.root for card in cards}
    async with talking(server) as (_, admin):
        for name in names:
            if name not in before:
                await admin.unload(name)
            elif before[name]:
                await admin.load(name, before[name], inplace=True)


# -- the scenario ------------------------------------------------------------------------------------------------------


def _scenario(options: Options, cards: list[ModelCard], adapter: str, lanes: list[str]) -> dict[str, Any]:
    """What a user would have written. Raises UsageError, TargetError."""
    root = next((card.root for card in cards if card.id == adapter), "")
    adapters: dict[str, Any] = {adapter: {"versions": _versions(options, root)}}
    if BYSTANDER in lanes:
        adapters[BYSTANDER] = {"versions": "markers 1"}
    swap = {"arm": "real", "hotfix": adapter, "every": "600ms..900ms", "count": options.swaps}
    return {
        "title": f"Hotfix {adapter}",
        "target": _target(options, cards) if options.url else {"url": "embedded", "swap": options.swap},
        "adapters": adapters,
        "traffic": {
            "users": len(lanes),
            "mix": dict(Counter(lanes)),
            "prompts": {"synthetic": {"tokens": "8..32"}},
            "max_tokens": f"{_TOKENS // 2}..{_TOKENS}",
        },
        "phases": [{"arm": "aa", "for": "800ms"}, swap, {"arm": "aa", "for": "800ms"}],
        "require": {"level": options.level, "min_swaps": 1},
    }


def _versions(options: Options, root: str) -> Any:
    if options.to is None:
        return "markers"
    old = options.origin or (Path(root) if root and (Path(root) / "adapter_config.json").is_file() else None)
    if old is None:
        raise UsageError(
            f"the version that {options.adapter} has now is not here ({root or 'not loaded'})",
            remedy="give its folder with --from: the run must be able to go back to it",
        )
    return [{"id": "old", "path": str(old.resolve())}, {"id": "new", "path": str(options.to.resolve())}]


def _target(options: Options, cards: list[ModelCard]) -> dict[str, Any]:
    """The scenario's target. Raises TargetError, UsageError."""
    base = next((card for card in cards if not card.parent), None)
    if base is None:
        raise TargetError(f"{public_url(options.url)[0]} serves no base model")
    target: dict[str, Any] = {"url": options.url, "model": base.id}
    folder = options.base or Path(base.root)
    if (folder / "config.json").is_file():
        target["base"] = str(folder.resolve())
    elif options.to is None:
        raise UsageError(
            f"markers are forged from the base model, and {folder} is not here", remedy="give --base DIR, or --to PATH"
        )
    if options.api_key_env:
        target["api_key_env"] = options.api_key_env
    if options.adapters_dir:
        local, _, seen_as = options.adapters_dir.partition(":")
        target["adapters_dir"] = {"local": local, "server": seen_as or str(Path(local).resolve())}
    return target


async def _cards(server: Remote) -> list[ModelCard]:
    async with talking(server) as (_, admin):
        return await admin.models()


# -- the run -----------------------------------------------------------------------------------------------------------


@dataclass
class _Play:
    """One engine, and users in threads."""

    session: harness.Session
    lanes: list[str]
    say: Say
    stop: threading.Event
    _over: threading.Event = field(default_factory=threading.Event)
    _reason: str = ""

    def run(self) -> str:
        """Set up, stream, swap, stop; why it ended. Raises LoadtestError when it could not begin."""
        script = self.session.script()
        handle = EngineHandle(self._news, self._died)
        handle.start()
        reason = "error"
        try:
            handle.configure(self.session.engine_config("e0", "cli"))
            handle.setup(script, 30.0 + float(script["timeout_s"]) * len(script["adapters"]))
            threads = [
                threading.Thread(target=self._user, args=(handle, n), daemon=True) for n in range(len(self.lanes))
            ]
            for thread in threads:
                thread.start()
            reason = self._phases(handle)
        except KeyboardInterrupt:
            self.say("interrupted: rolling back")
            reason = "interrupted"
        finally:
            self._over.set()
            stopped = handle.stop(reason, 0.0 if reason == "interrupted" else _DRAIN_S)
            handle.close()
        if not stopped:
            self.say("the engine did not stop in order: versions may not have been rolled back")
        return reason

    def _phases(self, handle: EngineHandle) -> str:
        handle.play()
        while not self._reason:
            if self.stop.is_set():
                raise KeyboardInterrupt
            self.session.target.check_alive()
            reason = handle.wait_play(_POLL_S)
            if reason is not None:
                return reason
        return self._reason

    def _user(self, handle: EngineHandle, number: int) -> None:
        from loadtest import plan

        info = self.session.run_info()
        requests = plan.requests(self.session.scenario, info["seed"], number, info["vocab"])
        for drawn in requests:
            if self._over.is_set():
                return
            ask = {"adapter": self.lanes[number], "prompt": drawn.prompt, "max_tokens": drawn.max_tokens}
            result = handle.stream({**ask, "user": f"user {number + 1}"})
            if not result.get("tokens"):
                time.sleep(_PAUSE_S)

    def _news(self, message: Message) -> None:
        """Called in the engine's reader thread."""
        if message["op"] == "swap":
            took = "" if message["ack_ms"] is None else f" in {message['ack_ms']:.0f} ms"
            why = f" ({message['reason']})" if message["reason"] else ""
            self.say(f"swap {message['n']}: {message['adapter']} {message['version']} {message['outcome']}{took}{why}")
        elif message["op"] == "target_died":
            self._reason = "target_died"
        elif message["op"] == "error":
            self.say(f"engine: {message.get('message', '')}")

    def _died(self) -> None:
        self._reason = "error"
