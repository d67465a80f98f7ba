"""kill -9 of the engine, of its host and of the server, at random instants, against a server that journals what it saw.

    python bench/crash.py COUNT [--seed N] [--locust SHARE] [--out FILE] [--how kill|stop|full]

--how stop: SIGSTOP of the engine or the server, SIGCONT after 10 s. --how full: from then on, no file of the engine
takes another byte.

Each round starts a small run, as `loadtest run` does (through Locust in SHARE of the rounds, else through the same
harness without it), kills one process at a random instant, and compares what the run recorded with what the server
wrote down (tests/witness.py):

1. No load that the server saw is missing from the history.
2. Recorded tokens are a prefix of what the server sent for that prompt.
3. An operation without an end reads back as `info`.
4. What is left is never PASS unless the run was over, and never FAIL unless it was the server that was hurt.
5. The next start plays every undo that is owed, before anything else.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from witness import Seen

from loadtest import harness, history, scenario, undo
from loadtest.analysis import verdict
from loadtest.errors import HistoryError, LoadtestError
from loadtest.probe import ONE_THREAD, cache_dir
from loadtest.server.base import ensure_base
from loadtest.traffic.ipc import EngineHandle

ROOT = Path(__file__).parents[1]
SCENARIO = """
title: crash
target: {{url: "http://127.0.0.1:{port}", base: "{base}"}}
adapters:
  tenant-a: {{versions: markers 4}}
  tenant-b: {{versions: markers 1}}
traffic:
  arrivals: {{poisson: 40/s}}
  mix: {{tenant-a: 6, tenant-b: 3, base: 1}}
  prompts: {{synthetic: {{tokens: 6..10}}}}
  max_tokens: 8..24
phases:
  - {{arm: aa, for: 200ms}}
  - {{arm: sham, hotfix: tenant-a, every: 40ms..60ms, count: 3}}
  - {{arm: real, hotfix: tenant-a, every: 60ms..90ms, count: 10}}
  - {{arm: bad, hotfix: tenant-a, every: 50ms, with: [missing, corrupt]}}
  - {{arm: aa, for: 200ms}}
