"""Stands in for an interpreter with vLLM: takes its command line, serves with the embedded server as a child process.

Point LOADTEST_VLLM_PYTHON to what `install` writes.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path


def install(folder: Path) -> Path:
    """An executable that behaves like vLLM's Python."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} "$@"\n')
    script.chmod(0o755)
    return script


def main(argv: list[str]) -> int:
    """Serve until the child ends; its end is the engine's death."""
    assert argv[:2] == ["-m", "vllm.entrypoints.openai.api_server"]
    given = dict(itertools.pairwise(argv))
    if "--no-such-flag" in argv:
        sys.stderr.write("api_server.py: error: unrecognized arguments: --no-such-flag\n")
        return 2
    kept = ("--model", "--served-model-name", "--host", "--port", "--max-loras", "--max-lora-rank")
    command = [sys.executable, "-m", "loadtest.server.app", "--step-ms", "20"]
    child = subprocess.Popen([*command, *(word for key in kept for word in (key, given[key]))])
    sys.stderr.write(f"engine core {child.pid}\n")
    status = child.wait()
    sys.stderr.write("RuntimeError: Engine core died: <out of \x1b[31mmemory>\n")
    return 1 if status else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
