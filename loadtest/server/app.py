"""`python -m loadtest.server.app`: starts the embedded engine and serves it over HTTP.

Heavy imports wait until the BLAS threads are limited: one engine thread on one core is what the figures are made for.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from loadtest.errors import LoadtestError, UsageError

if TYPE_CHECKING:
    from aiohttp.web import AppRunner

    from loadtest.server.batch import Engine
    from loadtest.server.state import Refusal

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
GRACE_S = 3.0  # from the end of the parent to our own, come what may
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's choices for --max-lora-rank


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, remedy="see --help")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = _Parser(prog="loadtest.server.app", description="A LoRA engine in numpy with vLLM's HTTP contract.")
    p.add_argument("--model", type=Path, required=True, metavar="DIR", help="Hugging Face folder, Qwen2 or Llama")
    p.add_argument("--served-model-name", default="base", metavar="NAME", help="name of the base (base)")
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, default=8000, help="0 takes a free one (8000)")
    p.add_argument("--port-file", type=Path, metavar="FILE", help="write the port here once connections are accepted")
    p.add_argument("--swap", choices=("pin", "switch", "sticky", "drain"), default="pin", help="swap policy (pin)")
    p.add_argument("--plant", default="", metavar="JSON", help='faults, e.g. [{"fault": "stale", "ms": 500}]')
    p.add_argument("--max-loras", type=int, default=4, metavar="N", help="adapters in one batch (4)")
    p.add_argument("--max-lora-rank", type=int, choices=RANKS, default=64, metavar="N", help="64")
    p.add_argument("--max-num-seqs", type=int, default=256, metavar="N", help="streams in one batch (256)")
    p.add_argument("--step-ms", type=float, default=0.0, metavar="X", help="least duration of a step (0)")
    p.add_argument("--lora-modules", nargs="*", default=[], metavar="NAME=PATH", help="adapters to load at the start")
    p.add_argument("--no-runtime-lora", action="store_true", help="no load and unload routes")
    p.add_argument("--parent-fd", type=int, metavar="FD", help="end when this descriptor reads end of file")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM, SIGINT, the end of the parent or the death of the engine; the exit status."""
    for name in ONE_THREAD:
        os.environ.setdefault(name, "1")
    try:
        options = parser().parse_args(argv)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(serve(options))
    except LoadtestError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)


async def serve(options: argparse.Namespace) -> int:
    """One server from start to end; the exit status. Raises LoadtestError for what the user got wrong."""
    from aiohttp import web

    from loadtest.server.http import Front

    front = Front(_engine(options), options.model, options.served_model_name, options.step_ms / 1000.0)
    app = front.application(runtime_lora=not options.no_runtime_lora)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    stop = _stop_event(options.parent_fd)
    site = web.TCPSite(runner, options.host, options.port, backlog=4096)
    try:
        await site.start()
    except OSError as error:
        raise UsageError(f"cannot listen on {options.host}:{options.port}: {error}", remedy="take --port 0") from error
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(0.0005)  # the HTTP loop should not wait 5 ms for the engine's thread
    front.worker.start()
    port = runner.addresses[0][1]
    sys.stderr.write(f"serving {options.model} on http://{options.host}:{port}, swap policy {options.swap}\n")
    if options.port_file:
        _write_whole(options.port_file, f"{port}\n")
    waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(stop.wait()), front.failed]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    if front.failed.done():
        return await _bury(front.failed.result(), runner)
    await asyncio.to_thread(front.worker.stop)
    await runner.cleanup()
    return 0


def _engine(options: argparse.Namespace) -> Engine:
    from loadtest.server.batch import Engine, Limits
    from loadtest.server.plant import parse
    from loadtest.server.weights import load_model

    limits = Limits(max_seqs=options.max_num_seqs, max_loras=options.max_loras, max_rank=options.max_lora_rank)
    engine = Engine(load_model(options.model), limits, options.swap, parse(options.plant))
    for module in options.lora_modules:
        name, _, path = module.partition("=")
        if not name or not path:
            raise UsageError(f"--lora-modules {module} is not NAME=PATH", remedy="write tenant-a=/adapters/a")
        refusals: list[Refusal | None] = []
        engine.load(name, path, False, refusals.append)
        if refusals[0] is not None:
            raise UsageError(f"--lora-modules {module}: {refusals[0].message}", remedy="check the adapter's folder")
    return engine


async def _bury(error: BaseException, runner: AppRunner) -> int:
    """The engine has died: let the error frames leave and /health say so for a moment, then end, as vLLM does."""
    import traceback

    sys.stderr.write("".join(traceback.format_exception(error)))
    await asyncio.sleep(1.0)
    await runner.cleanup()
    return 1


def _stop_event(parent_fd: int | None) -> asyncio.Event:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, stop.set)
    if parent_fd is not None:
        threading.Thread(target=_watch, args=(parent_fd, loop, stop), name="parent", daemon=True).start()
    return stop


def _watch(fd: int, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Wait for the parent's end; a server that does not stop in order is ended."""
    with contextlib.suppress(OSError):
        while os.read(fd, 4096):
            pass
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(stop.set)
    threading.Event().wait(GRACE_S)
    os._exit(1)


def _write_whole(path: Path, text: str) -> None:
    private = path.with_name(f".{path.name}.{os.getpid()}")
    private.write_text(text, encoding="ascii")
    os.replace(private, path)


if __name__ == "__main__":
    sys.exit(main())
