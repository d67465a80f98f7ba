"""Lines of a history that contradict each other: each contradiction is named, and what cannot be true accuses nobody.

Rules
1. Two operations of one number, two answers to one operation, an answer before the operation was invoked or without a
   time: `info`, it may have happened.
2. An answer to an operation that no line invokes, or an `invoke` that cannot be read: operations are missing. So are
   they, perhaps, where a line in the middle of a file cannot be read. What came before what is then not on record.
3. A stream that ended twice, whose outcome and reason do not belong together, whose times run backwards, or whose
   tokens another stream names too, is `unfinished` (columns.py).
4. A file begins once, on one clock, and ends once, with its last line and after all that it dates; all files are of one
   run. One that ended in order says how late its engine was.
5. A version that was declared with two contents has no markers. Phases that overlap, versions that are not declared,
   replicas that the run does not have and sham swaps to another version than the one in service are only named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from loadtest import records
from loadtest.columns import LARGE
from loadtest.lines import File, typed

_TWO = "declared with two contents"


@dataclass(frozen=True, slots=True)
class Op:
    """An admin operation: `invoke` joined with its `ack`."""

    name: str  # "e0-3"
    adapter: str
    mode: str
    version: str
    path: str
    arm: str
    by: str
    phase: int
    invoked: int
    acked: int  # 0 = never
    outcome: str
    status: int = 0
    reason: str = ""
    message: str = ""
    gone: int = 0
    answers: tuple[records.ReplicaAck, ...] = ()  # of a fleet, by replica
    content: str = ""  # of a load that must be refused: the version that its folder was made from


def operations(file: File, problems: list[str]) -> list[Op]:
    """Each operation of a file with its answer (rules 1 and 2)."""
    where = f"history-{file.engine}.jsonl"
    invokes, acks = typed(file, records.Invoke, problems), typed(file, records.Ack, problems)
    file.blind |= len(invokes) < len(file.of("invoke"))
    times, answers = Counter(i.op for i in invokes), Counter(a.op for a in acks)
    by_op = {a.op: a for a in acks}
    parts: dict[int, list[records.ReplicaAck]] = {}
    for answer in typed(file, records.ReplicaAck, problems):
        parts.setdefault(answer.op, []).append(answer)
    for op in sorted({*answers, *parts} - set(times)):
        file.blind = True
        problems.append(f"{where}: an answer to operation {op}, which no line invokes")
    out = []
    for i in invokes:
        a = by_op.get(i.op)
        why = _doubt(i, a, times[i.op], answers[i.op])
        if why:
            problems.append(f"{where}: operation {i.op} {why}; it counts as never answered")
        if a is None or why:
            a = records.Ack(op=i.op, outcome="info", acked_ns=0, reason="unfinished")
        out.append(_joined(f"{file.engine}-{i.op}", i, a, tuple(parts.get(i.op, ()))))
    return out


def _joined(name: str, i: records.Invoke, a: records.Ack, answers: tuple[records.ReplicaAck, ...]) -> Op:
    return Op(
        name=name,
        adapter=i.adapter,
        mode=i.mode,
        version=i.version,
        path=i.path,
        arm=i.arm,
        by=i.by,
        phase=i.phase,
        invoked=i.invoked_ns,
        acked=a.acked_ns,
        outcome=a.outcome,
        status=a.status,
        reason=a.reason,
        message=a.message,
        gone=a.gone_ns,
        answers=answers,
        content=i.content,
    )


def _doubt(invoke: records.Invoke, ack: records.Ack | None, times: int, answers: int) -> str:
    """Why an operation's answer is not believed, "" when it is, or when there is none."""
    if times > 1:
        return f"is invoked {times} times"
    if answers > 1:
        return f"has {answers} answers"
    if ack is None or ack.outcome == "info":
        return ""
    if ack.acked_ns == 0:
        return f"is {ack.outcome} at no time"
    return "was answered before it was invoked" if ack.acked_ns < invoke.invoked_ns else ""


def headers(files: Sequence[File], problems: list[str]) -> tuple[records.Run, ...]:
    """One header for each file, and one more for each further clock that it names (rule 4)."""
    out: list[records.Run] = []
    for f in files:
        where, found = f"history-{f.engine}.jsonl", typed(f, records.Run, problems)
        if not f.last:
            problems.append(f"{where}: not a line of it can be read")
        elif not found:
            problems.append(f"{where}: no usable `run` line: whose clock its times are is unknown")
            boot = f"of {where}, unknown"
            found = [records.Run(records.FORMAT, "", f.engine, "", boot, 0, 0, 0, 0, "")]
        if len(found) > 1:
            problems.append(f"{where}: {len(found)} `run` lines: a file begins once")
        for run in found:
            if run.engine != f.engine:
                problems.append(f"{where}: its `run` line is of engine {run.engine!r}")
            if run.format != records.FORMAT:
                problems.append(f"{where}: format {run.format}; this version reads {records.FORMAT}")
        out += {run.boot_id: run for run in reversed(found)}.values()
    names = sorted({run.run for run in out if run.run})
    if len(names) > 1:
        problems.append(f"files of {len(names)} runs in one folder: {', '.join(names[:3])}")
    return tuple(out)


