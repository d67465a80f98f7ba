"""The target's /metrics: text of vLLM and of the embedded server in, records out."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from loadtest import history
from loadtest.errors import Unreachable
from loadtest.journal import Journal
from loadtest.records import Run, Scrape
from loadtest.traffic import scrape

VLLM = r"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="base"} 8.0
vllm:num_requests_waiting{engine="0",model_name="base"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="base"} 0.25
vllm:prefix_cache_queries_total{engine="0",model_name="base"} 1.2e+03
vllm:prefix_cache_hits_total{engine="0",model_name="base"} 400.0
vllm:generation_tokens_total{engine="0",model_name="base"} 12345.0
vllm:generation_tokens_created{engine="0",model_name="base"} 1.7e+09
vllm:e2e_request_latency_seconds_bucket{engine="0",le="0.3",model_name="base"} 0.0
vllm:lora_requests_info{max_lora="4",running_lora_adapters="tenant-a",waiting_lora_adapters=""} 100.0
vllm:lora_requests_info{max_lora="4",running_lora_adapters="tenant-a,tenant-b",waiting_lora_adapters="x\"y"} 101.0
vllm:lora_requests_info{max_lora="4",running_lora_adapters="",waiting_lora_adapters=""} 99.0
"""


def test_vllms_text() -> None:
    assert scrape.parse(VLLM, 5, 1.5) == Scrape(
        5, 1.5, running=8, waiting=2, kv_usage=0.25, generation_tokens=12345, cache_queries=1200, cache_hits=400,
        lora_slots=4, lora_running="tenant-a,tenant-b", lora_waiting='x"y',
    )  # fmt: skip


def test_engines_of_one_server_add_up_and_shares_are_averaged() -> None:
    text = VLLM + VLLM.replace('engine="0"', 'engine="1"').replace(" 0.25", " 0.75")
    found = scrape.parse(text, 5, 1.5)
    assert found is not None
    assert (found.running, found.kv_usage) == (16, 0.5)


@pytest.mark.parametrize(
    "text",
    [
        "", "<html>", "go_gc_duration_seconds 1", "vllm:num_requests_running", "vllm:num_requests_running{ 8",
        "vllm:num_requests_running NaN", "vllm:num_requests_running 1e400", "vllm:\x1b[31m 5",
    ],
)  # fmt: skip
def test_a_text_without_the_names_is_nothing(text: str) -> None:
    assert scrape.parse(text, 5, 1.5) is None


def test_a_server_without_metrics_is_asked_less_often_and_one_with_them_every_second() -> None:
    answers = iter(["", Unreachable("down"), "", VLLM, VLLM])
    pauses: list[float] = []
    kept: list[Scrape] = []
    done = asyncio.Event()

    async def ask() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 5:
            done.set()
            await asyncio.Event().wait()

    async def play() -> None:
        scraper = scrape.Scraper(ask, kept.append, sleep=sleep)
        scraper.start()
        await done.wait()
        await scraper.stop()

    asyncio.run(play())
    assert pauses == [1.0, 1.0, scrape.PATIENT_S, 1.0, 1.0]
    assert len(kept) == 2


def test_the_history_reads_back_what_was_written(tmp_path: Path) -> None:
    found = scrape.parse(VLLM, 5, 1.5)
    assert found is not None
    journal = Journal(tmp_path, Run(1, "r", "e0", "local", "b", 1, 7, 1, 0, "0"))
    journal.emit(found)
    journal.close("complete", 9)
    assert history.load(tmp_path).scrapes == (found,)
    assert np.isclose(history.load(tmp_path).scrapes[0].cache_hits, 400)
