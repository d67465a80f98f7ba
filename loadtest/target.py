"""The server under test: found, or started and guarded; asked once whether it can do what the run needs."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from loadtest.errors import FeatureOff, TargetDied, TargetError, Unreachable, UsageError
from loadtest.guardian import Guarded

if TYPE_CHECKING:
    from loadtest.scenario import Target as Spec

Say = Callable[[str], None]

EMBEDDED_START_S = 60.0
MANAGED_START_S = 600.0
# One BLAS thread: more only fight with the client for the machine's cores, and sums would depend on their number.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass
class Target:
    """A server that answered, and what a run has to know of it."""

    url: str  # without user and password
    model: str  # the name by which it serves the base model
    base: Path | None  # the base model's folder, needed to forge markers
    vocab: int  # size of its vocabulary, 0 when unknown: prompts are then text
    root_local: Path  # where swap folders are written
    root_server: str  # the same folder as the server sees it
    headers: dict[str, str] = field(default_factory=dict)
    guarded: Guarded | None = None
    about: dict[str, Any] = field(default_factory=dict)  # for meta.json

    def check_alive(self) -> None:
        """Raise TargetDied when a server that we started has ended."""
        if self.guarded is not None and not self.guarded.alive():
            code = self.guarded.process.returncode
            raise TargetDied(f"the server ended by itself with status {code}", log_tail=self.guarded.tail())

    def stop(self) -> None:
        """End the server if it is ours; idempotent."""
        if self.guarded is not None:
            self.guarded.stop()


def cache_dir() -> Path:
    """Where generated base models are kept between runs."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LOADTEST_CACHE") or Path(home) / "loadtest")


def open_target(spec: Spec, run_dir: Path, say: Say) -> Target:
    """Start or find the server that `spec` names. Raises TargetError when it cannot serve this run."""
    root = run_dir / "adapters"
    if spec.managed is not None:
        from loadtest.managed import open_managed

        target = open_managed(spec, run_dir, say)
    elif spec.url == "embedded":
        target = _open_embedded(spec, run_dir, say)
    else:
        target = _open_url(spec, root)
    try:
        _check(target)
    except TargetError:
        target.stop()
        raise
    return target


def _open_embedded(spec: Spec, run_dir: Path, say: Say) -> Target:
    from loadtest.server.base import ensure_base

    base = Path(spec.base) if spec.base else ensure_base(cache_dir(), size=spec.size)
    port_file = run_dir / "server.port"
    command = embedded_command(base, 0, spec.swap, spec.model)
    command += ["--port-file", str(port_file), "--step-ms", str(spec.step_ms)]
    command += ["--max-loras", str(spec.max_loras), "--max-lora-rank", str(spec.max_lora_rank)]
    if spec.plant:
        command += ["--plant", json.dumps([dict(p) for p in spec.plant])]
    guarded = Guarded.start(command, run_dir / "server.log", ONE_THREAD)
    wait_until(lambda: port_file.exists(), guarded, EMBEDDED_START_S, "the embedded server")
    url = f"http://127.0.0.1:{port_file.read_text().strip()}"
    say(f"embedded server on {url}, swap policy {spec.swap}")
    root = run_dir / "adapters"
    return Target(url, spec.model, base, vocab_of(base), root, str(root.resolve()), guarded=guarded)


def embedded_command(base: Path, port: int, swap: str, model: str = "base") -> list[str]:
    """The command line of the embedded server."""
    command = [sys.executable, "-m", "loadtest.server.app", "--model", str(base), "--port", str(port)]
    return [*command, "--swap", swap, "--served-model-name", model]


def wait_until(ready: Callable[[], bool], guarded: Guarded, patience_s: float, what: str) -> None:
    """Poll until `ready`; TargetDied when the server ends first, Unreachable when it takes too long."""
    deadline = time.monotonic() + patience_s
    while not ready():
        if not guarded.alive():
            tail = guarded.tail()
            raise TargetDied(f"{what} did not start; its log ends with:\n{tail}", log_tail=tail)
        if time.monotonic() > deadline:
            guarded.stop()
            raise Unreachable(f"{what} was not ready after {patience_s:.0f} s", remedy=f"see {guarded.log}")
        time.sleep(0.05)


def _open_url(spec: Spec, root: Path) -> Target:
    url, headers = public_url(spec.url)
    if spec.api_key_env:
        key = os.environ.get(spec.api_key_env)
        if not key:
            raise UsageError(f"target.api_key_env names {spec.api_key_env}, which is not set", remedy="export it")
        headers["Authorization"] = f"Bearer {key}"
    base = Path(spec.base) if spec.base else None
    local, server = root, str(root.resolve())
    if spec.adapters_dir is not None:
        # A folder of this run's own, so that two runs against one volume never share a path.
        local = Path(spec.adapters_dir.local) / root.parent.name
        server = f"{spec.adapters_dir.server.rstrip('/')}/{root.parent.name}"
    return Target(url, spec.model, base, vocab_of(base) if base else 0, local, server, headers)