def ends(files: Iterable[File], problems: list[str]) -> tuple[records.End, ...]:
    """At most one end for each file (rule 4)."""
    out: list[records.End] = []
    for f in files:
        found = typed(f, records.End, problems)
        late = _latest(f) - found[-1].at_ns if found else 0
        if late > 0:
            problems.append(f"history-{f.engine}.jsonl: it ended {late / 1e6:.1f} ms before what it goes on to date")
        if len(found) > 1 or (found and not f.closed):
            problems.append(f"history-{f.engine}.jsonl: lines after its end")
        if found and f.rows.seen and "health" not in f.last:
            problems.append(f"history-{f.engine}.jsonl: no `health` line: how late this engine was is unknown")
        out += found[-1:]
    return tuple(out)


def _latest(file: File) -> int:
    """The last time that a line of the file names, its end left out."""
    others = [row for kind, rows in file.lines.items() if kind != records.End.kind for row in rows]
    found = (row.get(key) for row in others for key in ("at_ns", "acked_ns", "invoked_ns"))
    return max(file.latest, *(t for t in found if type(t) is int and abs(t) < LARGE), 0)


def phases(edges: Iterable[records.Phase], problems: list[str]) -> None:
    """Name phases that begin or end twice, end before they begin, or overlap."""
    seen: dict[tuple[int, str], int] = {}
    for e in edges:
        if (e.index, e.edge) in seen:
            problems.append(f"phase {e.index}: two lines for its {e.edge}")
        seen[e.index, e.edge] = e.at_ns
    spans = [(at, seen.get((i, "end"), at), i) for (i, edge), at in seen.items() if edge == "start"]
    known = {i for _, _, i in spans}
    problems += [f"phase {i} ends but never begins" for i, edge in seen if edge == "end" and i not in known]
    spans.sort()
    for n, (start, end, i) in enumerate(spans):
        if end < start:
            problems.append(f"phase {i} ends before it begins")
        elif n + 1 < len(spans) and end > spans[n + 1][0]:
            problems.append(f"phase {i} ends after phase {spans[n + 1][2]} begins")


def versions(declared: Iterable[records.Version], problems: list[str]) -> tuple[records.Version, ...]:
    """One declaration for each label: several engines may declare the same content (rule 5)."""
    out: dict[tuple[str, str], records.Version] = {}
    for v in declared:
        if any(not 0 <= t < 2**31 for t in v.markers):
            problems.append(f"{v.adapter} {v.version} has markers that are no token ids; they are ignored")
            v = replace(v, markers=tuple(t for t in v.markers if 0 <= t < 2**31))
        first = out.setdefault((v.adapter, v.version), v)
        if (first.sha, sorted(first.markers)) != (v.sha, sorted(v.markers)) and first.sha != _TWO:
            problems.append(f"{v.adapter} {v.version} is declared with two contents; nobody knows what it emits")
            out[v.adapter, v.version] = replace(first, sha=_TWO, markers=())
    return tuple(out.values())


def unknown(
    runs: Iterable[records.Run],
    declared: Iterable[records.Version],
    ops: Iterable[Op],
    replica: npt.NDArray[np.int32],
    problems: list[str],
) -> None:
    """Name versions that are loaded and never declared, and replicas that the run does not have."""
    known = {(v.adapter, v.version) for v in declared}
    for op in ops:
        key = (op.adapter, op.version)
        if op.mode != "unload" and not op.version.startswith(records.BAD) and key not in known:
            problems.append(f"operation {op.name} loads {' '.join(key)}, which no line declares")
            known.add(key)
    size = max((len(run.replicas) for run in runs), default=0) or 1
    strays = int(((replica < 0) | (replica >= size)).sum())
    if strays:
        problems.append(f"{strays} streams name a replica that this run does not have")
    for op in ops:
        told = Counter(a.replica for a in op.answers)
        odd = sorted(r for r, times in told.items() if not 0 <= r < size or times > 1)
        if odd:
            problems.append(f"operation {op.name}: replica {odd[0]} is not of this run, or answered twice")


def shams(ops: Sequence[Op], problems: list[str]) -> None:
    """Name sham swaps to a version that no load that may have been in service put there. `ops` by `invoked`."""
    for op in ops:
        if op.arm != "sham":
            continue
        mine = [o for o in ops if o.adapter == op.adapter and o.mode != "unload" and o.outcome != "fail"]
        known = [o for o in mine if o is not op and o.invoked <= op.invoked]
        done = [o.invoked for o in known if o.outcome == "ok" and 0 < o.acked < op.invoked]
        serving = {o.version for o in known if o.outcome != "ok" or not o.acked or o.acked >= max(done, default=0)}
        if known and op.version not in serving:
            problems.append(f"sham swap {op.name} of {op.adapter} loads {op.version}, which was not in service")