require: {{level: stream-atomic, min_swaps: 5, swap_ack_p99: 3s}}
"""
VICTIMS = {
    "kill": ("engine", "host", "server"),
    "stop": ("stopped engine", "stopped server"),
    "full": ("full disk",),
}
STOP_S = 10.0
FULL = re.compile(r"File too large|cannot be written")
ENGINE = "loadtest.traffic.engine"


def run(path: Path, results: Path, seed: int) -> int:
    """One run without Locust; its exit code."""
    session = harness.Session.open(harness.Options(scenario=path, results=results, seed=seed))
    engine = EngineHandle(lambda m: harness.say(f"engine: {m['message']}") if m["op"] == "error" else None)
    try:
        engine.start()
        engine.configure(session.engine_config())
        engine.setup(session.script(), 60.0)
        info = session.run_info()
        arrivals = {k: info[k] for k in ("scenario", "seed", "vocab")}
        engine.send({"op": "arrivals", "share": 0, "of": 1, **arrivals})
        engine.play()
        reason = engine.wait_play(60.0) or "error"
        engine.stop(reason, 2.0)
    except (LoadtestError, BrokenPipeError) as e:
        harness.say(str(e))
        reason = "error"
    finally:
        engine.close()
        session.close()
    try:
        return session.judge(reason).exit_code
    except LoadtestError as e:
        harness.say(str(e))
        return e.exit_code


@dataclass
class Server:
    """The witness on a port of its own that it keeps over restarts."""

    work: Path
    base: Path
    port: int = 0
    process: psutil.Popen | None = None
    extra: list[str] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    @property
    def journal(self) -> Path:
        return self.work / "witness.jsonl"

    def start(self) -> None:
        if not self.port:
            with socket.socket() as s:
                s.bind(("127.0.0.1", 0))
                self.port = s.getsockname()[1]
        command = [sys.executable, str(ROOT / "tests" / "witness.py"), str(self.journal), "--model", str(self.base)]
        read_end, write_end = os.pipe()  # ours alone: the server ends when we do
        self.ends.append(write_end)
        command += ["--port", str(self.port), "--step-ms", "8", "--parent-fd", str(read_end), *self.extra]
        with (self.work / "server.log").open("ab") as log:
            self.process = psutil.Popen(
                command, stdout=log, stderr=log, pass_fds=(read_end,), env=os.environ | ONE_THREAD
            )
        os.close(read_end)
        deadline = time.monotonic() + 60
        while not self._healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((self.work / "server.log").read_text()[-2000:])
            time.sleep(0.05)

    def _healthy(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2):
            return True
        return False

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):  # it may be stopped, which no SIGTERM would end
                self.process.kill()
            self.process.wait()
        while self.ends:
            os.close(self.ends.pop())


@dataclass
class Round:
    """One run that was killed, and what was found."""

    victim: str
    locust: bool
    at_s: float  # when, after the start, or after the first load
    loaded: bool  # after the first load
    verdict: str = ""  # "" when there was nothing to judge
    whole: bool = False
    exit_code: int | None = None  # None: the host was killed
    ops: int = 0
    unfinished: int = 0
    streams: int = 0
    tokens: int = 0
    owed: int = 0  # undos owed before this round
    played: int = 0  # of those, seen by the server in this round
    said: str = ""  # the host's last words
    wrong: list[str] = field(default_factory=list)


class Lab:
    """A server, a folder of results, and rounds one after another."""

    def __init__(self, work: Path, seed: int, stop_s: float = STOP_S) -> None:
        self.stop_s = stop_s
        self.server = Server(work, ensure_base(cache_dir()))
        self.server.start()
        self.results = work / "results"
        self.scenario = work / "crash.yaml"
        self.scenario.write_text(SCENARIO.format(port=self.server.port, base=self.server.base))
        self.random = random.Random(seed)
        self.seed = seed
        self.url = f"http://127.0.0.1:{self.server.port}"

    def host(self, locust: bool) -> psutil.Popen:
        """Start a run."""
        self.seed += 1
        common = ["--scenario", str(self.scenario), "--results", str(self.results), "--seed", str(self.seed)]
        command = [sys.executable, str(ROOT / "bench" / "crash.py"), "0", *common]
        if locust:
            command = [sys.executable, "-m", "locust", "-f", str(ROOT / "locustfile.py"), "--headless", *common]
        with (self.server.work / "host.log").open("wb") as log:
            return psutil.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, start_new_session=True
            )

    def round(self, victim: str, locust: bool, at_s: float, loaded: bool = False) -> Round:
        """One run, killed `at_s` after its start or first load (the engine: when it is there)."""
        found = Round(victim, locust, at_s, loaded)
        start = self.server.journal.stat().st_size
        owed = undo.owed(self.results, self.url)
        known = set(self.results.glob("*/"))
        found.owed = len(owed)
        host = self.host(locust)
        try:
            while loaded and host.poll() is None and not self._loaded(start, known):
                time.sleep(0.01)
            self._kill(host, victim, at_s)
            found.exit_code = self._ended(host, victim)
        finally:
            _end(host)
        if victim == "server":
            self.server.start()
        found.said = (self.server.work / "host.log").read_text(errors="replace")
        if victim == "full disk" and found.exit_code and not FULL.search(found.said):
            found.wrong.append("nobody was told that the disk is full")
        found.said = found.said[-300:]
        seen = Seen.read(self.server.journal, start)
        self._check_undos(found, owed, seen)
        for folder in sorted(set(self.results.glob("*/")) - known):
            if not folder.is_symlink():
                check(found, folder, seen)
        return found

    def _loaded(self, start: int, known: set[Path]) -> bool:
        """Whether the server has seen a load of this run's own; undos of earlier ones do not count."""
        old = {folder.name for folder in known}
        return any(Path(path).parents[2].name not in old for _, path in Seen.read(self.server.journal, start).loads)

    def _kill(self, host: psutil.Popen, victim: str, at_s: float) -> None:
        end = time.monotonic() + at_s
        target = {"host": host, "server": self.server.process, "stopped server": self.server.process}.get(victim)
        while host.poll() is None and (time.monotonic() < end or target is None):
            if target is None:
                target = next(iter(engines(host)), None)
            time.sleep(0.005)
        if target is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._hurt(target, victim)
        if victim == "server":
            self.server.kill()

    def _hurt(self, target: psutil.Process, victim: str) -> None:
        if victim.startswith("stopped"):
            target.suspend()
            time.sleep(self.stop_s)
            target.resume()
        elif victim == "full disk":
            target.rlimit(psutil.RLIMIT_FSIZE, (1, 1))
        else:
            target.kill()

    def _ended(self, host: psutil.Popen, victim: str) -> int | None:
        """The host's exit code, when it and all that it had started are gone."""
        mine = engines(host)
        code = host.wait(timeout=120)
        _, alive = psutil.wait_procs(mine, timeout=30)
        if alive:
            raise AssertionError(f"an engine outlived its host: {alive}")
        deadline = time.monotonic() + 30
        while any(lives(f) for f in self.results.glob("*/history-*.jsonl")):
            if time.monotonic() > deadline:
                raise AssertionError("an engine outlived its host")
            time.sleep(0.02)
        return None if victim == "host" else int(code)

    def _check_undos(self, found: Round, owed: list, seen: Seen) -> None:
        """Rule 5: owed and not owed any more means played, and the server saw it."""
        still = {(f, u.adapter) for f, u in undo.owed(self.results, self.url)}
        for folder, debt in owed:
            if (folder, debt.adapter) in still:
                continue
            found.played += 1
            if (debt.adapter, debt.path) not in seen.loads:
                found.wrong.append(f"{folder.name}: the undo of {debt.adapter} was noted, but the server saw none")
        mine = {folder for folder, _ in owed}
        began = any(str(self.results) in path and not any(str(f) in path for f in mine) for _, path in seen.loads)
        if began and still & {(f, u.adapter) for f, u in owed} and "server" not in found.victim:
            found.wrong.append("the run loaded its own adapters before an older undo was played")


