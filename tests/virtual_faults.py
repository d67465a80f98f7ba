"""Faults of the virtual server, and the innocent disturbances that must not be mistaken for one.

Each class names its opportunity; `hit()` decides it with probability p.
"""

from __future__ import annotations

import random
from bisect import bisect_left

import orjson
from virtual import BASE, GONE, MS, VOCAB, Content, Fault, Stream, Swap, World

from loadtest.traffic.ask import Ask
from loadtest.traffic.decode import Ending, Exchange, decode


def across(world: World, stream: Stream) -> tuple[int, Content] | None:
    """(index of the first token made after the next change, what it changed to) of a stream that lives through one."""
    found = world.following(stream.adapter, stream.admitted)
    if found is None or found[0] >= stream.last or not stream.made:
        return None
    first = bisect_left(stream.at, found[0])
    return (first, found[1]) if first and found[1] not in (GONE, BASE) else None


class Torn(Fault):
    """An exposed stream goes over to the next version at some token after the swap. Opportunity: such a stream."""

    def serve(self, world: World, stream: Stream) -> None:
        met = across(world, stream)
        if met is not None and self.hit():
            first = self.rng.randrange(met[0], len(stream.made))
            stream.made[first:] = [met[1]] * (len(stream.made) - first)


class Flip(Fault):
    """As torn, for four tokens, then back. Opportunity: a stream with eight or more tokens after the swap."""

    def serve(self, world: World, stream: Stream) -> None:
        met = across(world, stream)
        if met is not None and len(stream.made) - met[0] >= 8 and self.hit():
            stream.made[met[0] : met[0] + 4] = [met[1]] * 4


class Hybrid(Torn):
    """New weights on the old version's cached keys and values: with markers, the new version from the swap on."""

    def serve(self, world: World, stream: Stream) -> None:
        met = across(world, stream)
        if met is not None and self.hit():
            stream.made[met[0] :] = [met[1]] * (len(stream.made) - met[0])


class Stale(Fault):
    """A new stream gets what was current `ms` ago. Opportunity: a stream sent after an ack within that time."""

    ms = 100.0

    def serve(self, world: World, stream: Stream) -> None:
        if stream.adapter != "a":
            return
        before = world.serving("a", stream.admitted - int(self.ms * MS))
        floor = [s for s in world.swaps if s.adapter == "a" and s.outcome == "ok" and 0 < s.acked < stream.sent]
        if before == GONE or not floor or before in (stream.made[0], floor[-1].content):
            return
        if self.hit():
            stream.made[:] = [before] * len(stream.made)


class Stale1s(Stale):
    ms = 1000.0


class Stale10s(Stale):
    ms = 10_000.0


class Replica(Fault):
    """One of three replicas applies a swap 200 ms late. Opportunity: a swap; a third of the streams goes there."""

    def __init__(self, p: float, rng: random.Random) -> None:
        super().__init__(p, rng)
        self.late: list[tuple[int, int, Content]] = []

    def swap(self, world: World, swap: Swap) -> None:
        if swap.takes is not None and self.hit():
            old = world.swaps[-1].content if world.swaps[-1].adapter == "a" else ("a", "v0")
            self.late.append((swap.applied, swap.applied + 200 * MS, old))

    def serve(self, world: World, stream: Stream) -> None:
        if stream.adapter != "a" or self.rng.random() >= 1 / 3:
            return
        i = bisect_left(self.late, stream.admitted, key=lambda x: x[0]) - 1
        if i >= 0 and stream.admitted < self.late[i][1]:
            stream.made[:] = [self.late[i][2]] * len(stream.made)


class Inversion(Fault):
    """The ack comes 250 ms after the effect; meanwhile half of the new streams get the old one. Opportunity: a swap."""

    def __init__(self, p: float, rng: random.Random) -> None:
        super().__init__(p, rng)
        self.late: list[tuple[int, int, Content]] = []

    def swap(self, world: World, swap: Swap) -> None:
        swap.applied = swap.invoked + 5 * MS
        swap.acked = swap.invoked + 255 * MS
        if self.hit():
            old = world.swaps[-1].content if world.swaps[-1].adapter == "a" else ("a", "v0")
            self.late.append((swap.applied, swap.acked, old))

    def serve(self, world: World, stream: Stream) -> None:
        if stream.adapter != "a":
            return
        i = bisect_left(self.late, stream.admitted, key=lambda x: x[0]) - 1
        if i >= 0 and stream.admitted < self.late[i][1] and self.rng.random() < 0.5 and stream.sent < self.late[i][1]:
            stream.made[:] = [self.late[i][2]] * len(stream.made)


