"""Several servers of one service: one swap on all of them, streams spread, each replica's answer on record."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from embedded import embedded
from locust_run import Locust, locust
from minihistory import history

from loadtest import scenario
from loadtest.analysis import verdict
from loadtest.analysis.case import open_case
from loadtest.analysis.monotonic import monotonic
from loadtest.analysis.versions import fresh
from loadtest.errors import ScenarioError
from loadtest.history import load
from loadtest.journal import Journal
from loadtest.records import Ack, Invoke, Outcome, ReplicaAck, Run
from loadtest.server.base import ensure_base
from loadtest.traffic.admin import Answer
from loadtest.traffic.fleet import Fleet, Spread, joined


def answer(outcome: Outcome, reason: str = "", at_ns: int = 5) -> Answer:
    return Answer(outcome, 200 if outcome == "ok" else 500, reason, f"said {outcome}", 1, at_ns)


OK, NO, GONE = answer("ok"), answer("fail", "server_error"), answer("info", "timeout")
TAKEN = answer("fail", "already_loaded")


@pytest.mark.parametrize(
    ("parts", "outcome", "reason"),
    [
        ((OK, OK), "ok", ""),
        ((NO, NO), "fail", "server_error"),
        ((OK, NO), "info", "partial"),
        ((NO, GONE), "info", "partial"),
        ((GONE, GONE), "info", "timeout"),
        ((OK, GONE), "info", "partial"),
        ((OK, TAKEN), "fail", "already_loaded"),
        ((TAKEN, NO), "fail", "already_loaded"),
    ],
)
def test_what_all_replicas_together_answered(parts: tuple[Answer, ...], outcome: str, reason: str) -> None:
    found = joined(parts, 1)
    assert (found.outcome, found.reason, found.parts) == (outcome, reason, parts)
    assert [f"replica {i}" in found.message for i in range(2)] == [p.outcome != "ok" for p in parts]


@dataclass
class Slow:
    """A replica that answers a load when it is told to."""

    go: asyncio.Event
    at_ns: int
    well: bool = True

    async def load(self, name: str, path: str, inplace: bool = False) -> Answer:
        await self.go.wait()
        return answer("ok", at_ns=self.at_ns)

    async def unload(self, name: str) -> Answer:
        return answer("ok", at_ns=self.at_ns)

    async def health(self) -> bool:
        return self.well

    async def metrics(self) -> str:
        return f"x {self.at_ns}"


def test_an_operation_is_answered_when_the_last_replica_has() -> None:
    async def check() -> None:
        first, last = asyncio.Event(), asyncio.Event()
        fleet = Fleet([Slow(first, 7), Slow(last, 9, well=False)])
        loading = asyncio.create_task(fleet.load("a", "/v1", inplace=True))
        first.set()
        await asyncio.sleep(0)
        assert not loading.done()
        last.set()
        assert (await loading).at_ns == 9
        assert (await fleet.unload("a")).at_ns == 9
        assert await fleet.health()
        assert await fleet.metrics() == "x 7\nx 9"
        assert not await Fleet([Slow(first, 1, well=False)] * 2).health()

    asyncio.run(check())


def test_streams_are_spread_one_after_another_or_by_user() -> None:
    turns, homes = Spread(("u0", "u1", "u2")), Spread(("u0", "u1"), by_user=True)
    assert [turns(n, "same") for n in range(1, 7)] == [1, 2, 0, 1, 2, 0]
    assert [homes(n, user) for n, user in enumerate(["a", "b", "c", "a", "b", "c"])] == [0, 1, 0, 0, 1, 0]
    assert Spread()(5, "a") == Spread(("u0",))(5, "a") == 0


TWO = "load a v0 0 1 ok\nload a v1 10 20 ok\n"


def test_replicas_that_take_a_swap_one_after_another_invert_nothing() -> None:
    """Replica 0 has v1 from 12 ms on, replica 1 not before the ack at 20 ms: both are right."""
    apart = TWO + "stream a 11: v1*3 | replica=0\nstream a 16: v0*3 | replica=1\nstream a 22: v1*3 | replica=1"
    assert monotonic(open_case(history(apart))).violations == 0
    together = apart.replace("replica=1", "replica=0")
    assert monotonic(open_case(history(together))).kinds == {"inversion": 1}


def test_a_replica_that_is_stale_after_the_ack_is_found_whatever_the_other_shows() -> None:
    found = fresh(open_case(history(TWO + "stream a 21: v1*3 | replica=0\nstream a 23: v0*3 | replica=1")))
    assert found.kinds == {"stale": 1}


def test_the_history_keeps_each_replicas_answer(tmp_path: Path) -> None:
    urls = ("http://h:1", "http://h:2")
    journal = Journal(tmp_path, Run(1, "r", "e0", "local", "boot", 1, 0, 1, 1, "0", urls))
    journal.emit(Invoke(1, "a", "inplace", "v1", "/v1", "real", "scenario", 10))
    journal.emit(ReplicaAck(1, 0, "ok", 12, 200))
    journal.emit(ReplicaAck(1, 1, "fail", 14, 500, "server_error", "no"))
    journal.emit(Ack(1, "info", 14, 500, "partial", "replica 1: server_error: no"))
    journal.close("complete", 20)
    recorded = load(tmp_path)
    assert recorded.runs[0].replicas == urls
    assert [(a.replica, a.outcome, a.acked_ns) for a in recorded.ops[0].answers] == [(0, "ok", 12), (1, "fail", 14)]
    document = verdict.to_json(verdict.judge(recorded, verdict.Require()))
    assert [r["reason"] for r in document["swaps"]["list"][0]["replicas"]] == ["", "server_error"]
    assert [r["url"] for r in document["streams"]["by_replica"]] == list(urls)
    gate = next(g for g in document["gates"] if g["name"] == "replicas_agree")
    assert gate["status"] == "failed"


BODY = """
adapters:
  tenant-a: {versions: markers}
  tenant-b: {versions: markers 1}
