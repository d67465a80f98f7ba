"""What a token costs the embedded server: its CPU seconds over the tokens it sent, so other work does not count.

    python bench/embedded.py [STREAMS [SECONDS [TOKENS [OPTION OF THE SERVER]...]]]

TOKENS is the length of every stream. Prints JSON: tokens per CPU second (what one core gives), and how many streams
were open at once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import procs
from measure import pinned

from loadtest import history
from loadtest.probe import ONE_THREAD, cache_dir
from loadtest.server.base import ensure_base

ROOT = Path(__file__).parent.parent


def main(streams: int = 64, seconds: float = 10.0, length: int = 200) -> None:
    """Measure it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        command = [sys.executable, "-m", "loadtest.server.app", "--model", str(ensure_base(cache_dir())), "--port", "0"]
        command += ["--port-file", str(folder / "port"), "--max-num-seqs", str(streams), *sys.argv[4:]]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                pinned(command, 0), env=ONE_THREAD | {"PATH": "/usr/bin:/bin"}, stdout=log, stderr=log
            )
        try:
            while not (folder / "port").exists():
                time.sleep(0.05)
            url = f"http://127.0.0.1:{(folder / 'port').read_text().strip()}"
            ours = [sys.executable, str(ROOT / "bench/ours.py"), url, str(folder / "run")]
            ramp = max(1.0, streams / 500)
            client = subprocess.Popen(pinned([*ours, str(streams), str(seconds + 3), str(ramp), str(length)], 1))
            time.sleep(ramp + 2)
            begin_ns, cpu = time.monotonic_ns(), procs.cpu_s(server.pid)
            time.sleep(seconds)
            end_ns, cpu = time.monotonic_ns(), procs.cpu_s(server.pid) - cpu
            client.wait()
        finally:
            server.terminate()
            server.wait()
        recorded = history.load(folder / "run")
    tokens = int(((recorded.at >= begin_ns) & (recorded.at < end_ns)).sum())
    t = recorded.streams
    alive = int(((t.first > 0) & (t.first <= end_ns) & (t.last >= end_ns)).sum())
    figures = {"streams": streams, "receiving_at_the_end": alive, "tokens": tokens, "server_cpu_s": round(cpu, 2)}
    wall = (end_ns - begin_ns) / 1e9
    print(json.dumps({**figures, "tokens_per_cpu_s": round(tokens / cpu), "tokens_per_s": round(tokens / wall)}))


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:4]))