class Prophetic(Fault):
    """A version is live 60 ms before its load is invoked. Opportunity: a swap."""

    def swap(self, world: World, swap: Swap) -> None:
        if self.hit():
            swap.applied = swap.invoked - 60 * MS


class Aborted(Fault):
    """A refused load takes effect. Opportunity: a refused load."""

    def swap(self, world: World, swap: Swap) -> None:
        if swap.outcome == "fail" and self.hit():
            swap.takes = swap.content


class Wiped(Fault):
    """A refused load removes the adapter. Opportunity: a refused load."""

    def swap(self, world: World, swap: Swap) -> None:
        if swap.outcome == "fail" and self.hit():
            swap.takes = GONE


class Lost(Fault):
    """Acked and never applied. Opportunity: a swap."""

    def swap(self, world: World, swap: Swap) -> None:
        if self.hit():
            swap.takes = None


class Noop(Fault):
    """Acked, and the base answers from then on. Opportunity: a swap."""

    def swap(self, world: World, swap: Swap) -> None:
        if self.hit():
            swap.takes = BASE


class Reverted(Fault):
    """The version before comes back 600 ms after the swap. Opportunity: a swap."""

    def swap(self, world: World, swap: Swap) -> None:
        if self.hit():
            old = world.serving_plan("a")
            world.apply("a", swap.applied + 600 * MS, old)


class Leak(Fault):
    """One token in 1,000 is a neighbour's. Opportunity: a thousand tokens of an adapter."""

    def __init__(self, p: float, rng: random.Random) -> None:
        super().__init__(p, rng)
        self.left = rng.randrange(1000)

    def serve(self, world: World, stream: Stream) -> None:
        if stream.adapter == "base":
            return
        other = "b" if stream.adapter == "a" else "a"
        while self.left < len(stream.made):
            if self.hit():
                stream.made[self.left] = world.serving(other, stream.admitted)
            self.left += 1000
        self.left -= len(stream.made)


class Fallback(Fault):
    """The base answers a stream of an adapter. Opportunity: a stream."""

    def serve(self, world: World, stream: Stream) -> None:
        if stream.adapter != "base" and self.hit():
            stream.made[:] = [None] * len(stream.made)


class BaseLeak(Fault):
    """An adapter answers a stream of the base. Opportunity: a stream."""

    def serve(self, world: World, stream: Stream) -> None:
        if stream.adapter == "base" and self.hit():
            stream.made[:] = [world.serving("a", stream.admitted)] * len(stream.made)


class Wire(Fault):
    """Base of faults of what leaves the server, through the tester's own decoder. Opportunity: a stream."""

    ending: Ending = "end"

    def serve(self, world: World, stream: Stream) -> None:
        if stream.made and self.hit():
            n = len(stream.made)
            kept = self.tokens(n)
            events = [_chunk(1000 + i, i == n - 1) for i in kept]
            reads = list(zip([stream.at[min(i, n - 1)] for i in kept], events, strict=True))
            at, data = zip(*self.wrap(reads, n), strict=True)
            found = decode(
                Exchange(
                    Ask(1, stream.adapter, [1], n), stream.sent, stream.admitted, at[-1], 200,
                    "text/event-stream", at, data, self.ending,
                )
            ).record  # fmt: skip
            stream.made = [stream.made[i] for i in kept][: found.tokens]
            stream.at = sorted(stream.at[min(i, n - 1)] for i in kept)[: found.tokens]
            stream.reason, stream.usage = found.reason, found.usage
            stream.finish, stream.done, stream.ended = found.finish, found.done, found.ended_ns

    def tokens(self, n: int) -> list[int]:
        """Which of the n tokens are sent, in order."""
        return list(range(n))

    def wrap(self, reads: list[tuple[int, bytes]], n: int) -> list[tuple[int, bytes]]:
        """The body's end."""
        end = reads[-1][0]
        return [*reads, (end, _usage(n)), (end, b"data: [DONE]\n\n")]


