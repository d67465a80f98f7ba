"""/metrics in Prometheus text: the few of vLLM's series that a tester reads as an out-of-band ledger."""

from __future__ import annotations

import time

from loadtest.server.batch import Engine

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"


def render(engine: Engine, base: str) -> bytes:
    """All series; read from the engine's thread's state without a lock, so counts may differ by one step."""
    label = f'engine="0",model_name="{base}"'
    running, waiting = list(engine.running), list(engine.waiting)
    counts = engine.counts
    out: list[str] = []

    def series(name: str, kind: str, rows: list[tuple[str, float]]) -> None:
        out.append(f"# TYPE {name} {kind}")
        out.extend(f"{name}{{{labels}}} {float(value)}" for labels, value in rows)

    series("vllm:num_requests_running", "gauge", [(label, len(running))])
    series("vllm:num_requests_waiting", "gauge", [(label, len(waiting))])
    series("vllm:prompt_tokens_total", "counter", [(label, counts["prompt_tokens"])])
    series("vllm:generation_tokens_total", "counter", [(label, counts["generation_tokens"])])
    series("vllm:prefix_cache_queries_total", "counter", [(label, engine.prefix.queries)])
    series("vllm:prefix_cache_hits_total", "counter", [(label, engine.prefix.hits)])
    reasons = [
        (f'engine="0",finished_reason="{r}",model_name="{base}"', counts[r]) for r in ("stop", "length", "abort")
    ]
    series("vllm:request_success_total", "counter", [(labels, float(n)) for labels, n in reasons])
    names = {
        state: ",".join(sorted({s.adapter for s in streams if s.adapter}))
        for state, streams in (("running", running), ("waiting", waiting))
    }
    loras = (
        f'max_lora="{engine.limits.max_loras}",running_lora_adapters="{names["running"]}",'
        f'waiting_lora_adapters="{names["waiting"]}"'
    )
    series("vllm:lora_requests_info", "gauge", [(loras, time.time())])
    return ("\n".join(out) + "\n").encode()
