"""The traffic engine: one asyncio process that sends all streams of its host and, in one engine of a run, the swaps.

    python -m loadtest.traffic.engine FD PARENT

Rules
1. FD is this end of a socket pair (ipc.py). At its EOF, or when process PARENT is no longer our parent, the engine
   cancels its streams, tries to roll back for `LAST_ROLLBACK_S`, closes the journal as "interrupted" and exits.
2. SIGINT is ignored: a Ctrl-C reaches the whole process group, and the host decides. SIGTERM is a stop without drain.
3. `stop`: no more swaps, no more arrivals; open streams drain, then are cancelled; versions are rolled back while
   nobody streams; the last health line, the end of the journal, `stopped`. Then it waits for the EOF.
4. Messages are handled in the order they came, but none waits for the end of what an earlier one began.
5. Automatic garbage collection is off while it serves (pulse.py); nothing heavy runs in the loop but imports, and
   those before the first stream.
6. An error of ours is said three times: to the host, in the history, and in engine.log. It never ends the loop, nor
   does a disk that takes none of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from loadtest import records
from loadtest.errors import EXIT_INTERNAL, LoadtestError
from loadtest.journal import Journal
from loadtest.traffic.admin import Admin
from loadtest.traffic.client import Limits, Options, StreamClient, open_session
from loadtest.traffic.director import Director, Emit
from loadtest.traffic.fleet import Fleet, Spread
from loadtest.traffic.ipc import FrameError, Message, Unframer, frame
from loadtest.traffic.live import Live
from loadtest.traffic.priority import Priority
from loadtest.traffic.process import boot_id, complain, log_to, loop_factory, raise_file_limit
from loadtest.traffic.pulse import Pulse
from loadtest.traffic.scrape import INTERVAL_S, Scraper
from loadtest.traffic.streams import Streams
from loadtest.traffic.words import Redactor

if TYPE_CHECKING:
    from loadtest.chaos.conductor import Conductor

ROLLBACK_S = 60.0
LAST_ROLLBACK_S = 2.0
PARENT_POLL_S = 0.5
READ_SIZE = 262_144


class _Unconfigured(Exception):
    """Without a journal and a client there is nothing to do but to end."""


class Engine:
    """One engine's state; `run` is its life."""

    def __init__(self, peer: socket.socket, parent: int, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._peer = peer
        self._parent = parent
        self._now_ns = now_ns
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._journal: Journal | None = None
        self._live: Live | None = None
        self._scraper: Scraper | None = None
        self._started_ns = 0
        self._streams: Streams | None = None
        self._pulse: Pulse | None = None
        self._priority: Priority | None = None
        self._director: Director | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._closed = False
        self._unwritten = False

    # -- life -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until the peer's EOF."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop, "interrupted", 0.0)
        reader, self._writer = await asyncio.open_unix_connection(sock=self._peer, limit=READ_SIZE)
        serving = asyncio.create_task(self._serve(reader))
        orphaned = asyncio.create_task(self._follow_parent())
        await asyncio.wait({serving, orphaned}, return_when=asyncio.FIRST_COMPLETED)
        orphaned.cancel()
        if not serving.done():
            serving.cancel()
        await asyncio.wait({serving, orphaned})
        await self._end()
        if not serving.cancelled() and (error := serving.exception()) is not None:
            raise error

    async def _serve(self, reader: asyncio.StreamReader) -> None:
        unframer = Unframer()
        try:
            while data := await reader.read(READ_SIZE):
                for message in unframer.feed(data):
                    await self._handle(message)
        except (OSError, FrameError) as e:
            self._trouble(f"the host's messages ended: {e}")

    async def _follow_parent(self) -> None:
        """A fork of the host may keep its end of the pair open after the host has gone."""
        while True:
            if os.getppid() != self._parent:
                return
            await asyncio.sleep(PARENT_POLL_S)

    async def _end(self) -> None:
        """Rule 1."""
        await _cancel(self._tasks)
        with contextlib.suppress(Exception):
            await self._wind_up("interrupted", 0.0, LAST_ROLLBACK_S)
        if self._session is not None:
            await self._session.close()
        if self._writer is not None:
            self._writer.close()

    # -- messages ---------------------------------------------------------------------------------------------------

    def _send(self, message: Message) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame(message))

    async def _handle(self, message: Message) -> None:
        try:
            await self._dispatch(message)
        except Exception as e:
            self._trouble(f"{message['op']}: {type(e).__name__}: {e}")
            complain(e)
            if self._journal is None:
                raise _Unconfigured from e

    async def _dispatch(self, message: Message) -> None:
        op = message["op"]
        if op == "configure":
            await self._configure(message)
            return
        if self._streams is None or self._journal is None or self._director is None:
            raise LoadtestError(f"{op!r} came before 'configure'")
        match op:
            case "stream":
                self._streams.ask(message)
            case "cancel":
                self._streams.cancel(message["id"])
            case "arrivals":
                self._arrive(message, self._streams)
            case "setup":
                self._spawn(self._set_up(self._director, message["script"]))
            case "play":
                self._spawn(self._director.play())
            case "hotfix":
                self._spawn(self._director.hotfix(message["id"], message["adapter"], message.get("version")))
            case "swapped":
                self._learn(message)
            case "event":
                self._note(message["what"], message.get("detail", ""))
            case "stop":
                self._stop(message["reason"], float(message["drain_s"]))
            case _:
                raise LoadtestError(f"unknown message {op!r}")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._trouble(f"{type(error).__name__}: {error}")
            complain(error)

    def _note(self, what: str, detail: str) -> None:
        if self._journal is not None:
            self._journal.emit(records.Event(self._now_ns(), what, detail[:2000]), flush=True)

    def _trouble(self, words: str) -> None:
        """Rule 6; the caller prints."""
        self._note("error", words)
        self._send({"op": "error", "message": words})

    # -- configure, arrivals ----------------------------------------------------------------------------------------

    async def _configure(self, message: Message) -> None:
        if self._journal is not None:
            raise LoadtestError("'configure' came twice")
        folder = Path(message["folder"])
        log_to(folder)
        headers, url, limits = dict(message.get("headers") or {}), message["url"], Limits(**message.get("limits", {}))
        redact = Redactor(url, headers)
        header = self._header(message, folder.name)
        self._started_ns = header.started_ns
        self._journal = journal = Journal(folder, header)
        self._live = live = Live(journal, self._now_ns)
        for adapter, version, markers in message.get("markers") or ():
            live.declare(adapter, version, markers)
        self._session = session = open_session(headers, limits.connect_s)
        spread = Spread(message.get("replicas", ()), message.get("spread") == "user")
        options = Options(message.get("model_base", "base"), limits, redact, spread)
        client = StreamClient(session, url, live, options=options, now_ns=self._now_ns, reading=live.reads)

        def admin(timeout_s: float) -> Admin | Fleet:
            members = [Admin(session, u, self._now_ns, timeout_s, redact) for u in spread.urls or (url,)]
            return Fleet(members, self._now_ns) if len(members) > 1 else members[0]

        self._streams = Streams(client, self._send, admin(30.0).health, self._note, self._now_ns)
        self._director = Director(lambda script, emit: self._conductor(script, admin, emit), live.emit, self._send)
        self._pulse = Pulse(self._second, lambda: self._streams.open if self._streams else 0, self._dropped)
        self._pulse.start()
        self._priority = Priority()
        if message.get("scrape"):  # one engine of a run asks the target how it is
            self._scraper = Scraper(admin(INTERVAL_S).metrics, journal.emit, self._now_ns)
            self._scraper.start()
        self._send({"op": "ready", "pid": os.getpid()})

    def _conductor(self, script: Message, admin: Callable[[float], Admin | Fleet], emit: Emit) -> Conductor:
        from loadtest.chaos import conductor  # only the engine that swaps pays for what it imports

        parsed = conductor.Script.from_json(script)
        return conductor.Conductor(parsed, admin(parsed.timeout_s), emit, self._now_ns)

    def _header(self, message: Message, run: str) -> records.Run:
        return records.Run(
            format=records.FORMAT,
            run=run,
            engine=message["engine"],
            role=message["role"],
            boot_id=boot_id(),
            pid=os.getpid(),
            seed=message["seed"],
            started_ns=self._now_ns(),
            wall_ns=time.time_ns(),
            tool=importlib.metadata.version("loadtest"),
            replicas=tuple(message.get("replicas", ())),
        )

    def _arrive(self, message: Message, streams: Streams) -> None:
        from loadtest import plan, scenario  # pydantic and YAML: only an engine with an open loop pays for them

        arrivals = plan.arrivals(scenario.loads(message["scenario"]), message["seed"], message["vocab"])
        self._cut()
        streams.arrive(arrivals, message["share"], message["of"])

    async def _set_up(self, director: Director, script: Message) -> None:
        await director.setup(script)
        self._cut()

    def _cut(self) -> None:
        """An interval ends here: that imports made the loop late before the first stream is not held against it."""
        if self._pulse is not None:
            self._second(self._pulse.take())

    def _dropped(self) -> int:
        return self._journal.dropped if self._journal is not None else 0

    def _second(self, health: records.Health) -> None:
        """Once a second: a line for the history, all lines to the disk, progress to the host."""
        assert self._journal is not None
        assert self._streams is not None
        self._journal.emit(health, flush=True)
        if self._priority is not None:
            self._priority.second(health.cpu_s * 1e9 / max(1, health.at_ns - health.from_ns))
        self._say_unwritten()
        counts = self._streams.counts
        self._send(
            {
                "op": "progress",
                "open": health.open_streams,
                "sent": counts.sent,
                "ok": counts.ok,
                "fail": counts.fail,
                "info": counts.info,
                "tokens": counts.tokens,
                "lag_ms": health.lag_p99_ms,
                "cpu": round(health.cpu_s / max(1e-9, (health.at_ns - health.from_ns) / 1e9), 4),
                "dropped": health.dropped,
                "started_ns": self._started_ns,
                **(self._live.second() if self._live is not None else {}),
            }
        )

    def _say_unwritten(self) -> None:
        """Once: a full disk is known to the user before the run has lost much."""
        if self._journal is not None and self._journal.trouble and not self._unwritten:
            self._unwritten = True
            self._send({"op": "error", "message": f"{self._journal.trouble}: make room where the results lie"})

    def _learn(self, message: Message) -> None:
        """What the run's other engine has swapped."""
        if self._live is not None:
            self._live.swapped(message)

    # -- the end ----------------------------------------------------------------------------------------------------

    def _stop(self, reason: str, drain_s: float) -> None:
        if self._stopping is None:
            if self._streams is not None:
                self._streams.close()
            self._stopping = self._spawn(self._stop_in_order(reason, drain_s))

    async def _stop_in_order(self, reason: str, drain_s: float) -> None:
        try:
            await self._wind_up(reason, drain_s, ROLLBACK_S)
        finally:
            self._send({"op": "stopped"})

    async def _wind_up(self, reason: str, drain_s: float, rollback_s: float) -> None:
        """Rule 3; what was done already is not done again."""
        journal, streams, director = self._journal, self._streams, self._director
        if journal is None or streams is None or director is None or self._closed:
            return
        director.stop()
        await streams.drain(drain_s)
        acting = self._tasks - {self._stopping}
        if acting:
            await asyncio.wait(acting, timeout=rollback_s)
            await _cancel(acting)
        try:
            async with asyncio.timeout(rollback_s):
                await director.rollback()
        except TimeoutError:
            self._trouble(f"the rollback was not over after {rollback_s:g} s")
        except Exception as e:
            self._trouble(f"the rollback failed: {type(e).__name__}: {e}")
            complain(e)
        if self._scraper is not None:
            await self._scraper.stop()
        if self._pulse is not None:
            await self._pulse.stop()
        self._closed = True
        journal.close(reason, self._now_ns())
        self._say_unwritten()


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel and wait."""
    waiting = set(tasks)
    for task in waiting:
        task.cancel()
    if waiting:
        await asyncio.wait(waiting)


def main(fd: int, parent: int) -> int:
    """Serve the host at the other end of socket `fd`; the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise_file_limit()
    with socket.socket(fileno=fd) as peer, asyncio.Runner(loop_factory=loop_factory()) as runner:
        peer.setblocking(False)
        try:
            runner.run(Engine(peer, parent).run())
        except Exception:
            traceback.print_exc()
            return EXIT_INTERNAL
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
