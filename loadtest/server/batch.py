"""The engine: continuous batching over streams of many adapters, one step at a time, without threads or sockets.

Rules
1. `step` admits waiting streams, asks the policy which version serves each stream, and in one forward pass decodes one
   token for every running stream and computes the prompts of the new ones, which yields their first token.
2. A load happens between steps, so a load and a step exclude each other.
3. Streams 0..B-1 of `running` own the cache slots 0..B-1.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from loadtest.server import transformer
from loadtest.server.cache import BLOCK, Cache, PrefixCache, block_bytes
from loadtest.server.lora import BadAdapter, NoAdapter, Version, read_version
from loadtest.server.plant import Faults
from loadtest.server.policies import make
from loadtest.server.state import Emission, Entry, Refusal, Scored, Stream
from loadtest.server.transformer import Groups
from loadtest.server.weights import F32, Model

REMEMBERED = 4  # entries per name kept for planted faults; each holds its weights
Acked = Callable[[Refusal | None], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of the engine."""

    max_seqs: int = 256  # streams in the batch
    max_loras: int = 4  # adapters in one batch
    max_rank: int = 64
    prefill_tokens: int = 2048  # prompt tokens computed in one step
    prefix_blocks: int = 4096
    prefix_bytes: int = 256 * 2**20


