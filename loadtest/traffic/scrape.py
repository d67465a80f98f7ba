"""The target's own /metrics, once a second into the history: what the server says of itself, beside what we saw.

Rules
1. One request at a time, never more than one a second; a server that has none, or stops answering, is asked less often
   after `TRIES` times in a row: the run does not depend on it.
2. The names are vLLM's, which the embedded server shares. What is not there is -1, never 0.
3. `lora_requests_info` keeps a series for every set of adapters there ever was; its value is the time it was last
   true, so the newest series is the present.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable

from loadtest.errors import TargetError
from loadtest.records import Scrape

INTERVAL_S = 1.0
TRIES = 3
PATIENT_S = 10.0

_PLAIN = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_usage",
    "vllm:gpu_cache_usage_perc": "kv_usage",  # its name up to vLLM 0.9
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:generation_tokens_total": "generation_tokens",
    "vllm:prefix_cache_queries_total": "cache_queries",
    "vllm:prefix_cache_hits_total": "cache_hits",
    "vllm:num_preemptions_total": "preemptions",
}
_LORA = "vllm:lora_requests_info"
_SERIES = re.compile(r"(?P<name>vllm:[a-z_]+)(?:\{(?P<labels>.*)\})?\s+(?P<value>[^\s]+)")
_LABEL = re.compile(r'([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
_SHARES = frozenset({"kv_usage"})  # the mean over engines; everything else adds up


def parse(text: str, at_ns: int, took_ms: float) -> Scrape | None:
    """A record of what the text says; None when it holds none of the names."""
    found: dict[str, list[float]] = {}
    newest, lora = float("-inf"), dict[str, str]()
    for line in text.split("\n"):
        match = _SERIES.match(line) if line.startswith("vllm:") else None
        value = _number(match["value"]) if match else None
        if match is None or value is None:
            continue
        if match["name"] in _PLAIN:
            found.setdefault(_PLAIN[match["name"]], []).append(value)
        elif match["name"] == _LORA and value >= newest:
            newest, lora = value, _labels(match["labels"] or "")
    if not found and not lora:
        return None
    figures = {k: sum(v) / (len(v) if k in _SHARES else 1) for k, v in found.items()}
    slots = _number(lora.get("max_lora", ""))
    return Scrape(
        at_ns,
        took_ms,
        **figures,
        lora_slots=-1 if slots is None else int(slots),
        lora_running=lora.get("running_lora_adapters", ""),
        lora_waiting=lora.get("waiting_lora_adapters", ""),
    )


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if abs(value) < 1e18 else None  # neither inf nor nan: such figures say nothing


def _labels(text: str) -> dict[str, str]:
    return {name: _ESCAPED.sub(_unescaped, value)[:500] for name, value in _LABEL.findall(text)}


def _unescaped(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]


class Scraper:
    """Asks until it is stopped."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[str]],
        keep: Callable[[Scrape], object],
        now_ns: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`ask` answers with the text and raises TargetError; `keep` takes the records."""
        self._ask, self._keep, self._now_ns, self._sleep = ask, keep, now_ns, sleep
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, at once."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        """Rule 1."""
        failed = 0
        while True:
            record = await self.once()
            failed = 0 if record is not None else failed + 1
            await self._sleep(INTERVAL_S if failed < TRIES else PATIENT_S)

    async def once(self) -> Scrape | None:
        """One request; None when nothing was learned."""
        began = self._now_ns()
        try:
            text = await self._ask()
        except TargetError:
            return None
        now = self._now_ns()
        record = parse(text, now, round((now - began) / 1e6, 3))
        if record is not None:
            self._keep(record)
        return record