def public_url(url: str) -> tuple[str, dict[str, str]]:
    """The URL without user and password, and the header that carries them instead."""
    import base64

    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url.rstrip("/"), {}
    secret, _, host = parts.netloc.rpartition("@")
    token = base64.b64encode(secret.encode()).decode()
    return parts._replace(netloc=host).geturl().rstrip("/"), {"Authorization": f"Basic {token}"}


def vocab_of(base: Path) -> int:
    """`vocab_size` of a Hugging Face folder. Raises UsageError when it cannot be read."""
    try:
        return int(json.loads((base / "config.json").read_text())["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UsageError(f"{base} is not a model folder ({type(e).__name__})", remedy="set target.base to one") from e


def request(
    url: str, method: str, path: str, headers: Mapping[str, str], body: object = None, timeout_s: float = 5.0
) -> tuple[int, bytes]:
    """One small HTTP request. Raises Unreachable with what was tried."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
        try:
            data = None if body is None else json.dumps(body).encode()
            sent = {**headers, **({"Content-Type": "application/json"} if data is not None else {})}
            connection.request(method, parts.path.rstrip("/") + path, data, sent)
            answer = connection.getresponse()
            return answer.status, answer.read(1 << 20)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as e:
        raise Unreachable(
            f"{method} {url}{path} got no answer ({e or type(e).__name__})",
            remedy="is the server up, and the URL right?",
        ) from e


def _check(target: Target) -> None:
    """Health, the base model's name and the load endpoint, before anything is measured."""
    status, _ = request(target.url, "GET", "/health", target.headers)
    if status >= 500:
        raise Unreachable(f"GET {target.url}/health answered {status}", remedy="wait until the server is healthy")
    status, body = request(target.url, "GET", "/v1/models", target.headers)
    names = _model_names(status, body, target.url)
    if target.model not in names:
        raise TargetError(
            f"{target.url} serves {', '.join(names) or 'nothing'}, not {target.model!r}",
            remedy="set target.model to the served name of the base model",
        )
    status, body = request(target.url, "POST", "/v1/load_lora_adapter", target.headers, {})
    if status == 404 and b'"detail"' in body:
        raise FeatureOff(
            f"{target.url} has no /v1/load_lora_adapter: runtime LoRA is off",
            remedy="start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
        )
    if status in (401, 403):
        raise TargetError(f"{target.url} refuses our key ({status})", remedy="set target.api_key_env")
    target.about["server_version"] = _version(target)


def _model_names(status: int, body: bytes, url: str) -> list[str]:
    try:
        return [str(card["id"]) for card in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError) as e:
        raise TargetError(
            f"GET {url}/v1/models answered {status} and no list of models",
            remedy="is this an OpenAI-compatible server?",
        ) from e


def _version(target: Target) -> str:
    try:
        return str(json.loads(request(target.url, "GET", "/version", target.headers)[1])["version"])
    except (Unreachable, ValueError, KeyError, TypeError):
        return "unknown"


def serve_forever(
    host: str, port: int, model: Path | None, swap: str, size: str, server_options: tuple[str, ...]
) -> int:
    """Run the embedded server in the foreground until Ctrl-C; its exit status."""
    from loadtest.server.base import ensure_base

    base = model or ensure_base(cache_dir(), size=size)
    command = [*embedded_command(base, port, swap), "--host", host, *server_options]
    read_end, write_end = os.pipe()  # ours alone: the server ends when we do
    process = subprocess.Popen(
        [*command, "--parent-fd", str(read_end)], pass_fds=(read_end,), env=os.environ | ONE_THREAD
    )
    os.close(read_end)
    try:
        return process.wait()
    except KeyboardInterrupt:
        return process.wait()
    finally:
        os.close(write_end)


def forge(
    out: Path, base: Path | None, adapter: str, count: int, rank: int, seed: int
) -> list[tuple[str, Path, tuple[int, ...]]]:
    """Forge `count` marker versions of `adapter` into `out`: (version, folder, marker tokens) of each."""
    from loadtest.adapters.marker import Recipe, forge_versions
    from loadtest.server.base import ensure_base

    model = base or ensure_base(cache_dir())
    versions = forge_versions(model, out, adapter, count, recipe=Recipe(rank, seed))
    return [(v.version, v.path, v.markers) for v in versions]
