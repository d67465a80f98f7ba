"""The embedded server with a journal of its own: what it was asked to load, and every token before it was sent.

    python tests/witness.py JOURNAL, then the embedded server's options

A line is with the operating system before the engine acts on what it says, so it survives a SIGKILL as well.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest.server import app, batch
from loadtest.server.state import Emission, Refusal, Stream

NUMBER = -7  # a key of Stream.marks that no planted fault uses


class Witness(batch.Engine):
    """An engine that writes down what it sees."""

    fd = -1
    streams = 0

    def _write(self, **row: Any) -> None:
        os.write(self.fd, json.dumps(row).encode() + b"\n")

    def load(self, name: str, path: str, inplace: bool, acked: Callable[[Refusal | None], None]) -> None:
        self._write(load=name, path=path)
        super().load(name, path, inplace, acked)

    def unload(self, name: str) -> None:
        self._write(unload=name)
        super().unload(name)

    def submit(self, stream: Stream) -> None:
        Witness.streams += 1
        stream.marks[NUMBER] = f"{os.getpid()}-{Witness.streams}"
        self._write(stream=stream.marks[NUMBER], adapter=stream.adapter or "base", prompt=stream.prompt)
        super().submit(stream)

    def step(self) -> list[Emission]:
        emissions = super().step()
        for e in emissions:
            self._write(of=e.stream.marks[NUMBER], ids=e.ids)
        return emissions


@dataclass
class Seen:
    """What a witness wrote from some byte of its journal on."""

    loads: list[tuple[str, str]] = field(default_factory=list)  # (adapter, path)
    streams: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)  # (adapter, prompt)
    ids: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def read(cls, journal: Path, start: int = 0) -> Seen:
        seen = cls()
        with journal.open("rb") as f:
            f.seek(start)
            for line in f:
                if line.endswith(b"\n"):
                    seen._add(json.loads(line))
        return seen

    def _add(self, row: dict[str, Any]) -> None:
        if "load" in row:
            self.loads.append((row["load"], row["path"]))
        elif "stream" in row:
            self.streams[row["stream"]] = (row["adapter"], tuple(row["prompt"]))
            self.ids[row["stream"]] = []
        elif "of" in row:
            self.ids.setdefault(row["of"], []).extend(row["ids"])


if __name__ == "__main__":
    Witness.fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    batch.Engine = Witness  # type: ignore[misc]
    sys.exit(app.main(sys.argv[2:]))
