"""FAIL verdicts against raw bytes: a recording proxy before the server, and a reader that shares no code with loadtest.

    python bench/witnesses.py record --to http://127.0.0.1:8000 --port 8100 --out /tmp/wire &
    loadtest run SCENARIO --target http://127.0.0.1:8100       # a scenario whose target names its `base`
    kill %1
    VLLM_PYTHON bench/witnesses.py check results/latest /tmp/wire --base MODEL    # a Python with torch and transformers

`record` keeps each read of both directions with the monotonic clock before it is passed on, and a copy of each adapter
folder before the server is asked to load it. `check` takes nothing from the run but its files: the versions of tokens
come from a forward pass over the base with the copied adapter merged in, the tears from the wire's token ids, the times
from the proxy's. It prints a line for each witness and for each disagreement; exit code 1 when there is one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shutil
import signal
import socket
import struct
import sys
import threading
import time
from array import array
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HEAD = struct.Struct("<IBQI")  # connection, direction (0: to the server), monotonic ns of the read, bytes
SLACK_NS = 250_000_000  # a client on a busy machine reads this much later than the proxy, at most


# -- the proxy ---------------------------------------------------------------------------------------------------------
class Recorder:
    """One file for all connections, in the order of the reads."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True)
        self.out, self.lock, self.copies = out, threading.Lock(), 0
        self.file = (out / "wire.bin").open("wb", buffering=0)

    def keep(self, connection: int, way: int, data: bytes) -> None:
        with self.lock:
            self.file.write(HEAD.pack(connection, way, time.monotonic_ns(), len(data)) + data)

    def copy_adapter(self, data: bytes) -> None:
        asked = re.search(rb'"lora_path"\s*:\s*"([^"]+)"', data)
        folder = Path(asked[1].decode()) if asked else Path("/nowhere")
        if folder.is_dir():
            kept = self.out / f"adapter-{self.copies:04d}"
            self.copies += 1
            shutil.copytree(folder, kept)
            (kept / "asked.txt").write_text(str(folder))


def pump(recorder: Recorder, connection: int, way: int, source: socket.socket, to: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            recorder.keep(connection, way, data)
            if way == 0:
                recorder.copy_adapter(data)
            to.sendall(data)
        to.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, to):
            end.close()


