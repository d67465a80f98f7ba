"""The records that cross borders; the field comments are the history format's specification.

A run folder holds, per engine E ("e0", "e1", ...):

    history-E.jsonl     one JSON object a line, `kind` first; appended, never rewritten
    tokens-E.i32        token ids, little-endian int32, streams one after another
    arrivals-E.u32      for each token: µs from the stream's `sent_ns` to the read that brought it (uint32; rounded up,
                        so that no token is dated before it was read; the largest value, 71 minutes, stands
                        for anything later up to the stream's `last_ns`)
    prompts-E.i32       prompt token ids, little-endian int32

and, when tokens were attributed by asking the server again after the traffic (scoring.py):

    scores.jsonl        `pin`, `score` and `scored` lines
    margins.f32         for each token of a stream, nats by which a version prefers another token there (0: it is the
                        version's own choice); teacher-forced, prompt and earlier tokens as they were
    references.i32      token ids that a version generates for a stream's prompt, greedily

Rules
1. Columns are written before the `stream` line that names their `offset` and `tokens`; what no line names is torn tail.
2. An operation is written when it begins (`send`, `invoke`) and again when it ends (`stream`, `ack`). One without
   an end reads back as outcome `info`.
3. Times are CLOCK_MONOTONIC nanoseconds (int). 0 means "never happened". Times of two files compare only if their
   `boot_id` is equal.
4. Readers ignore unknown keys and unknown kinds; an absent key has the field's default.
5. Every number names one stream, operation or phase of its file, and ends once; tokens belong to one stream. What
   contradicts that is named, and is no evidence (contradictions.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

FORMAT = 1

Outcome = Literal["ok", "fail", "info"]
BAD = "bad:"  # prefix of the label of a load that must be refused
Arm = Literal["aa", "sham", "real", "bad", ""]

# Why a stream is not `ok`. fail: the server broke the contract. info: nobody can say, or our own side ended it.
REASONS_FAIL = (
    "truncated",  # [DONE] came, but without a finish reason or with fewer tokens than usage or max_tokens says
    "cut",  # the connection ended before [DONE]
    "in_band_error",  # an error frame inside a 200 stream
    "rejected",  # an HTTP status other than 200
    "refused",  # the TCP connection was refused or reset before a response head
    "duplicated",  # two finish reasons, or more tokens than usage says or than were asked for
    "protocol",  # not SSE, not JSON, bad chunking, wrong content type
)
REASONS_INFO = (
    "stalled",  # a deadline of the client passed
    "cancelled",  # the user or the end of the run cut it
    "unfinished",  # the history ends before the stream does (crash of the tester)
)


@dataclass(frozen=True, slots=True)
class Run:
    """First line of each file."""

    kind: ClassVar[str] = "run"
    format: int
    run: str  # name of the results folder
    engine: str  # "e0", ...
    role: str  # "local" | "master" | "worker" | "cli"
    boot_id: str  # names the monotonic clock's domain
    pid: int
    seed: int
    started_ns: int
    wall_ns: int  # CLOCK_REALTIME at started_ns, for humans only
    tool: str  # loadtest's version
    replicas: tuple[str, ...] = ()  # URLs of a fleet, without secrets; () for one server


@dataclass(frozen=True, slots=True)
class Phase:
    """Edge of a phase."""

    kind: ClassVar[str] = "phase"
    index: int
    arm: Arm
    edge: Literal["start", "end"]
    at_ns: int
    adapter: str = ""  # the hotfixed adapter, "" in aa


@dataclass(frozen=True, slots=True)
class Version:
    """A content under an adapter's name. Written before it is first loaded."""

    kind: ClassVar[str] = "version"
    adapter: str  # "base" for the base model
    version: str  # label, unique within the adapter: "v0", "v1", ... (equal content = equal label)
    sha: str  # content hash (adapters.peft.content_hash), "" for base
    path: str  # local path of the first copy
    markers: tuple[int, ...] = ()  # token ids that only this content emits; () = not a marker adapter


@dataclass(frozen=True, slots=True)
class Invoke:
    """An admin operation begins; written and flushed before its bytes leave."""

    kind: ClassVar[str] = "invoke"
    op: int  # unique in the file
    adapter: str
    mode: Literal["load", "inplace", "reload", "unload"]  # reload = unload + load, judged as one operation
    version: str  # label of the content asked for; "" for unload; BAD + how for a load that must be refused
    path: str  # path as the server sees it
    arm: Arm  # "" for setup and rollback
    by: Literal["setup", "scenario", "operator", "rollback"]
    invoked_ns: int
    phase: int = -1
    content: str = ""  # of a load that must be refused: the version that its folder was made from


@dataclass(frozen=True, slots=True)
class Ack:
    """The operation's end."""

    kind: ClassVar[str] = "ack"
    op: int
    outcome: Outcome  # fail = a parsed refusal; info = time-out, reset, unreadable answer: may happen, now or later
    acked_ns: int
    status: int = 0  # HTTP status, 0 without one
    reason: str = ""  # short code: "timeout", "reset", "not_found", "already_loaded", "invalid", "server_error", ...
    message: str = ""  # the server's words, secrets removed, at most 500 characters
    gone_ns: int = 0  # reload: when the unload was acked


