"""The values the engine passes around: requests, running streams, what leaves a step, what is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loadtest.server.lora import Version


@dataclass(frozen=True, slots=True)
class Entry:
    """What a name stands for since one acked load."""

    name: str
    path: str  # as the client gave it; `root` in /v1/models
    version: Version | None  # None: nothing loaded under this name, so the base answers
    inplace: bool  # the load said load_inplace
    ident: int  # equal for in-place loads of one name, fresh after unload and load
    at_ns: int  # when it was applied


@dataclass(frozen=True, slots=True)
class Params:
    """How to continue a prompt."""

    max_tokens: int
    temperature: float = 0.0
    seed: int | None = None
    ignore_eos: bool = False
    logprobs: int | None = None  # alternatives to report per token
    prompt_logprobs: int | None = None
    salt: str = ""  # a private namespace in the prefix cache


@dataclass(frozen=True, slots=True)
class Scored:
    """Log probability and rank of a token at its position, and the best alternatives."""

    token: int
    logprob: float
    rank: int  # 1 = the most likely
    top: tuple[tuple[int, float], ...]  # (token, log probability), best first


@dataclass(slots=True, eq=False)
class Stream:
    """One request in the engine."""

    adapter: str  # "" for the base
    prompt: list[int]
    params: Params
    sink: Callable[[Emission], None]  # called in the HTTP loop
    entry: Entry | None = None  # at arrival; a policy may change it at admission and later. None for the base
    ids: list[int] = field(default_factory=list)
    rng: np.random.Generator | None = None
    marks: dict[int, Any] = field(default_factory=dict)  # planted faults keep their decision about this stream here


@dataclass(slots=True)
class Emission:
    """What one step gives one stream."""

    stream: Stream
    ids: list[int]
    finish: str | None = None  # "length" | "stop"
    usage: int = 0  # tokens generated so far, as usage reports them
    end: str = ""  # "cut": close without a word; "error": an error frame, then [DONE]
    scored: Sequence[Scored] = ()
    prompt_scored: list[Scored] | None = None


class Refusal(Exception):
    """A request that is answered with vLLM's error body."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.param = param
