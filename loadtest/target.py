"""The server under test: found, or started and guarded; asked once whether it can do what the run needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from loadtest.errors import FeatureOff, TargetError, Unreachable
from loadtest.guardian import Guarded
from loadtest.probe import EMBEDDED_START_S as EMBEDDED_START_S
from loadtest.probe import MANAGED_START_S as MANAGED_START_S
from loadtest.probe import ONE_THREAD as ONE_THREAD
from loadtest.probe import Say as Say
from loadtest.probe import Target as Target
from loadtest.probe import cache_dir as cache_dir
from loadtest.probe import key_headers as key_headers
from loadtest.probe import request as request
from loadtest.probe import vocab_of as vocab_of
from loadtest.probe import wait_until as wait_until

if TYPE_CHECKING:
    from loadtest.scenario import Target as Spec


def open_target(spec: Spec, run_dir: Path, say: Say) -> Target:
    """Start or find the server that `spec` names. Raises TargetError when it cannot serve this run."""
    root = run_dir / "adapters"
    if spec.managed is not None:
        from loadtest.managed import open_managed

        target = open_managed(spec, run_dir, say)
    elif spec.replicas:
        target = _open_url(spec, spec.replicas[0], root)
        target.replicas = tuple(url.rstrip("/") for url in spec.replicas)
        target.about["replicas"] = target.replicas
    elif spec.url == "embedded":
        target = _open_embedded(spec, run_dir, say)
    else:
        target = _open_url(spec, spec.url, root)
    try:
        versions = [_check(target, url) for url in target.urls]
    except TargetError:
        target.stop()
        raise
    target.about["server_version"] = ", ".join(dict.fromkeys(versions))
    return target


def _open_embedded(spec: Spec, run_dir: Path, say: Say) -> Target:
    from loadtest.server.base import ensure_base

    base = Path(spec.base) if spec.base else ensure_base(cache_dir(), size=spec.size)
    port_file = run_dir / "server.port"
    # Nice: on a small machine the stand-in server must not make the client late; its slowness is its own affair.
    command = ["nice", "-n", "10", *embedded_command(base, 0, spec.swap, spec.model)]
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


def _open_url(spec: Spec, where: str, root: Path) -> Target:
    url, headers = public_url(where)
    headers |= key_headers(spec)
    request(url, "GET", "/health", headers)  # nobody there is said before anything else
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


def _check(target: Target, url: str) -> str:
    """Health, the base model's name and the load endpoint, before anything is measured; the server's version."""
    status, _ = request(url, "GET", "/health", target.headers)
    if status >= 500:
        raise Unreachable(f"GET {url}/health answered {status}", remedy="wait until the server is healthy")
    status, body = request(url, "GET", "/v1/models", target.headers)
    names = _model_names(status, body, url)
    if target.model not in names:
        raise TargetError(
            f"{url} serves {', '.join(names) or 'nothing'}, not {target.model!r}",
            remedy="set target.model to the served name of the base model",
        )
    status, body = request(url, "POST", "/v1/load_lora_adapter", target.headers, {})
    if status == 404 and b'"detail"' in body:
        raise FeatureOff(
            f"{url} has no /v1/load_lora_adapter: runtime LoRA is off",
            remedy="start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
        )
    if status in (401, 403):
        raise TargetError(f"{url} refuses our key ({status})", remedy="set target.api_key_env")
    return _version(url, target.headers)


def _model_names(status: int, body: bytes, url: str) -> list[str]:
    try:
        return [str(card["id"]) for card in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise TargetError(
            f"GET {url}/v1/models answered {status} and no list of models",
            remedy="is this an OpenAI-compatible server?",
        ) from e


def _version(url: str, headers: Mapping[str, str]) -> str:
    try:
        return str(json.loads(request(url, "GET", "/version", headers)[1])["version"])
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
        pass
    finally:
        os.close(write_end)  # a Ctrl-C reaches the server too, a SIGINT to us alone does not
    return process.wait()


def forge(
    out: Path, base: Path | None, adapter: str, count: int, rank: int, seed: int
) -> list[tuple[str, Path, tuple[int, ...]]]:
    """Forge `count` marker versions of `adapter` into `out`: (version, folder, marker tokens) of each."""
    from loadtest.adapters.marker import Recipe, forge_versions
    from loadtest.server.base import ensure_base

    model = base or ensure_base(cache_dir())
    versions = forge_versions(model, out, adapter, count, recipe=Recipe(rank, seed))
    return [(v.version, v.path, v.markers) for v in versions]
