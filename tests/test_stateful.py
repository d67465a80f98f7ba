"""Loads, time-outs, cancels, streams, kills, restarts in any order: the embedded server against a small model."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from crash import Server

from loadtest import history, records
from loadtest.adapters.marker import Recipe, forge_versions
from loadtest.journal import Journal
from loadtest.probe import cache_dir
from loadtest.server.base import ensure_base
from loadtest.traffic.admin import Admin
from loadtest.traffic.ask import Ask
from loadtest.traffic.client import Limits, Options, StreamClient, open_session

versions = st.integers(0, 2)


class Run(RuleBasedStateMachine):
    """What a tester sees must be what the model allows: outcomes, tokens, and the history that is left."""

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        work = Path(self.folder.name)
        base = ensure_base(cache_dir())
        self.forged = forge_versions(base, work / "versions", "a", 3, recipe=Recipe(8, 1))
        self.server = Server(work, base)
        self.server.start()
        self.up, self.served, self.late = True, False, set[int]()  # late: loads that may have happened, or may yet
        self.current: int | None = None
        self.runner = asyncio.Runner()
        self.session = self.runner.run(self._open())
        self.journal = Journal(work / "run", records.Run(1, "r", "e0", "local", "boot", 1, 0, 1, 1, "0"))
        for v in self.forged:
            self.journal.emit(records.Version("a", v.version, v.sha, str(v.path), v.markers))
        self.client = StreamClient(
            self.session, self.url, self.journal, options=Options(limits=Limits(20.0, 10.0, 5.0))
        )
        self.streams = self.ops = 0
        self.outcomes: dict[str, str] = {}

    async def _open(self):  # type: ignore[no-untyped-def]
        return open_session({}, 5.0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def _load(self, version: int, timeout_s: float) -> str:
        """One journaled load; its outcome."""
        self.ops += 1
        path = str(self.forged[version].path)
        self.journal.emit(records.Invoke(self.ops, "a", "inplace", f"v{version}", path, "", "setup", 1), flush=True)
        answer = self.runner.run(Admin(self.session, self.url, timeout_s=timeout_s).load("a", path, inplace=True))
        self.journal.emit(records.Ack(self.ops, answer.outcome, answer.at_ns, answer.status, answer.reason), flush=True)
        self.outcomes[f"e0-{self.ops}"] = answer.outcome
        return answer.outcome

    @rule(version=versions)
    def load(self, version: int) -> None:
        outcome = self._load(version, 20.0)
        assert outcome == ("ok" if self.up else "info")
        if self.up:
            self.current = version

    @rule(version=versions)
    def load_that_times_out(self, version: int) -> None:
        outcome = self._load(version, 0.001)
        assert outcome in ("ok", "info")
        if outcome == "ok":
            assert self.up
            self.current = version
        elif self.up:
            self.late.add(version)

    def _ask(self, tokens: int) -> Ask:
        self.streams += 1
        return Ask(self.streams, "a", [5, 6, self.streams], tokens)

    def _allowed(self) -> set[int]:
        """Markers of every version that may answer."""
        possible = self.late | ({self.current} if self.current is not None else set())
        return {m for v in possible for m in self.forged[v].markers}

    @rule(tokens=st.integers(1, 12))
    def stream(self, tokens: int) -> None:
        record = self.runner.run(self.client.stream(self._ask(tokens)))
        if not self.up:
            assert (record.outcome, record.reason) == ("fail", "refused")
        elif self.current is None and not (self.late and record.outcome == "ok"):
            assert (record.reason, record.status) == ("rejected", 404)
        else:
            assert (record.outcome, record.tokens) == ("ok", tokens), record

    @rule(tokens=st.integers(50, 90), after=st.floats(0.0, 0.2))
    def cancelled_stream(self, tokens: int, after: float) -> None:
        async def cancel() -> None:
            task = asyncio.ensure_future(self.client.stream(self._ask(tokens)))
            await asyncio.wait((task,), timeout=after)
            task.cancel()
            await asyncio.wait((task,))

        self.runner.run(cancel())

    @precondition(lambda self: self.up)
    @rule()
    def kill(self) -> None:
        self.server.kill()
        self.runner.run(self._notice())
        self.up = False

    async def _notice(self) -> None:
        """Lets the loop read that idle connections were closed, as it would at once if it ran all the time."""
        for _ in range(3):
            await asyncio.sleep(0)

    @precondition(lambda self: not self.up)
    @rule()
    def restart(self) -> None:
        self.server.start()
        self.up, self.current, self.late = True, None, set()

    @rule()
    def what_is_on_record_is_what_happened(self) -> None:
        self.journal.flush()
        seen = history.load(Path(self.folder.name) / "run")
        assert seen.problems == ()
        assert {op.name: op.outcome for op in seen.ops} == self.outcomes
        assert len(seen.streams) == self.streams
        markers = {m for v in self.forged for m in v.markers}
        assert set(seen.ids.tolist()) <= markers
        for i in range(len(seen.streams)):  # the server pins a stream to one version
            start, count = int(seen.streams.start[i]), int(seen.streams.tokens[i])
            assert len(set(seen.ids[start : start + count].tolist())) <= 1

    @rule()
    def the_last_answer_is_by_a_version_that_may_answer(self) -> None:
        record = self.runner.run(self.client.stream(self._ask(2)))
        self.journal.flush()
        seen = history.load(Path(self.folder.name) / "run")
        at = seen.streams.name.index(f"e0-{record.stream}")
        start = int(seen.streams.start[at])
        ids = seen.ids[start : start + int(seen.streams.tokens[at])].tolist()
        assert set(ids) <= self._allowed()

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.journal.close("complete", 1)
            self.runner.run(self.session.close())
            self.runner.close()
            self.server.kill()
            self.folder.cleanup()


Run.TestCase.settings = settings(max_examples=4, stateful_step_count=15, deadline=None)
TestRun = Run.TestCase