@dataclass(frozen=True, slots=True)
class ReplicaAck:
    """One replica's answer to an operation on a fleet, written before the operation's `ack`."""

    kind: ClassVar[str] = "replica_ack"
    op: int
    replica: int  # index into Run.replicas
    outcome: Outcome
    acked_ns: int
    status: int = 0
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Send:
    """A stream's request is about to leave."""

    kind: ClassVar[str] = "send"
    stream: int  # unique in the file
    adapter: str  # what went into `model`: an adapter's name or "base"
    user: str  # who sent it, e.g. "AdapterUser-3" or "arrivals"
    intended_ns: int  # when it should have left (open loop); = sent_ns in closed loop
    sent_ns: int
    max_tokens: int
    ignore_eos: bool = True  # nothing may end it before max_tokens: false also where it asked for stop strings or ids
    replica: int = 0  # which server of a fleet it goes to, an index into Run.replicas


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream has ended; repeats what `send` said so that one line is enough."""

    kind: ClassVar[str] = "stream"
    stream: int
    adapter: str
    user: str
    intended_ns: int
    sent_ns: int
    max_tokens: int
    ignore_eos: bool
    head_ns: int  # response head read
    first_ns: int  # read that completed the first token-bearing event
    last_ns: int  # read that completed the last token-bearing event
    ended_ns: int  # end of the stream as seen here
    status: int  # HTTP status, 0 without one
    outcome: Outcome
    reason: str  # "" when ok, else one of REASONS_*
    detail: str  # human sentence, secrets removed, at most 300 characters
    finish: str  # finish_reason, "" without one
    done: bool  # [DONE] was read
    tokens: int  # ids received
    offset: int  # index of the first id in tokens-E.i32 and arrivals-E.u32
    chunks: int  # token-bearing events
    usage: int  # completion_tokens as the server counted, -1 without
    prompt: int = 0  # number of prompt ids in prompts-E.i32
    prompt_offset: int = 0
    text_only: bool = False  # the server sent no ids: `tokens` counts events, the ids are -1
    replica: int = 0


@dataclass(frozen=True, slots=True)
class Health:
    """The client's own health over one interval (about a second)."""

    kind: ClassVar[str] = "health"
    from_ns: int
    at_ns: int
    lag_p99_ms: float  # event loop lateness, 99th percentile of the interval's samples
    lag_max_ms: float
    cpu_s: float  # CPU seconds of the engine process in the interval
    open_streams: int
    dropped: int = 0  # records that could not be written
    lags_us: tuple[int, ...] = ()  # every sample of the interval, about a hundred; µs late


@dataclass(frozen=True, slots=True)
class Scrape:
    """The target's own /metrics, read about once a second by the engine that swaps; -1 where it does not say."""

    kind: ClassVar[str] = "scrape"
    at_ns: int  # the answer was read
    took_ms: float
    running: float = -1.0  # requests in the batch
    waiting: float = -1.0  # requests queued
    kv_usage: float = -1.0  # share of the KV cache in use, 0 to 1
    prompt_tokens: float = -1.0  # counter
    generation_tokens: float = -1.0  # counter
    cache_queries: float = -1.0  # counter: prompt tokens looked up in the prefix cache
    cache_hits: float = -1.0  # counter: of those, found
    preemptions: float = -1.0  # counter
    lora_slots: int = -1  # adapters that fit on the device at once
    lora_running: str = ""  # adapters with a request in the batch, comma between
    lora_waiting: str = ""  # adapters with a request queued, comma between


@dataclass(frozen=True, slots=True)
class Undo:
    """Rollback journal: `planned` before the first swap of an adapter, `played` after its undo was acked."""

    kind: ClassVar[str] = "undo"
    adapter: str
    version: str
    path: str  # as the server sees it
    local_path: str
    state: Literal["planned", "played", "failed"]
    at_ns: int
    url: str = ""  # of the target, without secrets


@dataclass(frozen=True, slots=True)
class Event:
    """Anything else worth a line: "target_died", "interrupt", "run_time_over", "worker_missing", "error", ..."""

    kind: ClassVar[str] = "event"
    at_ns: int
    what: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """Last line of a file that was closed in order."""

    kind: ClassVar[str] = "end"
    at_ns: int
    reason: str  # "complete" | "run_time" | "interrupted" | "target_died" | "error"


@dataclass(frozen=True, slots=True)
class Pin:
    """A copy of a version under a name of its own, `adapter--sha8`: `planned` before it is loaded, then what came."""

    kind: ClassVar[str] = "pin"
    name: str
    adapter: str
    version: str
    path: str  # as the server sees it
    state: Literal["planned", "loaded", "refused", "unloaded", "failed"]
    url: str  # of the target, without secrets
    pid: int  # of the process that loads and unloads it
    boot_id: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """What one version says about one stream; written after its column."""

    kind: ClassVar[str] = "score"
    method: Literal["margins", "reference"]
    stream: str  # its name in the merged history: "e0-17"
    adapter: str  # whose version it is; "base" for the base model
    version: str
    tokens: int
    offset: int  # index of the first value in margins.f32 or references.i32


@dataclass(frozen=True, slots=True)
class Scored:
    """Last line: scoring has ended."""

    kind: ClassVar[str] = "scored"
    adapters: tuple[str, ...]  # whose streams were scored
    streams: int
    seconds: float
    incomplete: str = ""  # why not all of it was done


Line = Run | Phase | Version | Invoke | Ack | ReplicaAck | Send | Stream | Health | Scrape | Undo | Event | End
Record = Line | Pin | Score | Scored
KINDS: dict[str, type[Record]] = {
    t.kind: t for t in (Run, Phase, Version, Invoke, Ack, ReplicaAck, Send, Stream, Health, Scrape, Undo, Event, End)
}