def _chunk(token: int, last: bool) -> bytes:
    choice = {"index": 0, "text": "x", "token_ids": [token], "finish_reason": "length" if last else None}
    return b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n"


def _usage(n: int) -> bytes:
    return b"data: " + orjson.dumps({"choices": [], "usage": {"completion_tokens": n}}) + b"\n\n"


class Drop(Wire):
    """A token is counted and never sent."""

    def tokens(self, n: int) -> list[int]:
        gone = self.rng.randrange(n - 1)
        return [i for i in range(n) if i != gone]


class Duplicate(Wire):
    """A token is sent twice."""

    def tokens(self, n: int) -> list[int]:
        twice = self.rng.randrange(n - 1)
        return sorted([*range(n), twice])


class Cut(Wire):
    """The connection ends before [DONE]."""

    ending = "cut"

    def tokens(self, n: int) -> list[int]:
        return list(range(self.rng.randrange(1, n)))

    def wrap(self, reads: list[tuple[int, bytes]], n: int) -> list[tuple[int, bytes]]:
        return reads


class ErrorFrame(Wire):
    """An error frame and [DONE] under HTTP 200."""

    def tokens(self, n: int) -> list[int]:
        return list(range(self.rng.randrange(1, n)))

    def wrap(self, reads: list[tuple[int, bytes]], n: int) -> list[tuple[int, bytes]]:
        error = b'data: {"error":{"message":"boom","type":"InternalServerError","code":500}}\n\n'
        return [*reads, (reads[-1][0], error), (reads[-1][0], b"data: [DONE]\n\n")]


class Short(Wire):
    """The stream finishes early in order, and usage says that all was sent."""

    def tokens(self, n: int) -> list[int]:
        return [*range(self.rng.randrange(1, n - 1)), n - 1]


class Reorder(Fault):
    """On a server that switches at the swap, the first token of the new version overtakes the last of the old one.

    Inside one version all markers are equal, so that no order of them could be told from another.
    Opportunity: a stream that lives through a swap.
    """

    def serve(self, world: World, stream: Stream) -> None:
        met = across(world, stream)
        if met is None or len(stream.made) - met[0] < 4 or met[0] < 4:
            return
        stream.made[met[0] :] = [met[1]] * (len(stream.made) - met[0])
        if self.hit():
            i = met[0]
            stream.made[i - 1], stream.made[i] = stream.made[i], stream.made[i - 1]
            # The pair leaves together, after the swap: the token that overtook cannot be read before it was made.
            stream.at[i - 1] = stream.at[i]


class Stall(Fault):
    """At a swap every stream in flight pauses for half a second. Opportunity: a swap."""

    ms = 500.0
    victims = ("a", "b", "base")

    def __init__(self, p: float, rng: random.Random) -> None:
        super().__init__(p, rng)
        self.pauses: list[int] = []

    def swap(self, world: World, swap: Swap) -> None:
        if self.hit():
            self.pauses.append(swap.applied)

    def serve(self, world: World, stream: Stream) -> None:
        if stream.adapter not in self.victims:
            return
        for begin in self.pauses[bisect_left(self.pauses, stream.admitted - int(self.ms * MS)) :]:
            if begin > stream.last:
                break
            until = begin + int(self.ms * MS)
            first = bisect_left(stream.at, begin)
            if first < len(stream.at) and stream.at[first] < until:
                by = until - stream.at[first]
                stream.at[first:] = [t + by for t in stream.at[first:]]


class BystanderStall(Stall):
    """As stall, of those who are not swapped."""

    victims = ("b", "base")


class Hangover(Fault):
    """After the first swap every step takes longer, for ever. Opportunity: the run; p is what it costs on top."""

    def serve(self, world: World, stream: Stream) -> None:
        first = world.swaps[2].applied
        i = bisect_left(stream.at, first)
        if i == len(stream.at):
            return
        anchor = stream.at[i - 1] if i else stream.at[0]
        stream.at[i:] = [anchor + int((t - anchor) * (1 + self.p)) for t in stream.at[i:]]


# Innocent disturbances


