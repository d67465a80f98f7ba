"""The write side of a run's history: append-only, crash-safe, never raising into the hot path.

Rules
1. Columns reach the file before the line that names them. A reader trusts only what a line names.
2. A record is accepted or refused whole. Accepted records are kept in memory until the disk takes them; when more
   than `MAX_PENDING` bytes wait (a full disk), new ones are refused and counted in `dropped`, never half-written.
3. `flush=True` returns only after the operating system has the bytes: an admin operation is on record before it
   leaves. That survives a kill of the process; a power cut is not what this guards against.
4. A history has one writer: its file is new, and locked until the writer ends, in whatever way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
from array import array
from collections.abc import Sequence
from pathlib import Path

import orjson

from loadtest import records
from loadtest.errors import HistoryError

FLUSH_BYTES = 256 * 1024  # guessed: large enough that a write is rare, small enough that a crash loses little
MAX_PENDING = 64 * 1024 * 1024


class _Appender:
    """One append-only file with its own pending bytes."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.pending = bytearray()
        self.error = ""  # why the last write failed

    def drain(self) -> bool:
        """Write all pending bytes. False when the disk did not take them all; the rest stays pending."""
        try:
            while self.pending:
                written = os.write(self.fd, self.pending)
                del self.pending[:written]
        except OSError as e:
            self.error = e.strerror or type(e).__name__
            return False
        return True


def held(path: Path) -> bool:
    """Whether the writer of this history file is alive. Raises OSError when that cannot be found out."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _claim(path: Path) -> None:
    """Make the file. Raises HistoryError when there is one: two runs in one folder would ruin each other's columns."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    except FileExistsError:
        raise HistoryError(f"{path} exists: another run wrote or writes it", remedy="give each run a folder") from None


def encode(record: records.Record) -> bytes:
    """One history line with its newline."""
    return b'{"kind":"%s",%s\n' % (record.kind.encode(), orjson.dumps(record)[1:])


class Journal:
    """Writer of one engine's history files in `folder`; `header.engine` names them."""

    def __init__(self, folder: Path, header: records.Run) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.engine = header.engine
        self.dropped = 0
        _claim(folder / f"history-{self.engine}.jsonl")
        self._tokens = _Appender(folder / f"tokens-{self.engine}.i32")
        self._arrivals = _Appender(folder / f"arrivals-{self.engine}.u32")
        self._prompts = _Appender(folder / f"prompts-{self.engine}.i32")
        self._lines = _Appender(folder / f"history-{self.engine}.jsonl")
        with contextlib.suppress(OSError):  # a filesystem without locks
            fcntl.flock(self._lines.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._token_count = 0
        self._prompt_count = 0
        self._closed = False
        self.emit(header, flush=True)

    def emit(self, record: records.Record, flush: bool = False) -> bool:
        """Append one line; False when it was refused or, with `flush`, when the disk does not have it yet."""
        return self._accept(encode(record)) and (not flush or self.flush())

    def stream(
        self,
        record: records.Stream,
        ids: array[int],
        arrivals_us: array[int],
        prompt: Sequence[int] = (),
    ) -> records.Stream:
        """Append a stream: `ids` (array 'i') and `arrivals_us` (array 'I') of equal length, then its line.

        Returns the record with its offsets. Raises ValueError when lengths differ (a bug of the caller).
        """
        if len(ids) != len(arrivals_us):
            raise ValueError(f"{len(ids)} ids but {len(arrivals_us)} arrivals")
        placed = dataclasses.replace(
            record,
            tokens=len(ids),
            offset=self._token_count,
            prompt=len(prompt),
            prompt_offset=self._prompt_count,
        )
        columns = (
            (self._tokens, ids.tobytes()),
            (self._arrivals, arrivals_us.tobytes()),
            (self._prompts, array("i", prompt).tobytes()),
        )
        if self._accept(encode(placed), columns):
            self._token_count += len(ids)
            self._prompt_count += len(prompt)
        return placed

    def _accept(self, line: bytes, columns: tuple[tuple[_Appender, bytes], ...] = ()) -> bool:
        if self._pending() > MAX_PENDING:
            self.flush()  # the disk may have room again
            if self._pending() > MAX_PENDING:
                self.dropped += 1
                return False
        if self._closed:
            self.dropped += 1
            return False
        for appender, data in columns:
            appender.pending += data
        self._lines.pending += line
        if self._pending() > FLUSH_BYTES:
            self.flush()
        return True

    def _files(self) -> tuple[_Appender, ...]:
        return (self._tokens, self._arrivals, self._prompts, self._lines)

    def _pending(self) -> int:
        return sum(len(f.pending) for f in self._files())

    def flush(self) -> bool:
        """Hand everything to the operating system, columns first; False when the disk refused some of it."""
        return all(f.drain() for f in self._files())

    @property
    def trouble(self) -> str:
        """What keeps records from the disk, "" when it has them all or takes them."""
        errors = [f.error for f in self._files() if f.pending and f.error]
        return f"{self._pending()} bytes of the history cannot be written: {errors[0]}" if errors else ""

    def close(self, reason: str, at_ns: int) -> None:
        """Write the `end` line and close; idempotent. What the disk does not take is lost: see `trouble`."""
        if self._closed:
            return
        self.emit(records.End(at_ns=at_ns, reason=reason), flush=True)
        self._closed = True
        for f in self._files():
            os.close(f.fd)
