"""The wire between a host process (Locust, `loadtest hotfix`) and its traffic engine, and the host's end of it.

Rules
1. A frame is a 4-byte big-endian length and that many bytes of JSON: one object with an `op`. One message per stream
   each way, none per token.
2. The engine is a child process on a Unix socket pair. It ends when the pair reads EOF, in whatever way we ended.
3. The host's end works in plain Python and in a process patched by gevent: it uses sockets, threads, events and queues
   only through their modules, all of which gevent patches, and no asyncio.
4. Only the writer thread writes, so that a greenlet killed in the middle of a call never leaves half a frame.
5. Callbacks run in the reader thread and must not block. One that raises is logged, and the reader goes on.
6. When the engine ends by itself every waiter gets an answer at once, and `on_death` is called once.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from loadtest.errors import EXIT_INTERNAL, LoadtestError, TargetError, UsageError

Message = dict[str, Any]

MAX_FRAME = 256 * 1024 * 1024  # a prompt of a million ids takes 8 MB; more than this is a broken peer
READY_S = 30.0  # guessed: an engine is ready within 1 s, 5 s on a busy machine
ROLLBACK_S = 90.0  # what a stop may take beyond its drain: one load per adapter
CLOSE_S = 8.0  # at EOF the engine allows itself 2 s for a rollback

logger = logging.getLogger(__name__)
_LENGTH = struct.Struct(">I")


class FrameError(LoadtestError):
    """The peer sent what is no frame."""


def frame(message: Mapping[str, Any]) -> bytes:
    """The bytes of one message."""
    data = orjson.dumps(message)
    return _LENGTH.pack(len(data)) + data


class Unframer:
    """Bytes in, messages out."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Messages completed by `data`. Raises FrameError."""
        self._pending += data
        out: list[Message] = []
        start = 0
        while len(self._pending) - start >= 4:
            (size,) = _LENGTH.unpack_from(self._pending, start)
            if size > MAX_FRAME:
                raise FrameError(f"a frame of {size} bytes, at most {MAX_FRAME} are allowed")
            end = start + 4 + size
            if len(self._pending) < end:
                break
            out.append(_message(bytes(self._pending[start + 4 : end])))
            start = end
        del self._pending[:start]
        return out


def _message(data: bytes) -> Message:
    try:
        parsed = orjson.loads(data)
    except orjson.JSONDecodeError as e:
        raise FrameError(f"a frame that is not JSON ({e})") from None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("op"), str):
        raise FrameError("a frame that is not an object with an op")
    return parsed