class LateTimeout(Fault):
    """A load times out (`info`) and applies at any later time, after later loads too. Opportunity: a swap."""

    def swap(self, world: World, swap: Swap) -> None:
        if self.hit():
            swap.outcome, swap.acked, swap.status = "info", self.rng.choice((0, swap.acked)), 0
            swap.applied = swap.invoked + int(self.rng.expovariate(1 / 1000.0) * MS)
            if self.rng.random() < 0.2:
                swap.takes = None


class Drift(Fault):
    """A token is now and then any other token of the vocabulary. Opportunity: a token of an adapter."""

    def serve(self, world: World, stream: Stream) -> None:
        if stream.adapter == "base":
            return
        at = int(self.rng.expovariate(self.p)) if self.p else len(stream.made)
        while at < len(stream.made):
            stream.made[at] = world.any_token(self.rng.randrange(VOCAB))
            at += 1 + int(self.rng.expovariate(self.p))


class NearTies(Drift):
    """Some prompts are near-ties at many of their tokens. Opportunity: a stream; then one token in ten drifts."""

    def serve(self, world: World, stream: Stream) -> None:
        if stream.adapter != "base" and self.hit():
            for i in range(len(stream.made)):
                if self.rng.random() < 0.1:
                    stream.made[i] = world.any_token(self.rng.randrange(VOCAB))


class Lagging(Fault):
    """The client is late: it reads up to 300 ms after the bytes came, and stamps later still. Opportunity: a stream."""

    def swap(self, world: World, swap: Swap) -> None:
        world.lag_ms = 80.0
        swap.acked += int(self.rng.uniform(0, 100) * MS)
        swap.invoked -= int(self.rng.uniform(0, 100) * MS)

    def serve(self, world: World, stream: Stream) -> None:
        stream.sent -= int(self.rng.uniform(0, 100) * MS)
        now = 0
        for i, t in enumerate(stream.at):
            now = max(now, t + int((self.rng.uniform(0, 300) if self.rng.random() < 0.1 else 1) * MS))
            stream.at[i] = now


class WallClock(Fault):
    """Two engines whose wall clocks stepped by five seconds either way. No opportunity: always."""

    def finish(self, world: World) -> None:
        world.runs, world.wall_step_ns = 2, self.rng.choice((-5000, 5000)) * MS


class Coalesced(Fault):
    """Chunks of several tokens, read at once. Opportunity: a token that waits for the next one."""

    def serve(self, world: World, stream: Stream) -> None:
        for i in range(len(stream.at) - 2, -1, -1):
            if self.hit():
                stream.at[i] = stream.at[i + 1]


class Restart(Fault):
    """The server is restarted under the streams: they are cut, new ones refused for 150 ms, then it is set up again.

    Opportunity: the run.
    """

    def swap(self, world: World, swap: Swap) -> None:
        if swap.index == world.shape.swaps // 2:
            self.down = swap.acked + 50 * MS
            self.up = self.down + 150 * MS
            for name, version in (("a", swap.version), ("b", "v0")):
                times = (self.up - 4 * MS, self.up - 3 * MS, self.up - 2 * MS)
                load = Swap(1000, name, version, *times, by="operator", mode="load", arm="sham")
                load.takes = (name, version)
                self.again = [*getattr(self, "again", []), load]

    def finish(self, world: World) -> None:
        for load in self.again:
            world.swaps.append(load)
        for s in world.streams:
            if s.admitted < self.down < s.last:
                n = bisect_left(s.at, self.down)
                s.made, s.at, s.reason, s.usage, s.finish, s.done = s.made[:n], s.at[:n], "cut", -1, "", False
                s.ended = self.down
            elif self.down <= s.admitted < self.up:
                s.made, s.at, s.reason, s.usage, s.finish, s.done = [], [], "refused", -1, "", False
                s.status, s.ended = 0, s.admitted


class EdgeTear(Drift):
    """Token drift, and a tear within two tokens of the end. Opportunity: a stream that lives through a swap."""

    def serve(self, world: World, stream: Stream) -> None:
        met = across(world, stream)
        if met is not None and self.rng.random() < 0.5:
            n = self.rng.choice((1, 2))
            if met[0] <= len(stream.made) - n:
                stream.made[-n:] = [met[1]] * n
        super().serve(world, stream)
