"""Our engine without Locust: STREAMS closed-loop users over the engine's socket pair, for SECONDS after RAMP_S.

    python bench/ours.py URL FOLDER STREAMS SECONDS RAMP_S TOKENS

It is the process that `loadtest run` starts for its traffic, spoken to in its own protocol; it writes the history too.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path

from loadtest.traffic.ipc import Unframer, frame


async def main(url: str, folder: Path, streams: int, seconds: float, ramp_s: float, tokens: int) -> None:
    """Run it."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "loadtest.traffic.engine", str(theirs.fileno()), str(os.getpid())]
    engine = subprocess.Popen(command, pass_fds=(theirs.fileno(),))  # noqa: ASYNC220
    theirs.close()
    reader, writer = await asyncio.open_unix_connection(sock=ours, limit=1 << 20)
    config = {"engine": "e0", "role": "cli", "folder": str(folder), "url": url, "seed": 0}
    limits = {"stream_deadline_s": 600.0, "stall_s": 60.0, "connect_s": 10.0}
    writer.write(frame({"op": "configure", **config, "limits": limits}))
    numbers, over, ready = itertools.count(1), asyncio.Event(), asyncio.Event()

    def send() -> None:
        ask = {"adapter": "base", "prompt": [1, 2, 3], "max_tokens": tokens, "user": "u"}
        writer.write(frame({"op": "stream", "id": next(numbers), **ask}))

    async def listen() -> None:
        unframer = Unframer()
        while data := await reader.read(1 << 20):
            for message in unframer.feed(data):
                if message["op"] == "ready":
                    ready.set()
                elif message["op"] == "result" and not over.is_set():
                    send()
                elif message["op"] == "stopped":
                    return
                elif message["op"] == "error":
                    sys.exit(str(message))

    listening = asyncio.create_task(listen())
    await ready.wait()
    for _ in range(streams):
        send()
        await asyncio.sleep(ramp_s / streams)
    await asyncio.sleep(seconds)
    over.set()
    writer.write(frame({"op": "stop", "reason": "complete", "drain_s": 0.0}))
    await listening
    writer.close()
    await writer.wait_closed()
    await asyncio.to_thread(engine.wait)


if __name__ == "__main__":
    _, url, folder, streams, seconds, ramp_s, tokens = sys.argv
    asyncio.run(main(url, Path(folder), int(streams), float(seconds), float(ramp_s), int(tokens)))
