"""A run's folder made up at any size, for the cost of judging it.

    python bench/synthetic.py FOLDER STREAMS [TORN_SHARE]

STREAMS streams of 128 tokens by 500 closed-loop users: 6 of 10 on tenant-a, which is hotfixed 200 times (100 sham
before, 100 real), 3 on a bystander, 1 on the base. Each stream keeps the version it began with, but TORN_SHARE of
them (default 0.001), which change to the newest in the middle. Same arguments, same folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import orjson

from loadtest import records
from loadtest.journal import encode

TOKENS = 128
USERS = 500
SWAPS = 200
ITL_NS = 20_000_000
ACK_NS = 80_000_000
VOCAB = 32_000
FIRST_MARKER = 40_000
BATCH = 20_000
SCENARIO = """\
title: synthetic
target: {url: embedded}
adapters: {tenant-a: {versions: markers}, tenant-b: {versions: markers 1}}
traffic: {users: 500, mix: {tenant-a: 6, tenant-b: 3, base: 1}, max_tokens: 128}
phases:
  - {arm: sham, hotfix: tenant-a, every: 1s, count: 100}
  - {arm: real, hotfix: tenant-a, every: 1s, count: 100}
require: {level: stream-atomic}
"""


def edges(streams: int) -> tuple[np.ndarray, int, int]:
    """Invocation times of the swaps, begin and end of the run, ns."""
    begin = 1_000_000_000_000
    life = TOKENS * ITL_NS + 60_000_000
    end = begin + max(1, streams // USERS) * life
    margin = (end - begin) // 10
    return np.linspace(begin + margin, end - margin, SWAPS).astype(np.int64), begin, end


def operations(out: list[bytes], swaps: np.ndarray, begin: int) -> np.ndarray:
    """Lines of versions, phases and swaps; the version that each swap loads: [SWAPS]."""
    version = np.array([0 if i < SWAPS // 2 else i - SWAPS // 2 + 1 for i in range(SWAPS)])
    for v in range(int(version.max()) + 1):
        out.append(encode(records.Version("tenant-a", f"v{v}", f"a{v}", f"/x/a{v}", (FIRST_MARKER + v,))))
    out.append(encode(records.Version("tenant-b", "v0", "b0", "/x/b0", (FIRST_MARKER - 1,))))
    for op, name in enumerate(("tenant-a", "tenant-b")):
        at = begin - 1_000_000_000 + op
        out.append(encode(records.Invoke(op, name, "load", "v0", f"/x/{name}", "", "setup", at)))
        out.append(encode(records.Ack(op, "ok", at + 1000, 200)))
    for i, at in enumerate(swaps.tolist()):
        arm = "sham" if i < SWAPS // 2 else "real"
        if i in (0, SWAPS // 2):
            if i:
                out.append(encode(records.Phase(0, "sham", "end", at - 1, "tenant-a")))
            out.append(encode(records.Phase(int(i > 0), arm, "start", at, "tenant-a")))
        label = f"v{version[i]}"
        invoke = records.Invoke(i + 2, "tenant-a", "inplace", label, f"/x/{i}", arm, "scenario", at, int(i > 0))
        out.append(encode(invoke))
        out.append(encode(records.Ack(i + 2, "ok", at + ACK_NS, 200)))
    out.append(encode(records.Phase(1, "real", "end", int(swaps[-1]) + 2 * ACK_NS, "tenant-a")))
    return version


def served(swaps: np.ndarray, version: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Version of tenant-a in service at each moment: the swap applies at its ack."""
    done = np.searchsorted(swaps + ACK_NS, at, side="right")
    return np.append(0, version)[done]


def batch(rng: np.random.Generator, sent: np.ndarray, kind: np.ndarray, torn: float, loads: tuple) -> tuple:
    """(ids, arrivals in µs) of some streams: int32 and uint32 [n, TOKENS]."""
    gaps = rng.integers(ITL_NS * 8 // 10, ITL_NS * 12 // 10, (len(sent), TOKENS))
    arrivals = np.cumsum(gaps, axis=1)
    ids = rng.integers(10, VOCAB, (len(sent), TOKENS))
    first = FIRST_MARKER + served(*loads, sent)
    ids[kind == 0] = first[kind == 0, None]
    change = np.flatnonzero((kind == 0) & (rng.random(len(sent)) < torn))
    half = TOKENS // 2
    ids[change, half:] = (FIRST_MARKER + served(*loads, sent[change] + arrivals[change, half]))[:, None]
    ids[kind == 1] = FIRST_MARKER - 1
    return ids.astype("<i4"), (arrivals // 1000).astype("<u4")


def main(folder: Path, streams: int, torn: float = 0.001) -> None:
    """Write the folder."""
    folder.mkdir(parents=True)
    (folder / "scenario.yaml").write_text(SCENARIO)
    rng = np.random.default_rng(streams)
    swaps, begin, end = edges(streams)
    lines = [encode(records.Run(1, folder.name, "e0", "local", "boot", 1, 0, begin, 0, "synthetic"))]
    version = operations(lines, swaps, begin)
    for at in range(begin, end, 1_000_000_000):
        lines.append(encode(records.Health(at, at + 1_000_000_000, 0.5, 1.0, 0.3, USERS)))
    life = TOKENS * ITL_NS + 60_000_000
    names = ("tenant-a", "tenant-b", "base")
    with (
        (folder / "history-e0.jsonl").open("wb") as history,
        (folder / "tokens-e0.i32").open("wb") as tokens,
        (folder / "arrivals-e0.u32").open("wb") as times,
    ):
        (folder / "prompts-e0.i32").touch()
        history.writelines(lines)
        for low in range(0, streams, BATCH):
            number = np.arange(low, min(streams, low + BATCH))
            user = number % USERS
            sent = begin + (number // USERS) * life + user * (life // USERS)
            kind = np.array([0, 0, 1, 0, 0, 1, 0, 2, 0, 1])[number % 10]
            ids, arrivals = batch(rng, sent, kind, torn, (swaps, version))
            tokens.write(ids.tobytes())
            times.write(arrivals.tobytes())
            history.write(_lines(number, sent, [names[k] for k in kind], arrivals))
        history.write(encode(records.End(end + life, "complete")))


def _lines(number: np.ndarray, sent: np.ndarray, names: list[str], arrivals: np.ndarray) -> bytes:
    """The send and stream lines of a batch."""
    out = []
    columns = (number.tolist(), sent.tolist(), names, arrivals[:, 0].tolist(), arrivals[:, -1].tolist())
    for n, at, name, first, last in zip(*columns, strict=True):
        ask = {"stream": n, "adapter": name, "user": f"Tenant-{n % USERS}", "intended_ns": at, "sent_ns": at}
        ask |= {"max_tokens": TOKENS, "ignore_eos": True}
        out.append(orjson.dumps({"kind": "send", **ask}))
        seen = {"head_ns": at + first * 1000 - 1000, "first_ns": at + first * 1000, "last_ns": at + last * 1000}
        seen |= {"ended_ns": at + last * 1000 + 50_000, "status": 200, "outcome": "ok", "reason": "", "detail": ""}
        seen |= {"finish": "length", "done": True, "tokens": TOKENS, "offset": n * TOKENS, "chunks": TOKENS}
        seen |= {"usage": TOKENS, "prompt": 0, "prompt_offset": 0, "text_only": False}
        out.append(orjson.dumps({"kind": "stream", **ask, **seen}))
    return b"\n".join(out) + b"\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *(float(a) for a in sys.argv[3:]))