class Engine:
    """All state of the server but its sockets; one thread only."""

    def __init__(
        self,
        model: Model,
        limits: Limits,
        swap: str = "pin",
        faults: Faults | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.model, self.limits, self.now_ns = model, limits, now_ns
        self.faults = faults or Faults(())
        self.policy = make(swap, self.read)
        self.entries: dict[str, Entry] = {}
        self.past: dict[int, deque[Entry]] = {}  # what was last applied under an ident, oldest first
        self.running: list[Stream] = []
        self.waiting: deque[Stream] = deque()
        self.counts: Counter[str] = Counter()
        self.prefix = PrefixCache(min(limits.prefix_blocks, limits.prefix_bytes // block_bytes(model.config)))
        self._cache = Cache(model.config)
        self._idents = itertools.count(1)
        self._held: deque[tuple[Entry, Acked]] = deque()  # loads that wait for a drain

    # ---- adapters ----

    def read(self, path: str, limited: bool = True) -> Version:
        """Read an adapter's folder. Raises NoAdapter or BadAdapter."""
        return read_version(path, self.model.config, self.limits.max_rank if limited else None)

    def load(self, name: str, path: str, inplace: bool, acked: Acked) -> None:
        """Load or replace; `acked` is called once, now or when the policy lets the load happen."""
        try:
            entry = self._checked(name, path, inplace)
        except Refusal as refusal:
            self.faults.refused(self, name, path)
            acked(refusal)
            return
        before = self.entries.get(name)
        if self.policy.waits and before is not None and self._busy(name):
            self._held.append((entry, acked))
        else:
            self.apply(entry)
            acked(None)

    def _checked(self, name: str, path: str, inplace: bool) -> Entry:
        before = self.entries.get(name)
        if before is not None and not inplace:
            raise Refusal(
                400,
                "InvalidUserInput",
                f"The lora adapter '{name}' has already been loaded. "
                "If you want to load the adapter in place, set 'load_inplace' to True.",
            )
        try:
            version = self.read(path)
        except NoAdapter as error:
            shown = "<path>" if path.startswith("/") else path  # vLLM masks absolute paths
            raise Refusal(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {shown}") from error
        except BadAdapter as error:
            words = f"Call to add_lora method failed: Worker failed with error '{error}', "
            raise Refusal(
                500, "InternalServerError", words + "please check the stack trace above for the root cause"
            ) from error
        ident = before.ident if before else next(self._idents)
        return Entry(name, path, version, inplace, ident, self.now_ns())

    def apply(self, entry: Entry) -> None:
        """Make `entry` what its name stands for, from the next step on."""
        before = self.entries.get(entry.name)
        entry = self.faults.loading(self, replace(entry, at_ns=self.now_ns()), before)
        self.put(entry)
        self.faults.loaded(self, entry, before)

    def put(self, entry: Entry) -> None:
        """As `apply`, without asking planted faults."""
        self.entries[entry.name] = entry
        self.past.setdefault(entry.ident, deque(maxlen=REMEMBERED)).append(entry)
        self.policy.loaded(entry, self.running)

    def unload(self, name: str) -> None:
        """Forget the name; its streams run on. Raises Refusal for an unknown one."""
        if name not in self.entries:
            raise Refusal(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        entry = self.entries.pop(name)
        self.past.pop(entry.ident)
        self.policy.unloaded(entry, self.running)

    def _busy(self, name: str) -> bool:
        return any(s.adapter == name for s in self.running)

    def _release(self) -> None:
        """Apply the held loads whose adapter has drained, in the order they came."""
        still: deque[tuple[Entry, Acked]] = deque()
        names: set[str] = set()
        for entry, acked in self._held:
            if entry.name in names or self._busy(entry.name):
                still.append((entry, acked))
                names.add(entry.name)
            else:
                self.apply(entry)
                acked(None)
                names.add(entry.name)  # a second held load of the name waits for the streams behind this one
        self._held = still

    # ---- streams ----

    @property
    def busy(self) -> bool:
        """Is there anything that a step would advance?"""
        return bool(self.running or self.waiting or self._held)

    def submit(self, stream: Stream) -> None:
        """Queue a stream; its entry is the registry's as of now."""
        if stream.adapter:
            stream.entry = self.entries.get(stream.adapter, stream.entry)
        if stream.params.temperature > 0.0:
            stream.rng = np.random.default_rng(stream.params.seed)
        self.waiting.append(stream)

    def abort(self, stream: Stream, why: str = "abort") -> None:
        """Forget a stream wherever it is, counted as `why`; harmless when it has ended."""
        if stream in self.waiting:
            self.waiting.remove(stream)
        elif stream in self.running:
            self._leave(self.running.index(stream))
        else:
            return
        self.counts[why] += 1

    def step(self) -> list[Emission]:
        """One step of all streams; what it emits."""
        self.faults.tick(self)
        self._release()
        old = len(self.running)
        new = self._admit()
        if not self.running:
            return []
        versions = self.faults.serve(self, self.running, self.policy.serve(self.running))
        slots = list(range(old))
        if self.faults.pause:
            now = self.now_ns()
            slots = [i for i in slots if not self.faults.paused(self.running[i], now)]
        if not slots and not new:
            return []
        out = self._advance(slots, old, versions)
        self.counts["generation_tokens"] += len(out)
        ended = [emission.finish for emission in out if emission.finish]
        if ended:
            self.counts.update(ended)
            for i in reversed(range(len(self.running))):
                if self._finish(self.running[i]):
                    self._leave(i)
        return self.faults.emit(out)

    def _admit(self) -> list[Stream]:
        new: list[Stream] = []
        names = {s.adapter for s in self.running if s.adapter}
        held = {entry.name for entry, _ in self._held}
        budget, later = self.limits.prefill_tokens, deque[Stream]()
        while self.waiting and len(self.running) < self.limits.max_seqs:
            stream = self.waiting.popleft()
            crowded = bool(stream.adapter) and stream.adapter not in names and len(names) >= self.limits.max_loras
            if stream.adapter in held or crowded:
                later.append(stream)
                continue
            if new and len(stream.prompt) > budget:
                later.append(stream)
                break
            budget -= len(stream.prompt)
            self.policy.admit(stream, self.entries)
            self.faults.admit(self, stream)
            self.running.append(stream)
            new.append(stream)
            if stream.adapter:
                names.add(stream.adapter)
        self.waiting.extendleft(reversed(later))
        return new

    def _advance(self, slots: list[int], first: int, versions: Sequence[Version | None]) -> list[Emission]:
        """One token for the streams in `slots`; the prompts of the streams from `first` on, and their first tokens."""
        old, new, cache = [self.running[i] for i in slots], self.running[first:], self._cache
        where = np.array(slots, dtype=np.int64)
        longest = max((len(s.prompt) for s in new), default=0)
        cache.reserve(len(self.running), max(longest, int(cache.lengths[where].max(initial=0)) + 1))
        spaces = [self.faults.namespace(s, _namespace(s, v)) for s, v in zip(new, versions[first:], strict=True)]
        spans = [self._known(slot, s, space) for slot, (s, space) in enumerate(zip(new, spaces, strict=True), first)]
        ids = [s.ids[-1] for s in old]
        positions = [cache.lengths[where]]
        for stream, (_, start, end) in zip(new, spans, strict=True):
            ids += stream.prompt[start:]
            positions.append(np.arange(start, end))
        rows = [1] * len(slots) + [end - start for _, start, end in spans]
        groups = grouped([versions[i] for i in slots] + list(versions[first:]), rows)
        attend = cache.both(where, positions[0], spans)
        hidden = transformer.forward(self.model, np.array(ids), np.concatenate(positions), groups, attend)
        if not new:
            return self._sample(old, transformer.logits(self.model, hidden))
        ends = np.cumsum(rows)
        out = self._sample(old + new, transformer.logits(self.model, hidden[ends - 1]))
        for n, (stream, space) in enumerate(zip(new, spaces, strict=True)):
            self.prefix.store(space, stream.prompt, cache, first + n)
            self.counts["prompt_tokens"] += len(stream.prompt)
            begin, end = ends[len(slots) + n] - rows[len(slots) + n], ends[len(slots) + n]
            self._score_prompt(out[len(slots) + n], hidden[begin : end - 1])
        return out

    def _known(self, slot: int, stream: Stream, space: str) -> tuple[int, int, int]:
        """Take the prompt's known blocks into `slot`; (slot, first position to compute, end of the prompt)."""
        # scores need every position computed, so that stale keys and values cannot touch them
        blocks = [] if stream.params.prompt_logprobs is not None else self.prefix.find(space, stream.prompt)
        for n, block in enumerate(blocks):
            self._cache.put(slot, n * BLOCK, block.content)
        return slot, len(blocks) * BLOCK, len(stream.prompt)

    def _sample(self, streams: Sequence[Stream], rows: F32) -> list[Emission]:
        """logits [N, vocab] -> one emission per stream, its token appended."""
        draws = {n: (s.params.temperature, s.rng) for n, s in enumerate(streams) if s.rng is not None}
        out = []
        for n, (stream, token) in enumerate(zip(streams, transformer.pick(rows, draws), strict=True)):
            ids = stream.ids
            ids.append(token)
            emission = Emission(stream, [token], self._finish(stream), len(ids))
            if stream.params.logprobs is not None:
                emission.scored = score(transformer.log_softmax(rows[n : n + 1]), [token], stream.params.logprobs)
            out.append(emission)
        return out

    def _score_prompt(self, emission: Emission, hidden: F32) -> None:
        """Scores of a prompt but for its first token, where asked for; hidden [N, hidden] are the rows before."""
        top = emission.stream.params.prompt_logprobs
        if top is not None and len(hidden):
            scores = transformer.log_softmax(transformer.logits(self.model, hidden))
            emission.prompt_scored = score(scores, emission.stream.prompt[1:], top)

    def _finish(self, stream: Stream) -> str | None:
        params = stream.params
        if not params.ignore_eos and stream.ids[-1] in self.model.config.eos:
            return "stop"
        return "length" if len(stream.ids) >= params.max_tokens else None

    def _leave(self, slot: int) -> None:
        stream = self.running[slot]
        for source, target in self._cache.vacate(slot, len(self.running) - 1):
            self.running[target] = self.running[source]
        self.running.pop()
        self.policy.leave(stream, self.running)


def grouped(versions: Sequence[Version | None], rows: Sequence[int]) -> Groups:
    """Which rows of the packed batch each version serves; stream i has `rows[i]` of them, in order."""
    found: dict[int, tuple[Version, list[int]]] = {}
    row = 0
    for version, count in zip(versions, rows, strict=True):
        if version is not None:
            found.setdefault(id(version), (version, []))[1].extend(range(row, row + count))
        row += count
    return [(version, np.array(members, dtype=np.int64)) for version, members in found.values()]


def score(rows: F32, tokens: Sequence[int], top: int) -> list[Scored]:
    """Log probabilities [N, vocab] and the N tokens at them -> N scores with `top` alternatives (-1: all)."""
    out = []
    for row, token in zip(rows, tokens, strict=True):
        count = len(row) if top < 0 else top
        best = np.argpartition(-row, count)[:count] if 0 < count < len(row) else np.arange(len(row))[:count]
        best = best[np.argsort(-row[best], kind="stable")]
        value = row[token]
        pairs = tuple((int(i), float(row[i])) for i in best)
        out.append(Scored(token, float(value), int((row > value).sum()) + 1, pairs))
    return out


def _namespace(stream: Stream, version: Version | None) -> str:
    return f"{version.sha if version else ''}:{stream.params.salt}"