def lives(path: Path) -> bool:
    """Whether a history's writer lives."""
    from loadtest.journal import held

    return held(path)


def engines(host: psutil.Popen) -> list[psutil.Process]:
    """The engine processes below `host`."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [p for p in host.children(recursive=True) if _is_engine(p)]
    return []


def _is_engine(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return ENGINE in process.cmdline()
    return False


def _end(host: psutil.Popen) -> None:
    """Whatever went wrong, nothing stays behind."""
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        os.killpg(host.pid, signal.SIGKILL)


def check(found: Round, folder: Path, seen: Seen) -> None:
    """Rules 1 to 4 on one run's folder."""
    mine = collections.Counter(path for _, path in seen.loads if str(folder.resolve()) in path)
    try:
        recorded = history.load(folder)
    except HistoryError:
        if mine:
            found.wrong.append(f"{folder.name}: no history, but the server saw {len(mine)} loads")
        return
    invoked = collections.Counter(op.path for op in recorded.ops if op.mode != "unload")
    found.ops, found.streams = len(recorded.ops), len(recorded.streams)
    missing = mine - invoked
    if found.victim == "full disk":  # a rollback is worth more than its record
        missing -= collections.Counter({u.path: 1 for u in recorded.undo if u.state == "planned"})
    if missing:
        found.wrong.append(f"{folder.name}: loads that are not on record: {dict(missing)}")
    open_ops = [op for op in recorded.ops if not op.acked]
    found.unfinished = len(open_ops)
    if any(op.outcome != "info" for op in open_ops):
        found.wrong.append(f"{folder.name}: an operation without an end is not info")
    found.wrong += [f"{folder.name}: {words}" for words in prefixes(found, recorded, seen)]
    _verdict(found, folder, recorded)


