"""The engine's own health: how late its loop runs, what it costs, and when garbage is collected.

A late loop stamps late: the verdict does not trust times of a window in which the client itself was slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable

from loadtest.records import Health

NS = 1_000_000_000
SAMPLE_NS = 10_000_000  # 10 ms: a hundred samples an interval, at about 0.1 % of a core
INTERVAL_S = 1.0
FEW_STREAMS = 64  # a collection over what these hold takes under a millisecond (guessed)
COLLECT_EVERY_S = 5.0  # with few streams open
COLLECT_AT_LEAST_S = 60.0  # with many: cycles of failed requests must not pile up for ever
ALL_EVERY = 10  # collections: what survived one of them is looked at again, which takes longer


class Pulse:
    """Samples the loop's lateness; once a second calls `on_second(health)`."""

    def __init__(
        self,
        on_second: Callable[[Health], None],
        open_streams: Callable[[], int],
        dropped: Callable[[], int],
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._on_second = on_second
        self._open_streams = open_streams
        self._dropped = dropped
        self._now_ns = now_ns
        self._lags: list[int] = []
        self._from_ns = now_ns()
        self._cpu = time.process_time()
        self._collected_ns = self._from_ns
        self._collections = 0
        self._busy = False  # streams ran since the last collection
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to sample; automatic garbage collection is off from here on."""
        gc.collect()
        gc.freeze()
        gc.disable()
        self._tasks = [asyncio.create_task(self._sample()), asyncio.create_task(self._tick())]

    async def stop(self) -> None:
        """Report the last, incomplete interval and sample no more."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks = []
        gc.enable()
        self._on_second(self.take())

    def take(self) -> Health:
        """The interval since the last call, ns and ms as in records.Health."""
        now, cpu = self._now_ns(), time.process_time()
        lags = sorted(self._lags) or [0]
        health = Health(
            from_ns=self._from_ns,
            at_ns=now,
            lag_p99_ms=round(lags[min(len(lags) - 1, int(0.99 * len(lags)))] / 1e6, 3),
            lag_max_ms=round(lags[-1] / 1e6, 3),
            cpu_s=round(cpu - self._cpu, 6),
            open_streams=self._open_streams(),
            dropped=self._dropped(),
            lags_us=tuple(lag // 1000 for lag in self._lags),
        )
        self._lags = []
        self._from_ns, self._cpu = now, cpu
        return health

    async def _sample(self) -> None:
        while True:
            due = self._now_ns() + SAMPLE_NS
            await asyncio.sleep(SAMPLE_NS / NS)
            self._lags.append(max(0, self._now_ns() - due))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            self._on_second(self.take())
            self._collect()

    def _collect(self) -> None:
        """Collect when it delays nobody, or little, or when it cannot wait any longer."""
        open_streams = self._open_streams()
        age_s = (self._now_ns() - self._collected_ns) / NS
        wait_s = COLLECT_EVERY_S if open_streams <= FEW_STREAMS else COLLECT_AT_LEAST_S
        if (open_streams == 0 and self._busy) or (open_streams and age_s > wait_s):
            self._collections += 1
            gc.collect(2 if open_streams == 0 or self._collections % ALL_EVERY == 0 else 1)
            self._collected_ns = self._now_ns()
        self._busy = open_streams > 0
