"""The engine's thread: runs commands and steps in turn, and hands what they yield to the HTTP loop.

Commands (submit, abort, load, unload) run between steps. Results travel by one callback per step; at most LEAD of
them may be on the way, so that a slow loop slows the engine instead of filling memory.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from loadtest.server.batch import Engine
from loadtest.server.state import Emission

LEAD = 4  # steps the engine may run ahead of the loop; a guess
IDLE_S = 0.001  # nap while every stream is paused or waits for a drain

Command = Callable[[Engine], None]


class Worker:
    """Owns an Engine in a thread. `deliver` is called in that thread and must call `delivered` once it is through."""

    def __init__(
        self,
        engine: Engine,
        step_s: float,
        deliver: Callable[[list[Emission]], None],
        died: Callable[[BaseException], None],
    ) -> None:
        self._engine, self._step_s, self._deliver, self._died = engine, step_s, deliver, died
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(LEAD)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to run."""
        self._thread.start()

    def do(self, command: Command) -> None:
        """Run `command` between two steps; thread-safe, returns at once."""
        self._commands.put(command)

    def delivered(self) -> None:
        """The loop is through with one delivery."""
        self._room.release()

    def stop(self) -> None:
        """End the thread after the step in progress and wait for it; idempotent."""
        self._stopping = True
        self._commands.put(None)
        self._room.release()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._obey()
                if not self._stopping and self._engine.busy:
                    self._step()
        except Exception as error:  # whatever it was, no stream can go on: tell the loop instead of dying silently
            self._died(error)

    def _obey(self) -> None:
        """Run what is queued; wait for a command when there is no stream to compute."""
        idle = not self._engine.busy
        while True:
            try:
                command = self._commands.get(block=idle)
            except queue.Empty:
                return
            if command is None:
                return
            command(self._engine)
            idle = False

    def _step(self) -> None:
        began = time.perf_counter()
        emissions = self._engine.step()
        if emissions:
            self._room.acquire()
            self._deliver(emissions)
        cost = max(time.perf_counter() - began, self._step_s if emissions else IDLE_S)
        end = began + cost + self._engine.faults.extra_s(cost)
        if (rest := end - time.perf_counter()) > 0:
            time.sleep(rest)