def prefixes(found: Round, recorded: history.History, seen: Seen) -> Iterator[str]:
    """Streams whose recorded ids are no prefix of what the server sent."""
    by_ask = collections.defaultdict(list)
    for name, (adapter, prompt) in seen.streams.items():
        by_ask[adapter, prompt].append(seen.ids[name])
    table = recorded.streams
    for i in range(len(table)):
        count, prompt = int(table.tokens[i]), int(table.prompt[i])
        if not count:
            continue
        found.tokens += count
        start, at = int(table.start[i]), int(table.prompt_start[i])
        ids = recorded.ids[start : start + count].tolist()
        ask = table.adapters[table.adapter[i]], tuple(recorded.prompts[at : at + prompt].tolist())
        if not any(truth[:count] == ids for truth in by_ask[ask]):
            yield f"stream {table.name[i]} has {ids}, the server sent {by_ask[ask]}"


def _verdict(found: Round, folder: Path, recorded: history.History) -> None:
    """Rule 4."""
    found.whole = bool(recorded.runs) and [e.reason for e in recorded.ends] == ["complete"] * len(recorded.runs)
    spec = scenario.load(folder / "scenario.yaml")
    found.verdict = verdict.judge(recorded, harness.require_of(spec)).status
    if found.verdict == "PASS" and not found.whole:
        found.wrong.append(f"{folder.name}: PASS of a run that was not over")
    if found.verdict == "FAIL" and "server" not in found.victim:
        found.wrong.append(f"{folder.name}: FAIL, though the server did nothing wrong")
    if found.exit_code == 0 and not (found.whole and found.verdict == "PASS"):
        found.wrong.append(f"{folder.name}: exit code 0 with {found.verdict}")


@contextlib.contextmanager
def lab(seed: int, stop_s: float = STOP_S) -> Iterator[Lab]:
    """A lab in a folder that goes when it is over."""
    with tempfile.TemporaryDirectory(prefix="crash-") as work:
        made = Lab(Path(work), seed, stop_s)
        try:
            yield made
        finally:
            made.server.kill()


def campaign(made: Lab, count: int, share: float, how: str = "kill") -> Iterator[Round]:
    """A run that nobody disturbs, of each kind, then `count` that are hurt."""
    lasted = {}
    for locust in (False, True) if share else (False,):
        for attempt in range(4):  # on a busy machine the client is late now and then, and says so
            begun = time.monotonic()
            calm = made.round("nobody", locust, 1e9)
            lasted[locust] = time.monotonic() - begun
            if calm.verdict == "PASS":
                break
            if attempt == 3:
                calm.wrong.append(f"undisturbed, it ends {calm.verdict}: nothing can be learnt from the others")
        yield calm
    for _ in range(count):
        locust, loaded = made.random.random() < share, made.random.random() < 0.75
        at_s = made.random.uniform(0.0, 2.2) if loaded else made.random.uniform(0.3, lasted[locust])
        yield made.round(made.random.choice(VICTIMS[how]), locust, at_s, loaded)


def main() -> int:
    """Rounds, a line each; the number of rounds that broke a rule."""
    p = argparse.ArgumentParser()
    p.add_argument("count", type=int)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--locust", type=float, default=0.15)
    p.add_argument("--out", type=Path)
    p.add_argument("--how", choices=VICTIMS, default="kill")
    p.add_argument("--scenario", type=Path, help="internal: be the host of one run")
    p.add_argument("--results", type=Path)
    options = p.parse_args()
    if options.scenario is not None:
        return run(options.scenario, options.results, options.seed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything started is ended
    broken, rounds = 0, []
    with lab(options.seed) as made:
        for found in campaign(made, options.count, options.locust, options.how):
            rounds.append(found)
            broken += bool(found.wrong)
            line = json.dumps(asdict(found))
            print(line, flush=True)
            if options.out:
                with options.out.open("a") as f:
                    f.write(line + "\n")
    print(collections.Counter((r.victim, r.verdict or "nothing recorded") for r in rounds))
    print(f"{len(rounds)} rounds, {broken} broke a rule, {sum(r.unfinished for r in rounds)} operations without an end")
    return min(broken, 1)


if __name__ == "__main__":
    sys.exit(main())
