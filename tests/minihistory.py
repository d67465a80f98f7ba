"""A mini-language for literal histories; times are milliseconds, `#` begins a comment.

    load A V INVOKED ACKED OUTCOME [words]   `-` for an ack that never came. words: setup rollback operator (who; the
                                             first load of an adapter is setup, others scenario), real sham bad (arm;
                                             real), load inplace reload (mode; inplace), gone=MS, status=N
    unload A INVOKED ACKED OUTCOME
    stream A SENT: TOKENS [| words]          words: a reason (cut, rejected, stalled, cancelled ...), usage=N, max=N,
                                             ended=MS, status=N, replica=N, nodone, nofinish, text, eos
    phase ARM START END [A]
    health FROM TO LAG [DROPPED]             default: one over everything, lag 1 ms
    end REASON | noend | event MS WHAT | engine NAME BOOT | declare A V

TOKENS: `v0` a marker of this adapter's v0, `b/v1` of b's v1, `x` a token that nobody marks; `v0*5` five of them;
`v0@12` read at 12 ms. Without `@` a token is read 1 ms after the one before it, the first 1 ms after the stream was
sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loadtest import records
from loadtest.history import History, Op, Span, StreamTable

ORIGIN = 1_000_000_000  # ns; so that no time is 0, which means "never"
FIRST_MARKER = 5000
OUTCOME = {"ok": 0, "fail": 1, "info": 2}


def ns(ms: float | str) -> int:
    """Monotonic ns of a time of the mini-language."""
    return ORIGIN + round(float(ms) * 1e6)


@dataclass
class Builder:
    """Collects what the lines say; `history()` makes columns of it."""

    ops: list[Op] = field(default_factory=list)
    streams: list[dict[str, Any]] = field(default_factory=list)
    labels: dict[tuple[str, str], int] = field(default_factory=dict)
    phases: list[Span] = field(default_factory=list)
    health: list[records.Health] = field(default_factory=list)
    events: list[records.Event] = field(default_factory=list)
    engines: list[tuple[str, str]] = field(default_factory=lambda: [("e0", "boot")])
    end: str = "complete"

    def marker(self, adapter: str, label: str) -> int:
        """Token id that marks a content, declared on first use."""
        return self.labels.setdefault((adapter, label), FIRST_MARKER + len(self.labels))

    def load(self, adapter: str, label: str, invoked: str, acked: str, outcome: str, *words: str) -> None:
        if not label.startswith("bad:"):
            self.marker(adapter, label)
        first = not any(op.adapter == adapter for op in self.ops)
        by = next((w for w in words if w in ("setup", "rollback", "operator")), "setup" if first else "scenario")
        arm = next((w for w in words if w in ("real", "sham", "bad")), "real" if by == "scenario" else "")
        mode = next((w for w in words if w in ("load", "inplace", "reload")), "load" if first else "inplace")
        values = dict(w.split("=") for w in words if "=" in w)
        self.op(adapter, mode, label, (invoked, acked, outcome), by=by, arm=arm, **values)

    def op(self, adapter: str, mode: str, label: str, times: tuple[str, str, str], **more: str) -> None:
        invoked, acked, outcome = times
        self.ops.append(
            Op(
                name=f"e0-{len(self.ops)}",
                adapter=adapter,
                mode=mode,
                version=label,
                path=f"/adapters/{adapter}/{len(self.ops)}",
                arm=more.get("arm", ""),
                by=more.get("by", "scenario"),
                phase=-1,
                invoked=ns(invoked),
                acked=0 if acked == "-" else ns(acked),
                outcome=outcome,
                status=int(more.get("status", 200 if outcome == "ok" else 0)),
                gone=ns(more["gone"]) if "gone" in more else 0,
                content=more.get("of", ""),
            )
        )

    def stream(self, adapter: str, sent: str, tokens: list[str], words: list[str]) -> None:
        values = dict(w.split("=") for w in words if "=" in w)
        ids, at, now = [], [], float(sent)
        for token in tokens:
            what, _, when = token.partition("@")
            what, _, count = what.partition("*")
            for i in range(int(count or 1)):
                now = float(when) if when and i == 0 else now + 1
                ids.append(self.token(adapter, what, len(ids)))
                at.append(ns(now))
        reasons = [w for w in words if w in records.REASONS_FAIL + records.REASONS_INFO]
        reason = reasons[0] if reasons else ""
        last = at[-1] if at else ns(sent)
        self.streams.append(
            {
                "adapter": adapter,
                "sent": ns(sent),
                "ids": [-1] * len(ids) if "text" in words else ids,
                "at": at,
                "reason": reason,
                "outcome": 2 if reason in records.REASONS_INFO else 1 if reason else 0,
                "status": int(values.get("status", 404 if reason == "rejected" else 200)),
                "ended": ns(values["ended"]) if "ended" in values else last,
                "usage": int(values.get("usage", len(ids))),
                "max": int(values.get("max", len(ids))),
                "finish": "" if "nofinish" in words or reason else "length",
                "done": "nodone" not in words and not reason,
                "text": "text" in words,
                "eos": "eos" not in words,
                "replica": int(values.get("replica", 0)),
            }
        )

    def token(self, adapter: str, what: str, position: int) -> int:
        if what == "x":
            return 100 + (7 * position + 3 * len(self.streams)) % 900
        owner, slash, label = what.rpartition("/")
        return self.marker(owner if slash else adapter, label)

    def table(self) -> tuple[StreamTable, np.ndarray, np.ndarray]:
        numbered = list(enumerate(self.streams))
        rows = [r for _, r in sorted(numbered, key=lambda r: (r[1]["sent"], r[0]))]
        names = [f"e0-{i}" for i, _ in sorted(numbered, key=lambda r: (r[1]["sent"], r[0]))]
        adapters = tuple(sorted({r["adapter"] for r in rows}))
        reasons = ("", *sorted({r["reason"] for r in rows} - {""}))

        def column(values: list[Any], dtype: Any = np.int64) -> Any:
            return np.array(values, dtype=dtype)

        counts = column([len(r["ids"]) for r in rows])
        sent = column([r["sent"] for r in rows])
        phase = np.full(len(rows), -1, np.int32)
        for p in self.phases:
            phase[(sent >= p.start) & (sent < p.end)] = p.index
        table = StreamTable(
            name=names,
            adapters=adapters,
            adapter=column([adapters.index(r["adapter"]) for r in rows], np.int32),
            user=["u"] * len(rows),
            intended=sent,
            sent=sent,
            head=sent,
            first=column([r["at"][0] if r["at"] else 0 for r in rows]),
            last=column([r["at"][-1] if r["at"] else 0 for r in rows]),
            ended=column([0 if r["reason"] == "unfinished" else r["ended"] for r in rows]),
            status=column([r["status"] for r in rows], np.int32),
            outcome=column([r["outcome"] for r in rows], np.int8),
            reasons=reasons,
            reason=column([reasons.index(r["reason"]) for r in rows], np.int16),
            detail=[""] * len(rows),
            finish=[r["finish"] for r in rows],
            done=column([r["done"] for r in rows], bool),
            max_tokens=column([r["max"] for r in rows], np.int32),
            ignore_eos=column([r["eos"] for r in rows], bool),
            tokens=counts,
            start=np.cumsum(counts) - counts,
            chunks=counts.astype(np.int32),
            usage=column([r["usage"] for r in rows]),
            prompt=column([0 for _ in rows]),
            prompt_start=column([0 for _ in rows]),
            text_only=column([r["text"] for r in rows], bool),
            phase=phase,
            replica=column([r["replica"] for r in rows], np.int32),
        )
        ids = column([t for r in rows for t in r["ids"]], np.int32)
        return table, ids, column([t for r in rows for t in r["at"]])

    def history(self) -> History:
        table, ids, at = self.table()
        times = [ORIGIN, *at.tolist(), *table.ended.tolist(), *(max(o.acked, o.invoked) for o in self.ops)]
        health = self.health or [records.Health(ORIGIN, max(times), 1.0, 2.0, 0.1, 1)]
        run = {"format": 1, "run": "mini", "role": "local", "pid": 1, "seed": 0, "wall_ns": 0, "tool": "0"}
        return History(
            runs=tuple(
                records.Run(engine=e, boot_id=b, started_ns=ORIGIN, **run)  # type: ignore[arg-type]
                for e, b in self.engines
            ),
            streams=table,
            ids=ids,
            at=at,
            prompts=np.empty(0, np.int32),
            ops=tuple(sorted(self.ops, key=lambda op: (op.invoked, op.name))),
            versions=tuple(
                records.Version(adapter=a, version=v, sha=f"{a}-{v}", path="", markers=(t,))
                for (a, v), t in self.labels.items()
            ),
            phases=tuple(self.phases),
            health=tuple(health),
            undo=(),
            events=tuple(self.events),
            ends=tuple(records.End(max(times), self.end) for _ in self.engines) if self.end else (),
            problems=(),
        )


def parse(text: str) -> Builder:
    """Read the mini-language. Raises ValueError for a line it does not know."""
    b = Builder()
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        kind, _, rest = line.partition(" ")
        words = rest.split()
        match kind:
            case "load":
                b.load(*words)
            case "unload":
                b.op(words[0], "unload", "", (words[1], words[2], words[3]))
            case "stream":
                head, _, body = rest.partition(":")
                adapter, sent = head.split()
                tokens, _, more = body.partition("|")
                b.stream(adapter, sent, tokens.split(), more.split())
            case "phase":
                span = Span(len(b.phases), words[0], words[3] if len(words) > 3 else "", ns(words[1]), ns(words[2]))
                b.phases.append(span)
            case "health":
                dropped = int(words[3]) if len(words) > 3 else 0
                b.health.append(
                    records.Health(ns(words[0]), ns(words[1]), float(words[2]), float(words[2]), 0.1, 1, dropped)
                )
            case "event":
                b.events.append(records.Event(ns(words[0]), words[1]))
            case "end" | "noend":
                b.end = words[0] if kind == "end" else ""
            case "engine":
                b.engines.append((words[0], words[1]))
            case "declare":
                b.marker(words[0], words[1])
            case _:
                raise ValueError(f"unknown line: {raw!r}")
    return b


def history(text: str) -> History:
    """The history that a text of the mini-language describes."""
    return parse(text).history()
