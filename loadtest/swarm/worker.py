"""A Locust worker's part in the master's run: an engine of its own, started and closed at the master's word."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import gevent
from gevent.lock import RLock

from loadtest import harness
from loadtest.errors import LoadtestError
from loadtest.swarm import cluster, rows, seat
from loadtest.swarm.link import Link, Message

logger = logging.getLogger(__name__)

_FORWARDED = ("progress", "target_died", "error")
_PARENT_POLL_S = 0.5


class Worker:
    """Lives in a worker process; its runs follow one another."""

    def __init__(self, environment: Any) -> None:
        self.environment = environment
        self._runner = environment.runner
        self._link: Link | None = None
        self._run = ""
        self._reason = ""
        self._started = False  # test_start has been seen
        self._lock = RLock()

    def listen(self) -> None:
        """Register for the master's messages and ask for a run that may have begun already."""
        self._runner.register_message(cluster.RUN, self._on_run, concurrent=True)
        self._runner.register_message(cluster.STOP, self._on_stop, concurrent=True)
        self._runner.register_message(cluster.SWAPPED, self._on_swapped)
        self._runner.send_message(cluster.HELLO, {})

    def follow(self, parent: int) -> None:
        """End with the process that forked us, also when it was killed: Locust would notice after a minute."""
        while os.getppid() == parent:
            gevent.sleep(_PARENT_POLL_S)
        os._exit(1)  # the engine reads EOF and ends too

    def test_start(self) -> None:
        """Users are about to be spawned; the engine may still be on its way."""
        self._started = True
        self._arrive()

    def close(self, reason: str = "interrupted", drain_s: float | None = None) -> None:
        """Close the engine's journal and tell the master; idempotent. At test_stop the users have ended."""
        with self._lock:
            link, self._link = self._link, None
            self._started = False
            seat.current().leave()
            if link is None:
                return
            if not link.stop(self._reason or reason, self.environment.stop_timeout if drain_s is None else drain_s):
                logger.error("engine %s did not stop in order", link.name)
            link.close()
            # Before `closed`, in the same ordered channel: the master waits for `closed`, so no numbers get lost.
            self._runner._send_stats()
            self._runner.send_message(cluster.CLOSED, {"run": self._run})

    def _on_run(self, environment: Any, msg: Any, **_: Any) -> None:
        data = msg.data
        folder = str(data["info"]["folder"])
        with self._lock:
            if self._link is not None and self._run == folder:
                return
            self.close("interrupted", 0.0)
            self._run, self._reason = folder, ""
            error = ""
            try:
                self._link = self._open(data)
            except LoadtestError as e:
                error = str(e)
            self._runner.send_message(cluster.READY, {"run": folder, "error": error})
            self._arrive()

    def _open(self, data: dict[str, Any]) -> Link:
        info = data["info"]
        if not Path(info["folder"]).is_dir():
            raise LoadtestError(
                f"this worker does not see {info['folder']}",
                remedy="use --processes, or mount the results folder at the same path on every worker's machine",
            )
        link = Link(data["engine"], self._news, self._died)
        try:
            link.configure(harness.engine_config(info, data["engine"], "worker"))
            seat.current().take(seat.Running(link, info, data["share"], data["of"]))
        except BaseException:
            link.close()
            raise
        return link

    def _arrive(self) -> None:
        running = seat.current().running
        if self._started and running is not None:
            running.arrive()

    def _on_stop(self, environment: Any, msg: Any, **_: Any) -> None:
        if msg.data["run"] != self._run:
            return
        self._reason = msg.data["reason"]
        if not msg.data["now"]:
            return
        self._runner.stop()  # fires test_stop, which closes; unless the test had not been started here
        self.close(msg.data["reason"], msg.data["drain_s"])

    def _on_swapped(self, environment: Any, msg: Any, **_: Any) -> None:
        if self._link is not None and msg.data["run"] == self._run:
            self._link.tell({**msg.data["swap"], "op": "swapped"})

    def _news(self, link: Link, message: Message) -> None:
        if message.get("op") == "result":
            rows.stream(self.environment, rows.Result.read(message), {"user": message.get("user", "arrivals")})
        elif message.get("op") in _FORWARDED:
            self._runner.send_message(cluster.NEWS, {"engine": link.name, "message": message})

    def _died(self, link: Link) -> None:
        self.tell("engine_died", "has ended by itself", link.name)

    def tell(self, what: str, detail: str, engine: str = "") -> None:
        """Trouble, to the master."""
        name = engine or (self._link.name if self._link is not None else "worker")
        self._runner.send_message(cluster.NEWS, {"engine": name, "message": {"op": what, "detail": detail}})
