"""From emissions to bytes: text, SSE frames and whole answers of /v1/completions.

A reply is fed by the HTTP loop, once per step, without waking a task: a stream's frames go straight to its transport.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import orjson
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from loadtest.server.state import Emission, Refusal, Scored
from loadtest.server.wire import Ask, error_body

DONE = b"data: [DONE]\n\n"
# after the head: text, logprobs, finish and stop reason, ids of prompt and event, usage
EVENT = b'%b%b,"logprobs":%b,"finish_reason":%b,"stop_reason":%b,"prompt_token_ids":%b,"token_ids":%b}]%b}\n\n'
PLAIN = EVENT % (b"%b", b"%b", *(b"null",) * 4, b"[%d]", b"")  # an event of nothing but text and one id
DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class Text:
    """Ids to text, never half a character; knows when a stop string has come."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._decode = DecodeStream(skip_special_tokens=True)
        self._kept = max((len(s) for s in stops), default=1) - 1  # characters in which a stop string may have begun
        self._held = ""
        self.stopped: str | None = None

    def step(self, token: int) -> str:
        """The text that one more id completes, where there are no stop strings."""
        return self._decode.step(self._tokenizer, token) or ""

    def feed(self, ids: Sequence[int], last: bool) -> str:
        """The text that can be shown once `ids` have come; `last` when nothing follows."""
        fresh = "".join(map(self.step, ids))
        if not self._stops:
            return fresh
        text = self._held + fresh
        hits = [(text.index(stop), stop) for stop in self._stops if stop in text]
        if hits:
            at, self.stopped = min(hits)
            return text[:at]
        cut = len(text) if last else max(0, len(text) - self._kept)
        self._held = text[cut:]
        return text[:cut]


class Reply:
    """What one request has got so far; `ended` resolves to "done", "cut" or "error" when nothing more will come."""

    def __init__(self, ask: Ask, prompt: Sequence[int], tokenizer: Tokenizer, model: str) -> None:
        self.ask, self.prompt, self.model = ask, prompt, model
        self.tokenizer = tokenizer
        self.id = f"cmpl-{random.getrandbits(64):016x}"  # the system's randomness would hand the GIL to the engine
        self.created = int(time.time())
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._text = Text(tokenizer, ask.stop)
        self._offset = 0  # of the next token in the text, for logprobs

    def __call__(self, emission: Emission) -> None:
        """Take one step's emission."""
        if self.ended.done():
            return
        if emission.end:
            if emission.end == "error":
                self.fail(DEAD)
            else:
                self.ended.set_result("cut")
            return
        text = self._text.feed(emission.ids, emission.finish is not None)
        if self._text.stopped is not None:
            emission.finish = "stop"
        self.add(emission, text)
        if emission.finish:
            self.finish(emission)
            self.ended.set_result("done")

    def fail(self, message: str) -> None:
        """The engine cannot go on with this request."""
        if not self.ended.done():
            self.error(Refusal(500, "InternalServerError", message))
            self.ended.set_result("error")

    @property
    def stop_reason(self) -> str | None:
        """The stop string that ended the text."""
        return self._text.stopped

    def add(self, emission: Emission, text: str) -> None:
        """Tokens have come."""
        raise NotImplementedError

    def finish(self, emission: Emission) -> None:
        """The last tokens have been added."""
        raise NotImplementedError

    def error(self, refusal: Refusal) -> None:
        """Tell the client that the request failed."""
        raise NotImplementedError

    def head(self) -> dict[str, Any]:
        """The fields that every frame and body of this answer begins with."""
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}

    def usage(self, completion: int) -> dict[str, int]:
        """The usage object."""
        prompt = len(self.prompt)
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}

    def logprobs(self, scored: Sequence[Scored]) -> dict[str, Any] | None:
        """OpenAI's logprobs object for some tokens."""
        if self.ask.params.logprobs is None:
            return None
        out: dict[str, list[Any]] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
        for item in scored:
            word = self.word(item.token)
            out["text_offset"].append(self._offset)
            out["token_logprobs"].append(item.logprob)
            out["tokens"].append(word)
            out["top_logprobs"].append({word: item.logprob} | {self.word(t): p for t, p in item.top})
            self._offset += len(word)
        return out

    def word(self, token: int) -> str:
        """The text of one token."""
        return str(self.tokenizer.decode([token], skip_special_tokens=False))


