"""Questions to a version: how would you go on, and what do you think of these tokens? Plain completions, no streams."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import aiohttp
import numpy as np
import numpy.typing as npt
import orjson

from loadtest.errors import TargetError
from loadtest.traffic.words import Redactor, excerpt, parse_error

AT_ONCE = 8
TIMEOUT_S = 120.0


class Refused(TargetError):
    """The server does not answer a question that scoring needs."""


class Asker:
    """Sends questions, at most AT_ONCE of them at a time."""

    def __init__(self, session: aiohttp.ClientSession, url: str, redact: Redactor) -> None:
        self._session, self._url, self._redact = session, url.rstrip("/") + "/v1/completions", redact
        self._room = asyncio.Semaphore(AT_ONCE)

    async def greedy(self, model: str, prompt: Sequence[int], count: int, whole: bool) -> npt.NDArray[np.int32]:
        """The `count` tokens that a model generates greedily; `whole`: however early it would end by itself."""
        body = {"model": model, "prompt": list(prompt), "max_tokens": count, "temperature": 0}
        choice = await self._ask(body | {"ignore_eos": whole, "return_token_ids": True})
        ids = choice.get("token_ids")
        if not isinstance(ids, list):
            raise Refused(f"{model} answered without token ids", remedy="the server must know return_token_ids")
        return np.array(ids, np.int32)

    async def margins(self, model: str, prompt: Sequence[int], ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """For each of `ids`, nats between the model's own choice there and that token: [len(ids)].

        `prompt_logprobs` computes the whole sequence anew: no cached keys of another version take part.
        """
        body = {"model": model, "prompt": [*prompt, *ids], "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
        choice = await self._ask(body)
        found = choice.get("prompt_logprobs")
        if not isinstance(found, list) or len(found) != len(prompt) + len(ids):
            raise Refused(f"{model} answered without prompt_logprobs", remedy="the server must know prompt_logprobs")
        return np.array([_margin(found[len(prompt) + i], token) for i, token in enumerate(ids)], np.float32)

    async def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        try:
            async with self._room, asyncio.timeout(TIMEOUT_S):
                post = self._session.post(self._url, data=orjson.dumps(body), headers=headers, allow_redirects=False)
                async with post as response:
                    raw = await response.read()
        except (aiohttp.ClientError, OSError) as e:  # TimeoutError is an OSError
            raise Refused(self._redact(f"{body['model']} got no answer ({type(e).__name__}: {e})", 300)) from e
        error = parse_error(raw) if response.status != 200 else None
        try:
            if response.status == 200:
                return dict(orjson.loads(raw)["choices"][0])
        except (ValueError, KeyError, TypeError, IndexError):
            pass
        words = error.message if error else excerpt(raw)
        raise Refused(self._redact(f"{body['model']} answered {response.status}: {words}", 300))


def _margin(entries: dict[str, Any], token: int) -> float:
    """`entries`: vLLM's map from token id to its logprob, the token itself and the best one among them."""
    best = max(float(e["logprob"]) for e in entries.values())
    return best - float(entries[str(token)]["logprob"])
