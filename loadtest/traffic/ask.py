"""What a user asks for: one completion, streamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Ask:
    """One stream to be sent; `stream` is unique in the engine's history."""

    stream: int
    adapter: str  # an adapter's name, or "base"
    prompt: Sequence[int] | str
    max_tokens: int
    user: str = ""
    intended_ns: int = 0  # when it should leave (open loop); 0: whenever it does
    ignore_eos: bool = True
    temperature: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)  # merged into the body last
    replica: int = 0  # which server of a fleet it goes to

    @property
    def may_stop_early(self) -> bool:
        """Whether fewer than `max_tokens` tokens can be right."""
        return not self.ignore_eos or any(self.extra.get(key) for key in ("stop", "stop_token_ids"))

    @property
    def answer_bytes(self) -> int:
        """More than what an honest answer says about its tokens: 20 alternatives to each take 2.5 kB."""
        return 4096 * (len(self.prompt) + self.max_tokens)

    def body(self, model: str) -> bytes:
        """The JSON of `POST /v1/completions`, in vLLM's fields."""
        fields: dict[str, Any] = {
            "model": model,
            "prompt": self.prompt if isinstance(self.prompt, str) else list(self.prompt),
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "ignore_eos": self.ignore_eos,
        }
        return orjson.dumps(fields | dict(self.extra))