class _Waiter:
    """One awaited answer; None when the engine ended first."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.answer: Message | None = None

    def wake(self, answer: Message | None) -> None:
        self.answer = answer
        self.event.set()


class EngineHandle:
    """An engine process of our own. `on_message` gets news that nobody waits for; `on_death` a death not asked for."""

    def __init__(
        self,
        on_message: Callable[[Message], object] | None = None,
        on_death: Callable[[], object] | None = None,
    ) -> None:
        self._on_message = on_message
        self._on_death = on_death
        self._ids = itertools.count(1)
        self._streams: dict[int, _Waiter] = {}
        self._replies: dict[str, _Waiter] = {}
        self._out: Any = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = False  # its end is asked for, so it is no death
        self._ended = False
        self._last_error = ""

    # -- life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process and the two threads."""
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "loadtest.traffic.engine", str(theirs.fileno()), str(os.getpid())]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), env=_environment()
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._socket = ours
        for work in (self._read, self._write):
            threading.Thread(target=work, args=(ours,), daemon=True, name=f"engine-{work.__name__}").start()

    @property
    def pid(self) -> int:
        """Process id of the engine; 0 before `start`."""
        return self._process.pid if self._process else 0

    @property
    def alive(self) -> bool:
        """Whether the engine can still be talked to."""
        return self._socket is not None and not self._ended

    def close(self) -> None:
        """End the engine: EOF, then SIGTERM, then SIGKILL. Whoever still waits gets an answer. Idempotent."""
        self._closing = True
        if self._socket is not None:
            self._out.put(None)
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        process, self._process = self._process, None
        if process is not None:
            _reap(process)
        self._release()
        if self._socket is not None:
            self._socket.close()

    # -- what a host says -------------------------------------------------------------------------------------------

    def send(self, message: Mapping[str, Any]) -> None:
        """Send without waiting. Raises BrokenPipeError when the engine has ended."""
        if not self.alive:
            raise BrokenPipeError("the traffic engine has ended")
        self._out.put(frame(message))

    def configure(self, config: Mapping[str, Any], timeout_s: float = READY_S) -> None:
        """Open the journal and the client. Raises LoadtestError when the engine cannot."""
        self._ask({**config, "op": "configure"}, "ready", timeout_s)

    def setup(self, script: Mapping[str, Any], timeout_s: float) -> None:
        """Load the first version of every adapter. Raises TargetError, UsageError or LoadtestError, by exit code."""
        answer = self._ask({"op": "setup", "script": script}, "setup_done", timeout_s)
        if not answer.get("ok"):
            raise _error(str(answer.get("error")), int(answer.get("exit_code", EXIT_INTERNAL)))

    def play(self) -> None:
        """Start the phases; `play_done` follows."""
        self._replies["play_done"] = _Waiter()
        self.send({"op": "play"})

    def wait_play(self, timeout_s: float | None = None) -> str | None:
        """Wait for the end of the phases: its reason, None on time-out. Raises LoadtestError when the engine ended."""
        waiter = self._replies["play_done"]
        if not waiter.event.wait(timeout_s):
            return None
        if waiter.answer is None:
            raise self._gone()
        return str(waiter.answer.get("reason", ""))

    def hotfix(self, adapter: str, version: str | None, timeout_s: float) -> Message:
        """One swap on the operator's behalf; its `hotfix_done`."""
        request = next(self._ids)
        message = {"op": "hotfix", "id": request, "adapter": adapter, "version": version}
        return self._ask(message, f"hotfix_done {request}", timeout_s)

    def event(self, what: str, detail: str = "") -> None:
        """One line for the history."""
        self.send({"op": "event", "what": what, "detail": detail})

    def stream(self, ask: Mapping[str, Any]) -> Message:
        """Send one stream (adapter, prompt, max_tokens, user, intended_ns?, extra?) and wait for its `result`.

        Whatever ends the wait (GreenletExit, KeyboardInterrupt) cancels the stream, then passes on.
        """
        stream, waiter = next(self._ids), _Waiter()
        self._streams[stream] = waiter
        try:
            self.send({**ask, "op": "stream", "id": stream})
            waiter.event.wait()
        except BrokenPipeError:
            self._streams.pop(stream, None)
        except BaseException:
            self._streams.pop(stream, None)
            with contextlib.suppress(BrokenPipeError):
                self.send({"op": "cancel", "id": stream})
            raise
        return waiter.answer or {
            "op": "result",
            "id": stream,
            "adapter": ask["adapter"],
            "user": ask.get("user", ""),
            "outcome": "info",
            "reason": "cancelled" if self._closing else "unfinished",
            "detail": "the traffic engine has ended",
            "tokens": 0,
            "ttft_ms": None,
            "e2el_ms": None,
        }

    def stop(self, reason: str, drain_s: float) -> bool:
        """End the run in order, see the engine's `stop`; False when it did not manage within its time."""
        try:
            self._ask({"op": "stop", "reason": reason, "drain_s": drain_s}, "stopped", drain_s + ROLLBACK_S)
        except LoadtestError:
            return False
        self._closing = True
        return True

    # -- the threads ------------------------------------------------------------------------------------------------

    def _ask(self, message: Message, reply: str, timeout_s: float) -> Message:
        waiter = self._replies[reply] = _Waiter()
        try:
            self.send(message)
            if not waiter.event.wait(timeout_s):
                raise LoadtestError(f"the traffic engine did not answer {message['op']!r} within {timeout_s:g} s")
        except BrokenPipeError:
            raise self._gone() from None
        finally:
            self._replies.pop(reply, None)
        if waiter.answer is None:
            raise self._gone()
        return waiter.answer

    def _gone(self) -> LoadtestError:
        words = self._last_error or "the traffic engine has ended"
        return LoadtestError(words, remedy="see engine.log in the results folder")

    def _write(self, ours: socket.socket) -> None:
        try:
            while (data := self._out.get()) is not None:
                ours.sendall(data)
        except OSError:
            return  # the reader sees the end too, and deals with it

    def _read(self, ours: socket.socket) -> None:
        unframer = Unframer()
        try:
            while data := ours.recv(262_144):
                for message in unframer.feed(data):
                    self._receive(message)
        except (OSError, FrameError) as e:
            if not self._closing:
                logger.error("the traffic engine's messages ended: %s", e)
        self._finished()

    def _receive(self, message: Message) -> None:
        op = message["op"]
        if op == "error":
            self._last_error = str(message.get("message", ""))
        if op == "result" and message["id"]:
            waiter = self._streams.pop(message["id"], None)
            if waiter is not None:  # None: nobody waits for a cancelled stream any more
                waiter.wake(message)
            return
        waiter = self._replies.get(f"{op} {message['id']}" if op == "hotfix_done" else op)
        if waiter is not None:
            waiter.wake(message)
        if waiter is None or op == "play_done":
            self._call(self._on_message, message)

    def _call(self, callback: Callable[..., object] | None, *args: Message) -> None:
        if callback is None:
            return
        try:
            callback(*args)
        except Exception:
            logger.exception("a listener of the traffic engine failed")

    def _finished(self) -> None:
        self._release()
        self._out.put(None)
        if not self._closing:
            self._call(self._on_death)

    def _release(self) -> None:
        """Wake everybody: there will be no more answers."""
        with self._lock:
            self._ended = True
            streams, self._streams = self._streams, {}
        for waiter in (*streams.values(), *list(self._replies.values())):
            if not waiter.event.is_set():
                waiter.wake(None)


def _error(words: str, exit_code: int) -> LoadtestError:
    by_code = {TargetError.exit_code: TargetError, UsageError.exit_code: UsageError}
    return by_code.get(exit_code, LoadtestError)(words)


def _environment() -> dict[str, str]:
    """Ours, and a source tree that is not installed stays importable in the child."""
    root = str(Path(__file__).parents[2])
    environment = dict(os.environ)
    if "site-packages" not in root:
        environment["PYTHONPATH"] = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    return environment


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a process that was asked to end, and insist."""
    for insist in (process.terminate, process.kill):
        try:
            process.wait(timeout=CLOSE_S)
            return
        except subprocess.TimeoutExpired:
            insist()
    process.wait()