def record(given: argparse.Namespace) -> int:
    recorder, server = Recorder(Path(given.out)), urlsplit(given.to)
    door = socket.create_server(("127.0.0.1", given.port), backlog=256)
    print(f"recording {door.getsockname()[1]} -> {given.to}", flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts what is in the background deaf to SIGINT
        signal.signal(number, signal.default_int_handler)
    try:
        for connection in range(1 << 31):
            client, _ = door.accept()
            behind = socket.create_connection((server.hostname, server.port or 80))
            for end in (client, behind):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for way, source, to in ((0, client, behind), (1, behind, client)):
                threading.Thread(target=pump, args=(recorder, connection, way, source, to), daemon=True).start()
    except KeyboardInterrupt:
        pass
    return 0


# -- HTTP from bytes ---------------------------------------------------------------------------------------------------
Answer = tuple[str, bytes, list[int]] | None  # first line, body, offset of each byte of it


class Side:
    """The bytes of one direction of a connection, and when the read that brought each of them was made."""

    def __init__(self) -> None:
        self.data, self.ends, self.times, self.at = bytearray(), array("Q"), array("Q"), 0

    def add(self, when: int, data: bytes) -> None:
        self.data += data
        self.ends.append(len(self.data))
        self.times.append(when)

    def when(self, offset: int) -> int:
        """Time of the read that brought byte `offset`."""
        low, high = 0, len(self.ends)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.ends[middle] <= offset else (low, middle)
        return self.times[low]

    def message(self) -> Answer:
        """First line, body without chunking, and the offset here of each byte of the body; None at the end."""
        begin = self.at
        end = self.data.find(b"\r\n\r\n", begin)
        if end < 0:
            return None
        lines = bytes(self.data[begin:end]).decode("latin-1").split("\r\n")
        fields = {k.lower().strip(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
        at = end + 4
        if "chunked" not in fields.get("transfer-encoding", ""):
            self.at = at + int(fields.get("content-length", 0))
            return lines[0], bytes(self.data[at : self.at]), list(range(at, self.at))
        body, where = bytearray(), list[int]()
        while (line_end := self.data.find(b"\r\n", at)) >= 0:
            size, at = int(bytes(self.data[at:line_end]), 16), line_end + 2
            body += self.data[at : at + size]
            where += range(at, at + size)
            at += size + 2
            if not size:
                break
        self.at = min(at, len(self.data))
        return lines[0], bytes(body), where[: len(body)]


class Exchange:
    """A request and its answer as the proxy saw them."""

    def __init__(self, line: str, body: bytes, asked: int, sides: tuple[Side, Answer]) -> None:
        self.path, self.asked = line.split(" ")[1], asked
        self.body: dict[str, Any] = json.loads(body) if body.startswith(b"{") else {}
        side, answer = sides
        self.status, self.ids, self.at = 0, list[int](), list[int]()
        self.finish, self.done, self.usage, self.answered = list[str](), False, -1, 0
        if answer is None:
            return
        first, content, where = answer
        self.status = int(first.split(" ")[1])
        self.answered = side.when(where[-1]) if where else 0
        if content.startswith(b"data:"):
            self._events(side, content, where)

    def _events(self, side: Side, content: bytes, where: list[int]) -> None:
        at = 0
        while (end := content.find(b"\n\n", at)) >= 0:
            event, when, at = content[at:end], side.when(where[end + 1]), end + 2
            if not event.startswith(b"data: "):
                continue
            if event == b"data: [DONE]":
                self.done = True
                continue
            said = json.loads(event[6:])
            for choice in said.get("choices", []):
                new = choice.get("token_ids") or []
                self.ids += new
                self.at += [when] * len(new)
                self.finish += [choice["finish_reason"]] if choice.get("finish_reason") else []
            if said.get("usage"):
                self.usage = said["usage"]["completion_tokens"]


def exchanges(folder: Path) -> list[Exchange]:
    """Everything that went through the proxy, by the time of the request."""
    sides: dict[tuple[int, int], Side] = {}
    with (folder / "wire.bin").open("rb") as file:
        while len(head := file.read(HEAD.size)) == HEAD.size:
            connection, way, when, size = HEAD.unpack(head)
            sides.setdefault((connection, way), Side()).add(when, file.read(size))
    out = []
    for (connection, way), asks in sides.items():
        answers = sides.get((connection, 1), Side())
        while way == 0 and (asked := asks.message()) is not None:
            line, body, _ = asked
            out.append(Exchange(line, body, asks.when(asks.at - 1), (answers, answers.message())))
    return sorted(out, key=lambda e: e.asked)


# -- versions from weights ---------------------------------------------------------------------------------------------
class Weights:
    """The base model, and which token it says with an adapter merged in."""

    def __init__(self, base: Path, wire: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self.torch, self.base = torch, base
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self.plain = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.folders = {(p / "asked.txt").read_text(): p for p in sorted(wire.glob("adapter-*"))}

    def wear(self, path: str) -> None:
        """Base plus scale * B @ A of each module of the adapter that was loaded from `path`."""
        from safetensors.torch import load_file

        folder = self.folders[path]
        config = json.loads((folder / "adapter_config.json").read_text())
        scale = config["lora_alpha"] / config["r"]
        state = {k: v.clone() for k, v in self.plain.items()}
        lora = {k: v.float() for k, v in load_file(folder / "adapter_model.safetensors").items()}
        for name, a in lora.items():
            if ".lora_A." in name:
                target = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
                state[target] += scale * lora[name.replace(".lora_A.", ".lora_B.")] @ a
        self.model.load_state_dict(state)

    def says(self, prompts: list[list[int]]) -> set[int]:
        """Greedy tokens after each prompt and after some more of them."""
        out = set[int]()
        with self.torch.no_grad():
            for prompt in prompts:
                grown = self.torch.tensor([prompt])
                for _ in range(4):
                    token = int(self.model(grown).logits[0, -1].argmax())
                    out.add(token)
                    grown = self.torch.cat([grown, self.torch.tensor([[token]])], 1)
        return out


# -- the check ---------------------------------------------------------------------------------------------------------
class Run:
    """A run folder, read by what the comments of the format say."""

    def __init__(self, folder: Path) -> None:
        lines = [json.loads(line) for line in (folder / "history-e0.jsonl").read_text().splitlines()]
        self.ids, self.delays = array("i"), array("I")
        self.ids.frombytes((folder / "tokens-e0.i32").read_bytes())
        self.delays.frombytes((folder / "arrivals-e0.u32").read_bytes())
        self.prompts = array("i")
        self.prompts.frombytes((folder / "prompts-e0.i32").read_bytes())
        self.streams = {x["stream"]: x for x in lines if x["kind"] == "stream"}
        self.invoked = {x["op"]: x for x in lines if x["kind"] == "invoke"}
        self.acked = {x["op"]: x for x in lines if x["kind"] == "ack"}
        self.verdict = json.loads((folder / "verdict.json").read_text())

    def tokens(self, s: dict[str, Any]) -> list[int]:
        return list(self.ids[s["offset"] : s["offset"] + s["tokens"]])

    def times(self, s: dict[str, Any]) -> list[int]:
        return [s["sent_ns"] + 1000 * d for d in self.delays[s["offset"] : s["offset"] + s["tokens"]]]

    def prompt(self, s: dict[str, Any]) -> list[int]:
        return list(self.prompts[s["prompt_offset"] : s["prompt_offset"] + s["prompt"]])


class Check:
    """Collects what disagrees."""

    def __init__(self, run: Run, wire: list[Exchange], weights: Weights) -> None:
        self.run, self.weights, self.bad = run, weights, list[str]()
        self.lags = list[int]()
        self.loads = [e for e in wire if e.path == "/v1/load_lora_adapter"]
        self.pairs: dict[int, Exchange] = {}
        left = [e for e in wire if e.path == "/v1/completions"]
        for number, s in sorted(run.streams.items(), key=lambda x: x[1]["sent_ns"]):
            same = [e for e in left if self._fits(s, e)]
            self.must(len(same) == 1, f"stream {number}: {len(same)} requests on the wire fit it")
            if same:
                self.pairs[number] = same[0]
                left.remove(same[0])
        self.must(not left, f"{len(left)} completions on the wire are in no record")
        self.versions: dict[str, int] = {}  # path of a load -> the token it says

    def must(self, true: bool, words: str) -> None:
        if not true:
            self.bad.append(words)

    def _fits(self, s: dict[str, Any], e: Exchange) -> bool:
        asked = (e.body.get("model"), e.body.get("prompt"), e.body.get("max_tokens"))
        said = (s["adapter"], self.run.prompt(s), s["max_tokens"])
        return asked == said and 0 <= e.asked - s["sent_ns"] < SLACK_NS

    def later(self, ours: int, wire: int, what: str) -> None:
        """What the client saw comes after the proxy's read, and not long after."""
        self.lags.append(ours - wire)
        self.must(0 <= ours - wire < SLACK_NS, f"{what}: {(ours - wire) / 1e6:.3f} ms after the proxy's read")

    def token_of(self, path: str) -> int:
        if path not in self.versions:
            self.weights.wear(path)
            asked = [self.run.prompt(s) for s in list(self.run.streams.values())[:6]]
            said = self.weights.says([p for p in asked if p])
            self.must(len(said) == 1, f"the adapter at {path} says {sorted(said)}")
            self.versions[path] = min(said)
        return self.versions[path]

    def stream(self, number: int) -> None:
        """The record of one stream against the bytes that came for it."""
        s, e = self.run.streams[number], self.pairs[number]
        name = f"stream {number}"
        cut = s["outcome"] != "ok"
        ours = self.run.tokens(s)
        self.must(ours == (e.ids[: len(ours)] if cut else e.ids), f"{name}: other ids than on the wire")
        self.must(cut or s["usage"] == e.usage == len(e.ids), f"{name}: usage {s['usage']}, on the wire {e.usage}")
        self.must(cut or (s["done"] and e.done and [s["finish"]] == e.finish), f"{name}: another end than on the wire")
        for i, (mine, his) in enumerate(zip(self.run.times(s), e.at, strict=False)):
            self.later(mine, his, f"{name}, token {i}")

    def load(self, number: int) -> Exchange | None:
        """The record of one load against its request and answer."""
        invoked, ack = self.run.invoked[number], self.run.acked[number]
        fit = [e for e in self.loads if e.body.get("lora_path") == invoked["path"]]
        fit = [e for e in fit if 0 <= e.asked - invoked["invoked_ns"] < SLACK_NS]
        self.must(len(fit) == 1, f"op {number}: {len(fit)} loads on the wire fit it")
        if not fit:
            return None
        self.must(fit[0].status == ack["status"], f"op {number}: status {ack['status']}, wire {fit[0].status}")
        self.later(ack["acked_ns"], fit[0].answered, f"ack of op {number}")
        return fit[0]

    def path_of(self, adapter: str, token: int, before: int) -> list[int]:
        """Loads of `adapter` that say `token`, sent before an instant, by the wire."""
        ops = [n for n, x in self.run.invoked.items() if x["adapter"] == adapter and x["version"][:4] != "bad:"]
        ops = [
            n
            for n in ops
            if self.run.invoked[n]["invoked_ns"] < before and self.run.acked.get(n, {}).get("outcome") == "ok"
        ]
        return [n for n in ops if self.token_of(self.run.invoked[n]["path"]) == token]

    def tear(self, number: int) -> int:
        """The first token of another adapter version than the one before it, -1 without one; from the wire's ids."""
        e = self.pairs[number]
        known = {self.token_of(x["path"]) for x in self.of(str(e.body["model"]))}
        at = [i for i, t in enumerate(e.ids) if t in known]
        return next((j for i, j in itertools.pairwise(at) if e.ids[i] != e.ids[j]), -1)

    def of(self, adapter: str) -> list[dict[str, Any]]:
        loads = [x for x in self.run.invoked.values() if x["adapter"] == adapter and x["path"] in self.weights.folders]
        return [x for x in loads if not x["version"].startswith("bad:")]

    def witness(self, w: dict[str, Any]) -> str:
        """One witness of `untorn: torn`, all that it says."""
        number, swap = int(w["stream"].split("-")[1]), int(w["swap"].split("-")[1])
        s, e, old, new = self.run.streams[number], self.pairs[number], *w["tokens"]
        name, op = f"witness {w['stream']}", self.run.invoked[swap]
        self.must(self.tear(number) == new, f"{name}: torn at {self.tear(number)} by the wire, at {new} by the witness")
        self.must(w["ids"] == e.ids[old - 2 : new + 3], f"{name}: ids {w['ids']}, wire {e.ids[old - 2 : new + 3]}")
        self.must(self.token_of(op["path"]) == e.ids[new], f"{name}: {w['swap']} says another token than {new}")
        self.must(op["version"] == w["versions"][1], f"{name}: {w['swap']} is {op['version']}")
        before = self.path_of(s["adapter"], e.ids[old], e.at[old])
        labels = {self.run.invoked[n]["version"] for n in before}
        self.must(labels == {w["versions"][0]}, f"{name}: token {old} is of {sorted(labels)}")
        self.later(w["at_ns"], e.at[new], f"{name}: its time")
        wire = self.load(swap)
        ago = (e.at[new] - wire.answered) / 1e6 if wire else float("nan")
        said = re.search(r"acked ([\d.]+) ms before", w["text"])
        exact = (w["at_ns"] - self.run.acked[swap]["acked_ns"]) / 1e6
        self.must(said is not None and abs(float(said[1]) - exact) < 0.051, f"{name}: acked {exact:.1f} ms before")
        claim = f"token {old} is {w['versions'][0]}, token {new} is {w['versions'][1]}"
        self.must(claim in w["text"] and s["adapter"] in w["text"], f"{name}: its sentence")
        self.must(wire is not None and e.at[new] > wire.asked, f"{name}: shown before its load was sent")
        where = f"{e.ids[old]} -> {e.ids[new]} at {old}..{new}"
        return f"{w['stream']}: {len(e.ids)} ids, {where}, wire {ago:.1f} ms after ack"


def check(given: argparse.Namespace) -> int:
    run, wire = Run(Path(given.run)), exchanges(Path(given.wire))
    checked = Check(run, wire, Weights(Path(given.base), Path(given.wire)))
    untorn = run.verdict["guarantees"]["untorn"]
    for w in [w for w in untorn["witnesses"] if w["kind"] == "torn"]:
        print(checked.witness(w))
    for number in checked.pairs:
        checked.stream(number)
    for number in run.invoked:
        if run.invoked[number]["mode"] == "inplace" and number in run.acked:
            checked.load(number)
    torn = [n for n in checked.pairs if checked.of(run.streams[n]["adapter"]) and checked.tear(n) >= 0]
    checked.must(
        len(torn) == untorn["violations"], f"{len(torn)} torn by the wire, {untorn['violations']} by the verdict"
    )
    lags = sorted(checked.lags)
    print(
        f"{len(untorn['witnesses'])} witnesses; {len(checked.pairs)} streams, {sum(len(e.ids) for e in wire)} tokens,"
    )
    print(f"{len(checked.loads)} loads on the wire; {len(checked.versions)} adapters played; {len(torn)} streams torn")
    print(f"client's read after the proxy's: {lags[0] / 1e6:.3f} to {lags[-1] / 1e6:.3f} ms, {len(lags)} times")
    print("\n".join(checked.bad) or "no disagreement")
    return 1 if checked.bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ways = parser.add_subparsers(required=True)
    one = ways.add_parser("record")
    one.add_argument("--to", required=True)
    one.add_argument("--port", type=int, default=0)
    one.add_argument("--out", required=True)
    one.set_defaults(do=record)
    two = ways.add_parser("check")
    two.add_argument("run")
    two.add_argument("wire")
    two.add_argument("--base", required=True)
    two.set_defaults(do=check)
    given = parser.parse_args()
    return int(given.do(given))


if __name__ == "__main__":
    sys.exit(main())