class StreamReply(Reply):
    """Server-sent events; `write` takes the bytes of one or more frames."""

    def __init__(
        self, ask: Ask, prompt: Sequence[int], tokenizer: Tokenizer, model: str, write: Callable[[bytes], None]
    ) -> None:
        super().__init__(ask, prompt, tokenizer, model)
        self._write = write
        self._head = b"data: " + orjson.dumps(self.head())[:-1] + b',"choices":[{"index":0,"text":'
        self._first = True
        self._plain = False  # from the second event on, where there is nothing else to say
        self._bare = ask.return_token_ids and ask.params.logprobs is None and not ask.continuous_usage and not ask.stop

    def __call__(self, emission: Emission) -> None:
        ids = emission.ids
        if self._plain and len(ids) == 1 and emission.finish is None and not emission.end and not self.ended.done():
            self._write(PLAIN % (self._head, orjson.dumps(self._text.step(ids[0])), ids[0]))
        else:
            super().__call__(emission)

    def add(self, emission: Emission, text: str) -> None:
        if not text and not emission.ids and not emission.finish:
            return
        ids = b"null"
        prompt = b"null"
        if self.ask.return_token_ids:
            ids = b"[" + ",".join(map(str, emission.ids)).encode() + b"]"
            if self._first:
                prompt = orjson.dumps(self.prompt)
        self._first, self._plain = False, self._bare
        finish = b'"' + emission.finish.encode() + b'"' if emission.finish else b"null"
        logprobs = b"null" if self.ask.params.logprobs is None else orjson.dumps(self.logprobs(emission.scored))
        stop = orjson.dumps(self.stop_reason) if self.stop_reason else b"null"
        tail = b""
        if self.ask.include_usage and self.ask.continuous_usage:
            tail = b',"usage":' + orjson.dumps(self.usage(emission.usage))
        self._write(EVENT % (self._head, orjson.dumps(text), logprobs, finish, stop, prompt, ids, tail))

    def finish(self, emission: Emission) -> None:
        tail = DONE
        if self.ask.include_usage:
            body = self.head() | {"choices": [], "usage": self.usage(emission.usage)}
            tail = b"data: " + orjson.dumps(body) + b"\n\n" + DONE
        self._write(tail)

    def error(self, refusal: Refusal) -> None:
        self._write(b"data: " + orjson.dumps(error_body(refusal)) + b"\n\n" + DONE)


class WholeReply(Reply):
    """One JSON body: `body` once `ended`, with `status`."""

    def __init__(self, ask: Ask, prompt: Sequence[int], tokenizer: Tokenizer, model: str) -> None:
        super().__init__(ask, prompt, tokenizer, model)
        self.status = 200
        self.body: dict[str, Any] = {}
        self._parts: list[str] = []
        self._ids: list[int] = []
        self._scored: list[Scored] = []
        self._prompt_scored: list[Scored] | None = None

    def add(self, emission: Emission, text: str) -> None:
        self._parts.append(text)
        self._ids += emission.ids
        self._scored += emission.scored
        if emission.prompt_scored is not None:
            self._prompt_scored = emission.prompt_scored

    def finish(self, emission: Emission) -> None:
        wants = self.ask.return_token_ids
        choice = {
            "index": 0,
            "text": "".join(self._parts),
            "logprobs": self.logprobs(self._scored),
            "finish_reason": emission.finish,
            "stop_reason": self.stop_reason,
            "token_ids": self._ids if wants else None,
            "prompt_logprobs": self._prompt_logprobs(),
            "prompt_token_ids": list(self.prompt) if wants else None,
        }
        self.body = self.head() | {"choices": [choice], "usage": self.usage(emission.usage)}

    def error(self, refusal: Refusal) -> None:
        self.status, self.body = refusal.status, error_body(refusal)

    def _prompt_logprobs(self) -> list[dict[str, Any] | None] | None:
        """vLLM's list: null for the first token, then a map from token id to its score."""
        if self.ask.params.prompt_logprobs is None:
            return None
        out: list[dict[str, Any] | None] = [None]
        for item in self._prompt_scored or []:
            entries = {item.token: (item.logprob, item.rank)}
            for rank, (token, logprob) in enumerate(item.top, 1):
                entries.setdefault(token, (logprob, rank))
            out.append(
                {
                    str(t): {"logprob": logprob, "rank": rank, "decoded_token": self.word(t)}
                    for t, (logprob, rank) in entries.items()
                }
            )
        return out
