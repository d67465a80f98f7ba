"""What Locust's tables and listeners see of streams and swaps.

Rows
1. STREAM, one per stream: fires `events.request`; counts in "Aggregated".
2. TTFT, one per stream that got a token: a row of its own, outside "Aggregated" (it is a part of the same request).
3. SWAP, one per admin operation: fires `events.request`. In the arm `bad` a refusal is asked for, and no failure.
4. CANCELLED, one per stream that a stopping user cut: a row outside "Aggregated"; it is no failure of the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class StreamFailed(Exception):
    """Why a stream is not ok: a reason code of records.REASONS_*. Codes only, so that Locust can group them."""


class SwapFailed(Exception):
    """Why a swap is not ok: outcome and reason code."""


@dataclass(frozen=True, slots=True)
class Result:
    """One ended stream, as a user's task sees it. Times in milliseconds; None: it never happened."""

    adapter: str
    outcome: str  # "ok" | "fail" | "info"
    reason: str  # "" when ok, else a code of records.REASONS_*
    detail: str
    tokens: int
    ttft_ms: float | None
    e2el_ms: float | None

    @property
    def ok(self) -> bool:
        """Whether the stream completed."""
        return self.outcome == "ok"

    @classmethod
    def read(cls, message: dict[str, Any]) -> Result:
        """Out of the engine's `result` message."""
        return cls(
            adapter=message["adapter"],
            outcome=message["outcome"],
            reason=message.get("reason", ""),
            detail=message.get("detail", ""),
            tokens=message.get("tokens", 0),
            ttft_ms=message.get("ttft_ms"),
            e2el_ms=message.get("e2el_ms"),
        )


def stream(environment: Any, result: Result, context: dict[str, Any]) -> None:
    """Rules 1, 2 and 4."""
    if result.reason == "cancelled":
        cancelled(environment, result.adapter, result.e2el_ms or 0.0)
        return
    environment.events.request.fire(
        request_type="STREAM",
        name=result.adapter,
        response_time=result.e2el_ms,
        response_length=result.tokens,
        exception=None if result.ok else StreamFailed(result.reason),
        context=context,
    )
    if result.ttft_ms is not None:
        environment.stats.get(result.adapter, "TTFT").log(result.ttft_ms, 0)


def cancelled(environment: Any, adapter: str, elapsed_ms: float) -> None:
    """Rule 4."""
    environment.stats.get(adapter, "CANCELLED").log(elapsed_ms, 0)


def swap(environment: Any, message: dict[str, Any]) -> None:
    """Rule 3."""
    outcome, wanted = message["outcome"], "fail" if message["arm"] == "bad" else "ok"
    failure = None if outcome == wanted else SwapFailed(f"{outcome}: {message.get('reason') or 'accepted'}")
    environment.events.request.fire(
        request_type="SWAP",
        name=message["adapter"],
        response_time=message.get("ack_ms"),
        response_length=0,
        exception=failure,
        context={"arm": message["arm"], "version": message["version"]},
    )
