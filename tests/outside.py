"""A run's files written line by line, without the journal, and what must hold of every verdict: its counts add up, and
each witness can be found in the raw lines, by code that shares nothing with the analysis.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loadtest import history
from loadtest.analysis.verdict import Require, judge, to_json

T0, MS = 5_000_000_000_000, 1_000_000
ADAPTERS = ("a", "b")
SWAPS = 12
Row = dict[str, Any]
REQUIRE = Require(hangover=1.3, isolated_error_rate=0.0, isolated_stall=3.0)


def mark(adapter: str, k: int) -> int:
    return 20_000 + 100 * ADAPTERS.index(adapter) + k


def ns(ms: float) -> int:
    return T0 + round(ms * MS)


class World:
    """Lines and columns of several engines' files; everything in ms."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, float, Row]] = []
        self.columns: dict[str, tuple[list[int], list[int]]] = {"e0": ([], []), "e1": ([], [])}
        self.count = {"e0": 0, "e1": 0}
        self.ops = 0
        self.boot = {"e0": "boot", "e1": "boot"}

    def add(self, kind: str, at: float, engine: str = "e0", /, **row: Any) -> Row:
        line = {"kind": kind, **row}
        self.lines.append((engine, at, line))
        return line

    def op(self, adapter: str, version: str, start: float, end: float | None, how: str = "ok", **more: Any) -> int:
        """An operation; `end` None: never answered. By default a real swap in place by the scenario."""
        self.ops += 1
        engine, gone = more.pop("engine", "e0"), more.pop("gone", 0)
        by = more.setdefault("by", "scenario")
        words = {"mode": "inplace", "path": f"/p{self.ops}", "arm": "real" if by == "scenario" else "", **more}
        self.add("invoke", start, engine, op=self.ops, adapter=adapter, version=version, invoked_ns=ns(start), **words)
        if end is not None:
            self.add("ack", end, engine, op=self.ops, outcome=how, acked_ns=ns(end), gone_ns=gone and ns(gone))
        return self.ops

    def stream(self, adapter: str, sent: float, ids: list[int], engine: str = "e0", **more: Any) -> Row:
        """A stream whose tokens are read every `step` ms; more: at, step, fields of the line."""
        step = more.pop("step", 2.0)
        at = more.pop("at", [sent + step * (i + 1) for i in range(len(ids))])
        number = self.count[engine]
        self.count[engine] += 1
        tokens, arrivals = self.columns[engine]
        last = at[-1] if at else sent
        line = {
            "stream": number, "adapter": adapter, "user": "u", "intended_ns": ns(sent), "sent_ns": ns(sent),
            "max_tokens": len(ids), "ignore_eos": True, "head_ns": ns(sent), "first_ns": ns(at[0]) if at else 0,
            "last_ns": ns(last) if at else 0, "ended_ns": ns(last), "status": 200, "outcome": "ok", "reason": "",
            "detail": "", "finish": "length", "done": True, "tokens": len(ids), "offset": len(tokens),
            "chunks": len(ids), "usage": len(ids), **more,
        }  # fmt: skip
        tokens.extend(ids)
        arrivals.extend(round((t - sent) * 1000) for t in at)
        self.lines.append((engine, last, {"kind": "stream", **line}))
        return self.lines[-1][2]

    def streams(self, adapter: str = "a", engine: str = "") -> list[Row]:
        return [r for e, _, r in self.lines if r["kind"] == "stream" and r["adapter"] == adapter and engine in e]

    def ids(self, row: Row) -> list[int]:
        engine = next(e for e, _, r in self.lines if r is row)
        return self.columns[engine][0][row["offset"] : row["offset"] + row["tokens"]]

    def put(self, row: Row, ids: list[int]) -> None:
        """Other tokens, as many, for a stream."""
        engine = next(e for e, _, r in self.lines if r is row)
        self.columns[engine][0][row["offset"] : row["offset"] + row["tokens"]] = ids

    def find(self, kind: str, **fields: Any) -> Row:
        return next(r for _, _, r in self.lines if r["kind"] == kind and fields.items() <= r.items())

    def drop(self, row: Row) -> None:
        self.lines = [line for line in self.lines if line[2] is not row]

    def write(self, folder: Path) -> None:
        for engine, (tokens, arrivals) in self.columns.items():
            rows = [r for e, _, r in sorted(self.lines, key=lambda line: line[1]) if e == engine]
            (folder / f"history-{engine}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
            (folder / f"tokens-{engine}.i32").write_bytes(struct.pack(f"<{len(tokens)}i", *tokens))
            (folder / f"arrivals-{engine}.u32").write_bytes(struct.pack(f"<{len(arrivals)}I", *arrivals))
            (folder / f"prompts-{engine}.i32").write_bytes(struct.pack("<i", 150_000))


def swap_at(k: int) -> float:
    return 1000.0 + 200 * k


def served(sent: float) -> int:
    """The version that a server which pins at arrival gives a stream of the world below."""
    return max(k for k in range(SWAPS + 1) if k == 0 or swap_at(k) + 20 <= sent)


def world() -> World:
    """Twelve hotfixes of a, pinned; b and base look on; two engines. Streams have 40 tokens of 2 ms."""
    w = World()
    for engine in w.boot:
        about = {"role": "local", "boot_id": "boot", "pid": 1, "seed": 1, "wall_ns": 1, "tool": "t"}
        w.add("run", -1, engine, format=1, run="r", engine=engine, started_ns=ns(-1), **about)
        w.add("end", 10**9, engine, at_ns=ns(9000), reason="complete")
        for second in range(5):
            span = {"from_ns": ns(1000 * second), "at_ns": ns(1000 * second + 1000)}
            w.add("health", 1000 * second + 1000, engine, **span, lag_p99_ms=1.0, lag_max_ms=2.0, cpu_s=0.1,
                  open_streams=9)  # fmt: skip
    for adapter, k in [*(("a", k) for k in range(SWAPS + 1)), ("b", 0)]:
        w.add("version", 0, adapter=adapter, version=f"v{k}", sha=f"{adapter}{k}", path="", markers=[mark(adapter, k)])
    w.op("a", "v0", 1, 5, by="setup", mode="load")
    w.op("b", "v0", 6, 9, by="setup", mode="load")
    for i, (arm, start, end) in enumerate([("aa", 10, 1100), ("real", 1100, 3700), ("aa", 3700, 4400)]):
        w.add("phase", start, index=i, arm=arm, edge="start", at_ns=ns(start), adapter="a" if arm == "real" else "")
        w.add("phase", end, index=i, arm=arm, edge="end", at_ns=ns(end))
    for k in range(1, SWAPS + 1):
        w.op("a", f"v{k}", swap_at(k), swap_at(k) + 20)
    for i in range(120):
        sent = 500 + 30.0 * i
        w.stream("a", sent, [mark("a", served(sent))] * 40, f"e{i % 2}")
        w.stream("b", sent + 3, [mark("b", 0)] * 40, f"e{i % 2}")
        w.stream("base", sent + 6, [100 + (7 * i + 3 * j) % 900 for j in range(40)], f"e{i % 2}")
    w.op("a", "v0", 4500, 4510, by="rollback")
    return w


# -- what must hold of every verdict ----------------------------------------------------------------------------------


def raw(folder: Path) -> tuple[dict[str, Row], dict[str, list[int]], dict[str, list[int]], dict[str, Row]]:
    """(streams, ids, arrivals in ns, operations) by name, from the files alone."""
    streams: dict[str, Row] = {}
    ids: dict[str, list[int]] = {}
    at: dict[str, list[int]] = {}
    ops: dict[str, Row] = {}
    for path in sorted(folder.glob("history-*.jsonl")):
        engine = path.stem.removeprefix("history-")
        tokens = (folder / f"tokens-{engine}.i32").read_bytes()
        arrivals = (folder / f"arrivals-{engine}.u32").read_bytes()
        for line in path.read_text().splitlines():
            try:
                r = json.loads(line)
            except ValueError:
                continue
            if r["kind"] == "stream":
                name, part = f"{engine}-{r['stream']}", slice(4 * r["offset"], 4 * (r["offset"] + r["tokens"]))
                streams[name] = r
                ids[name] = [x for (x,) in struct.iter_unpack("<i", tokens[part])]
                at[name] = [r["sent_ns"] + 1000 * x for (x,) in struct.iter_unpack("<I", arrivals[part])]
            elif r["kind"] == "invoke":
                ops[f"{engine}-{r['op']}"] = {**r, "acked_ns": 0, "outcome": "info"}
            elif r["kind"] == "ack" and f"{engine}-{r['op']}" in ops:
                ops[f"{engine}-{r['op']}"] |= r
    return streams, ids, at, ops


def check_witness(folder: Path, guarantee: str, w: Row) -> None:
    """By hand: the tokens, their times and what makes them wrong."""
    streams, ids, at, ops = raw(folder)
    if not w["stream"]:
        assert w["kind"] in ("stall", "error_rate", "hangover")
        return
    r, shown, read = streams[w["stream"]], ids[w["stream"]], at[w["stream"]]
    assert w["adapter"] in (r["adapter"], ops.get(w["swap"], r)["adapter"])
    if not w["tokens"]:
        assert w["kind"] in (r["reason"], "truncated", "duplicated", "rejected", "lost", "reverted", "wiped")
        return
    first, last = w["tokens"][0], w["tokens"][-1]
    last = min(last, first + 8) if guarantee in ("valid", "isolated") else last
    around = (last, last) if w["kind"] == "flip" else (first, last)
    assert w["ids"] == shown[max(0, around[0] - 2) : around[1] + 3]
    decides = w["tokens"][-1] if w["kind"] in ("torn", "flip") else first
    assert w["at_ns"] == read[decides]
    mine = [o for o in ops.values() if o["adapter"] == r["adapter"] and o["mode"] != "unload"]
    mine = [o for o in mine if o["outcome"] != "fail"]
    of = {v: [o for o in mine if o["version"] == v and o["invoked_ns"] <= w["at_ns"]] for v in w["versions"]}
    marks = {v: mark(r["adapter"], int(v[1:])) for v in w["versions"] if r["adapter"] in ADAPTERS}
    match w["kind"]:
        case "torn":
            assert [shown[i] for i in w["tokens"]] == [marks[v] for v in w["versions"]]
            assert len(set(w["versions"])) == 2
        case "flip":
            newer, older = w["versions"]
            assert [shown[i] for i in w["tokens"]] == [marks[newer], marks[older]]
            assert first < last
            assert max(o["acked_ns"] or 2**61 for o in of[older]) < max(o["invoked_ns"] for o in of[newer])
        case "stale":
            older, newer = w["versions"]
            assert shown[first] == marks[older]
            done = [o for o in mine if o["version"] == newer and 0 < o["acked_ns"] < r["sent_ns"]]
            assert max(o["acked_ns"] or 2**61 for o in of[older]) < max(o["invoked_ns"] for o in done)
        case "inversion":
            newer, older = w["versions"]
            assert shown[first] == marks[older]
            known = [n for n in streams if marks[newer] in ids[n]]
            assert any(at[n][ids[n].index(marks[newer])] < r["sent_ns"] for n in known)
        case "prophetic" | "aborted" | "alien":
            assert shown[first] == marks[w["versions"][0]]
            assert not of[w["versions"][0]]
        case "leak":
            assert shown[first] in [mark(x, int(w["versions"][0][1:])) for x in ADAPTERS if x != r["adapter"]]
        case "fallback":
            assert not set(shown[first : w["tokens"][-1] + 1]) & set(range(20_000, 20_200))
        case other:
            pytest.fail(f"{other}: no way to check it")


def check_sums(d: Row) -> None:
    """Counts add up."""
    s, swaps = d["streams"], d["swaps"]
    assert s["ok"] + s["fail"] + s["info"] == s["attempted"] == sum(g["streams"] for g in d["adapters"])
    assert sum(s["by_reason"].values()) == s["fail"] + s["info"]
    assert sum(g["streams"] for g in d["arms"]) == s["attempted"]
    if "by_replica" in s:
        assert sum(r["attempted"] for r in s["by_replica"]) == s["attempted"]
    assert Counter(x["outcome"] for x in swaps["list"]) == Counter({k: swaps[k] for k in ("ok", "fail", "info")})
    assert d["tokens"]["attributed"] <= d["tokens"]["total"] == sum(g["tokens"] for g in d["adapters"])
    for g in d["guarantees"].values():
        assert g["violations"] <= max(g["exposed"], 1)
        assert (g["status"] == "FAIL") == (g["violations"] > 0) == bool(g["witnesses"]) == bool(g["kinds"])
        assert sum(g["kinds"].values()) >= g["violations"]
        low, high = g["interval"]
        assert 0 <= low <= high <= 1


def verdict(folder: Path, w: World, require: Require = REQUIRE) -> Row:
    w.write(folder)
    d = to_json(judge(history.load(folder), require))
    check_sums(d)
    for name, g in d["guarantees"].items():
        for one in g["witnesses"]:
            check_witness(folder, name, one)
    return d
