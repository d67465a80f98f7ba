"""Between the engine's messages and the chaos conductor: starts it, and tells the host what its records say."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from loadtest.errors import EXIT_INTERNAL, LoadtestError
from loadtest.records import Ack, Invoke, Phase, Record

Message = dict[str, Any]
if TYPE_CHECKING:
    from loadtest.chaos.conductor import Conductor

TOLD = ("scenario", "operator")  # setup and rollback are no swaps of the run


class Emit(Protocol):
    """Journal.emit."""

    def __call__(self, record: Record, flush: bool = False) -> bool: ...


class Director:
    """The chaos side of one engine; without `setup` it has nothing to stop or roll back."""

    def __init__(
        self, conductor: Callable[[Message, Emit], Conductor], emit: Emit, send: Callable[[Message], None]
    ) -> None:
        """`conductor(script, emit)` makes one; `emit` is the journal's; `send` takes messages to the host."""
        self._make = conductor
        self._emit_record = emit
        self._send = send
        self._conductor: Conductor | None = None
        self._invoked: dict[int, Invoke] = {}
        self._swaps = 0
        self._answers: dict[str, Message] = {}  # of operators' swaps, by adapter, until their requests are answered

    async def setup(self, script: Message) -> None:
        """Load the first versions; says `setup_done`."""
        error, exit_code = "", 0
        try:
            if self._conductor is not None:
                raise LoadtestError("'setup' came twice")
            self._conductor = self._make(script, self.emit)
            await self._conductor.setup()
        except LoadtestError as e:
            error, exit_code = str(e), e.exit_code
        except Exception as e:
            error, exit_code = f"{type(e).__name__}: {e}", EXIT_INTERNAL
            raise
        finally:
            self._send({"op": "setup_done", "ok": not error, "error": error, "exit_code": exit_code})

    async def play(self) -> None:
        """Play the phases; says `play_done`."""
        reason = "error"
        try:
            if self._conductor is None:
                raise LoadtestError("'play' came before 'setup'")
            await self._conductor.play()
            reason = "complete"
        finally:
            self._send({"op": "play_done", "reason": reason})

    async def hotfix(self, request: int, adapter: str, version: str | None) -> None:
        """One swap on the operator's behalf; says `hotfix_done` with the operation's outcome."""
        failure = ""
        try:
            if self._conductor is None:
                raise LoadtestError("'hotfix' came before 'setup'")
            await self._conductor.hotfix(adapter, version)
        except LoadtestError as e:
            failure = str(e)
        finally:
            answer = None if failure else self._answers.pop(adapter, None)  # a request that failed sent nothing
            said = answer or {"adapter": adapter, "outcome": "fail", "reason": "not_sent", "message": failure}
            self._send({**said, "op": "hotfix_done", "id": request, "ok": said["outcome"] == "ok"})

    def emit(self, record: Record, flush: bool = False) -> bool:
        """Journal.emit, and `swap` or `phase` to the host."""
        written = self._emit_record(record, flush)
        match record:
            case Invoke():
                self._invoked[record.op] = record
            case Ack():
                self._acked(record)
            case Phase():
                edge = {"index": record.index, "arm": record.arm, "edge": record.edge, "adapter": record.adapter}
                self._send({"op": "phase", **edge})
        return written

    def _acked(self, ack: Ack) -> None:
        invoke = self._invoked.pop(ack.op, None)
        if invoke is None or invoke.by not in TOLD:
            return
        self._swaps += 1
        message: Message = {
            "op": "swap",
            "adapter": invoke.adapter,
            "version": invoke.version,
            "arm": invoke.arm,
            "outcome": ack.outcome,
            "reason": ack.reason,
            "message": ack.message,
            "ack_ms": (ack.acked_ns - invoke.invoked_ns) / 1e6 if ack.acked_ns else None,
            "swap": invoke.op,
            "by": invoke.by,
            "mode": invoke.mode,
            "invoked_ns": invoke.invoked_ns,
            "acked_ns": ack.acked_ns,
            "n": self._swaps,
        }
        if invoke.by == "operator":
            self._answers[invoke.adapter] = message
        self._send(message)

    def stop(self) -> None:
        """No more swaps; `play` ends by itself."""
        if self._conductor is not None:
            self._conductor.stop()

    async def rollback(self) -> None:
        """Back to the first versions."""
        if self._conductor is not None:
            await self._conductor.rollback()
            self._conductor = None