traffic:
  users: 6
  mix: {tenant-a: 3, tenant-b: 1}
  prompts: {synthetic: {tokens: 8..16}}
  max_tokens: 16..32
phases:
  - {arm: aa, for: 1s}
  - {arm: real, hotfix: tenant-a, every: 200ms..300ms, count: 8}
  - {arm: aa, for: 1s}
require: {level: stream-atomic, min_swaps: 5}
"""


@pytest.mark.parametrize(
    ("target", "key", "words"),
    [
        ("{replicas: [http://h:1]}", "target.replicas", "two or more"),
        ("{replicas: [http://h:1, http://h:1]}", "target.replicas[1]", "twice"),
        ("{replicas: [http://h:1, embedded]}", "target.replicas[1]", "http://host:port"),
        ("{replicas: [http://h:1, http://u:p@h:2]}", "target.replicas[1]", "user or password"),
        ("{replicas: [http://h:1, http://h:2], url: http://h:3}", "target.url", "exclude"),
        ("{replicas: [http://h:1, http://h:2], managed: {}}", "target.managed", "exclude"),
        ("{replicas: [http://h:1, http://h:2], swap: pin}", "target.swap", "embedded server only"),
        ("{replicas: [http://h:1, http://h:2]}", "adapters.tenant-a.versions", "forged for a base model"),
        ("{spread: user}", "target.spread", "replicas only"),
    ],
)
def test_a_wrong_fleet_is_told(target: str, key: str, words: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        scenario.loads(f"target: {target}{BODY}")
    found = {p.key: p.message for p in caught.value.problems}
    assert words in found[key], found
    assert "u:p" not in str(caught.value)


def test_another_target_replaces_the_fleet() -> None:
    fleet = scenario.loads(f"target: {{replicas: [http://h:1, http://h:2], base: /m}}{BODY}")
    assert scenario.loads(scenario.to_yaml(fleet)) == fleet
    alone = scenario.with_target(fleet, "http://h:3").target
    assert (alone.url, alone.replicas) == ("http://h:3", ())


def run_fleet(tmp_path: Path, base: Path, *plant: str, spread: str = "round-robin") -> Locust:
    """A judged run on two embedded servers; `plant` is the second one's."""
    file = tmp_path / "fleet.yaml"
    slow = ("--step-ms", "8")
    with embedded(base, tmp_path / "s0", *slow) as a, embedded(base, tmp_path / "s1", *slow, *plant) as b:
        file.write_text(f"target: {{replicas: ['{a.url}', '{b.url}'], base: '{base}', spread: {spread}}}{BODY}")
        with locust(tmp_path, str(file), "--headless", "--only-summary") as run:
            run.exit_code()
        for server in (a, b):
            assert server.call("GET", "/v1/models").json["data"][1]["root"].endswith("0001-v0")  # rolled back
        assert {u["url"] for u in run.lines("undo")} == {a.url, b.url}
    return run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_base(tmp_path_factory.mktemp("base"))


@pytest.mark.slow
@pytest.mark.timeout(170)
@pytest.mark.parametrize("spread", ["round-robin", "user"])
def test_a_fleet_that_swaps_as_one_breaks_nothing(tmp_path: Path, base: Path, spread: str) -> None:
    run = run_fleet(tmp_path, base, spread=spread)
    found = run.verdict()
    failed = {g["name"] for g in found["gates"] if g["status"] == "failed"}
    assert failed <= {"client_lag"}, run.output  # a busy machine
    assert run.process.wait() == (2 if failed else 0), run.output
    served = found["streams"]["by_replica"]
    assert min(r["attempted"] for r in served) > 5
    assert sum(r["attempted"] for r in served) == found["streams"]["attempted"]
    answers = run.lines("replica_ack")
    assert len(answers) == 2 * len(run.lines("invoke")) > 16
    acks = {a["op"]: a["acked_ns"] for a in run.lines("ack")}
    for op, acked in acks.items():
        assert acked == max(a["acked_ns"] for a in answers if a["op"] == op)
    homes = {s["user"]: set[int]() for s in run.lines("send")}
    for s in run.lines("send"):
        homes[s["user"]].add(s["replica"])
    assert {len(h) for h in homes.values()} == ({1} if spread == "user" else {2})


@pytest.mark.slow
@pytest.mark.timeout(170)
def test_one_stale_replica_is_found_and_named(tmp_path: Path, base: Path) -> None:
    run = run_fleet(tmp_path, base, "--plant", json.dumps([{"fault": "stale", "ms": 150}]))
    found = run.verdict()
    assert run.process.wait() == 1, run.output
    assert found["guarantees"]["fresh"]["status"] == "FAIL"
    accused = [w["text"] for w in found["guarantees"]["fresh"]["witnesses"]]
    assert accused
    assert all(" on replica 1: " in text for text in accused), accused
