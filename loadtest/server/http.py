"""The HTTP front: vLLM's routes over an engine in a thread."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from aiohttp import web
from tokenizers import Tokenizer

from loadtest.server import wire
from loadtest.server.batch import Engine
from loadtest.server.metrics import CONTENT_TYPE, render
from loadtest.server.reply import DEAD, Reply, StreamReply, WholeReply
from loadtest.server.state import Emission, Params, Refusal, Stream
from loadtest.server.worker import Worker

VERSION = "0.32.0+embedded"  # the vLLM whose contract this follows
MAX_BODY = 16 * 2**20
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Front:
    """Routes of one server; `failed` resolves to the reason when the engine dies."""

    def __init__(self, engine: Engine, model_dir: Path, base: str, step_s: float) -> None:
        self._engine, self._base, self._root = engine, base, str(model_dir)
        self._tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[BaseException] = self._loop.create_future()
        self._replies: set[Reply] = set()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tasks: set[asyncio.Task[Any]] = set()
        self.worker = Worker(engine, step_s, self._deliver, lambda e: self._soon(self._die, e))

    def application(self, runtime_lora: bool) -> web.Application:
        """The routes; without `runtime_lora` those that load and unload do not exist, as in vLLM."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[_errors])
        app.router.add_get("/health", self._health)
        app.router.add_route("*", "/ping", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._completions)
        if runtime_lora:
            app.router.add_post("/v1/load_lora_adapter", self._load_lora)
            app.router.add_post("/v1/unload_lora_adapter", self._unload_lora)
            app.router.add_post("/adapters", self._register)
            app.router.add_delete("/adapters/{name}", self._unregister)
        return app

    # ---- between the threads ----

    def _soon(self, call: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:  # the loop has closed: the server is on its way out
            return

    def _deliver(self, emissions: list[Emission]) -> None:
        self._soon(self._dispatch, emissions)

    def _dispatch(self, emissions: list[Emission]) -> None:
        for emission in emissions:
            emission.stream.sink(emission)
        self.worker.delivered()

    def _die(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_result(error)
        for reply in list(self._replies):
            reply.fail(DEAD)

    def _alive(self) -> None:
        if self.failed.done():
            raise Refusal(500, "InternalServerError", DEAD)

    # ---- plain routes ----

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=503 if self.failed.done() else 200)

    async def _version(self, request: web.Request) -> web.Response:
        return _json({"version": VERSION})

    async def _models(self, request: web.Request) -> web.Response:
        entries = list(self._engine.entries.values())
        return _json(wire.model_cards(self._base, self._root, self._longest, entries))

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=render(self._engine, self._base), headers={"Content-Type": CONTENT_TYPE})

    @property
    def _longest(self) -> int:
        return self._engine.model.config.max_position

    # ---- adapters ----

    async def _load_lora(self, request: web.Request) -> web.Response:
        body = wire.parse_body(request.content_type, await request.read())
        name, path = wire.text_field(body, "lora_name"), wire.text_field(body, "lora_path")
        await self._load(name, path, wire.bool_field(body, "load_inplace"))
        return _text(f"Success: LoRA adapter '{name}' added successfully.")

    async def _register(self, request: web.Request) -> web.Response:
        body = wire.parse_body(request.content_type, await request.read())
        name, path = wire.text_field(body, "name"), wire.text_field(body, "src")
        await self._load(name, path, wire.bool_field(body, "load_inplace"))
        return _text(f"Adapter {name} registered")

    async def _unload_lora(self, request: web.Request) -> web.Response:
        body = wire.parse_body(request.content_type, await request.read())
        name = wire.text_field(body, "lora_name")
        await self._unload(name)
        return _text(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _unregister(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        await self._unload(name)
        return _text(f"Adapter {name} unregistered")

    async def _load(self, name: str, path: str, inplace: bool) -> None:
        if not name or not path:
            raise Refusal(400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided.")
        if name == self._base:
            raise Refusal(400, "InvalidUserInput", f"The lora adapter '{name}' conflicts with a served base model.")
        before_s, after_s = self._engine.faults.load_timing()

        async def load() -> None:
            async with self._locks[name]:
                await asyncio.sleep(before_s)
                await self._command(lambda engine, acked: engine.load(name, path, inplace, acked))

        await self._outlive(load())
        if after_s:
            await (asyncio.sleep(after_s) if math.isfinite(after_s) else asyncio.Event().wait())

    async def _unload(self, name: str) -> None:
        if not name:
            raise Refusal(400, "InvalidUserInput", "'lora_name' needs to be provided to unload a LoRA adapter.")

        def unload(engine: Engine, acked: Callable[[Refusal | None], None]) -> None:
            try:
                engine.unload(name)
            except Refusal as refusal:
                acked(refusal)
            else:
                acked(None)

        async def locked() -> None:
            async with self._locks[name]:
                await self._command(unload)

        await self._outlive(locked())

    async def _outlive(self, work: Any) -> None:
        """Wait for `work`, which goes on when the client gives up: a load that timed out may still happen."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    async def _command(self, run: Callable[[Engine, Callable[[Refusal | None], None]], None]) -> None:
        """Run a command in the engine's thread; raises the Refusal it answers with, or when the engine is dead."""
        self._alive()
        answer: asyncio.Future[Refusal | None] = self._loop.create_future()

        def settle(refusal: Refusal | None) -> None:
            if not answer.done():
                answer.set_result(refusal)

        self.worker.do(lambda engine: run(engine, lambda refusal: self._soon(settle, refusal)))
        waits: list[asyncio.Future[Any]] = [answer, self.failed]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            self._alive()
        if (refusal := answer.result()) is not None:
            raise refusal

    # ---- completions ----

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        ask = wire.parse_completion(wire.parse_body(request.content_type, await request.read()))
        self._alive()
        model = ask.model or self._base
        entry = self._engine.entries.get(model)
        if model != self._base and entry is None:
            raise wire.unknown_model(model, self._base)
        prompt = ask.prompt if isinstance(ask.prompt, list) else self._tokenizer.encode(ask.prompt).ids
        wire.check_prompt(prompt, self._engine.model.config.vocab, self._longest)
        params = _fitted(ask.params, self._longest - len(prompt))
        adapter = "" if model == self._base else model
        if ask.stream:
            return await self._stream(request, ask, Stream(adapter, prompt, params, _nowhere, entry), model)
        reply = WholeReply(ask, prompt, self._tokenizer, model)
        await self._run(reply, Stream(adapter, prompt, params, reply, entry))
        if reply.ended.result() == "cut" and request.transport is not None:
            request.transport.abort()
        return _json(reply.body, reply.status)

    async def _stream(self, request: web.Request, ask: wire.Ask, stream: Stream, model: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        chunked = request.version >= (1, 1)
        if chunked:
            response.enable_chunked_encoding()
        await response.prepare(request)
        transport = request.transport

        def write(frames: bytes) -> None:  # past aiohttp's writer: one call and no task switch per token
            if transport is not None and not transport.is_closing():
                transport.write(b"%x\r\n%b\r\n" % (len(frames), frames) if chunked else frames)

        reply = StreamReply(ask, stream.prompt, self._tokenizer, model, write)
        stream.sink = reply
        await self._run(reply, stream)
        if reply.ended.result() == "cut" and transport is not None:
            transport.close()  # what was written still leaves; the end of the body does not
        else:
            await response.write_eof()
        return response

    async def _run(self, reply: Reply, stream: Stream) -> None:
        """Feed `reply` to its end; a client that goes away takes its stream out of the batch."""
        self._replies.add(reply)
        self.worker.do(lambda engine: engine.submit(stream))
        try:
            await reply.ended
        finally:
            self._replies.discard(reply)
            why = "stop" if reply.stop_reason else "abort"
            self.worker.do(lambda engine: engine.abort(stream, why))


def _nowhere(emission: Emission) -> None:
    raise AssertionError("a stream was submitted without a reply")


def _fitted(params: Params, room: int) -> Params:
    """vLLM gives what fits into the context instead of refusing."""
    return params if params.max_tokens <= room else replace(params, max_tokens=room)


def _json(body: object, status: int = 200) -> web.Response:
    return web.Response(body=wire.dumps(body), status=status, content_type="application/json")


def _text(words: str) -> web.Response:
    return web.Response(text=words)


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refusals and routing errors in vLLM's words."""
    try:
        return await handler(request)
    except Refusal as refusal:
        return _json(wire.error_body(refusal), refusal.status)
    except web.HTTPException as error:
        return _json({"detail": error.reason}, error.status)
