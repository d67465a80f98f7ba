"""The engine against the embedded server: swaps, open loop, rollback when the host goes away."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from rawserver import until
from tools_kit import Server, embedded, markers

from loadtest import history, records
from loadtest.adapters.marker import VersionFile as Forged
from loadtest.chaos.conductor import Script, VersionFile
from loadtest.errors import TargetError
from loadtest.plan import PhasePlan, SwapPlan
from loadtest.traffic.ipc import EngineHandle, Message


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with embedded(tmp_path_factory.mktemp("server"), "--step-ms", "2") as found:
        yield found


@pytest.fixture(scope="module")
def versions(server: Server) -> list[Forged]:
    return markers(server, "tenant-a", 4)


def script(server: Server, versions: list[Forged], root: Path, swaps: int) -> dict:
    plan = PhasePlan(0, "real", "tenant-a", 0.3, tuple(SwapPlan(0.15, "") for _ in range(swaps)))
    files = [VersionFile(v.version, str(v.path), v.sha, tuple(v.markers)) for v in versions]
    return Script(
        url=server.url,
        adapters={"tenant-a": files},
        phases=(plan,),
        root_local=str(root),
        root_server=str(root),
        mode="inplace",
        timeout_s=10.0,
        max_rank=64,
        run_time_s=None,
        cycle=True,
    ).to_json()


def engine(server: Server, folder: Path, news: list[Message]) -> EngineHandle:
    handle = EngineHandle(news.append)
    handle.start()
    handle.configure({"folder": str(folder), "engine": "e0", "role": "local", "seed": 3, "url": server.url})
    return handle


def unload(server: Server, name: str) -> None:
    body = json.dumps({"lora_name": name}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.url + "/v1/unload_lora_adapter", body, headers)
    with urllib.request.urlopen(request, timeout=10):
        pass


def root_of(server: Server, name: str) -> str:
    with urllib.request.urlopen(server.url + "/v1/models", timeout=10) as answer:
        cards = json.loads(answer.read())["data"]
    return next(str(c["root"]) for c in cards if c["id"] == name)


def test_streams_and_swaps(server: Server, versions: list[Forged], tmp_path: Path) -> None:
    news: list[Message] = []
    handle = engine(server, tmp_path / "run", news)
    try:
        handle.setup(script(server, versions, tmp_path / "adapters", 3), 30)
        first = root_of(server, "tenant-a")
        over = threading.Event()

        def user() -> None:
            while not over.is_set():
                handle.stream({"adapter": "tenant-a", "prompt": [400, 401], "max_tokens": 24, "user": "u"})

        threads = [threading.Thread(target=user) for _ in range(4)]
        for t in threads:
            t.start()
        handle.play()
        assert handle.wait_play(30) == "complete"
        fixed = handle.hotfix("tenant-a", "v1", 30)
        assert (fixed["ok"], fixed["version"]) == (True, "v1")
        assert not handle.hotfix("tenant-a", "v99", 30)["ok"]
        over.set()
        for t in threads:
            t.join(20)
        assert handle.stop("complete", 5)
        assert root_of(server, "tenant-a") == first
    finally:
        handle.close()
        unload(server, "tenant-a")
    lines = [json.loads(x) for x in (tmp_path / "run" / "history-e0.jsonl").read_text().splitlines()]
    sent = min(x["sent_ns"] for x in lines if x["kind"] == "send")
    assert any(x["at_ns"] <= sent for x in lines if x["kind"] == "health")  # what setup cost is not the streams'
    assert not any(x["kind"] == records.ReplicaAck.kind for x in lines)  # one server is no fleet
    swaps = [m for m in news if m["op"] == "swap"]
    assert [(m["version"], m["outcome"], m["arm"], m["n"]) for m in swaps] == [
        ("v1", "ok", "real", 1),
        ("v2", "ok", "real", 2),
        ("v3", "ok", "real", 3),
        ("v1", "ok", "real", 4),
    ]
    found = history.load(tmp_path / "run")
    assert found.problems == ()
    assert [(o.by, o.outcome) for o in found.ops] == [
        ("setup", "ok"),
        ("scenario", "ok"),
        ("scenario", "ok"),
        ("scenario", "ok"),
        ("operator", "ok"),
        ("rollback", "ok"),
    ]
    assert set(found.streams.outcome.tolist()) == {history.OK}
    # Under the policy `pin` each stream is of one marker version, and over the run several were seen.
    of_token = {t: v.version for v in versions for t in v.markers}
    seen = [
        {of_token[t] for t in found.ids[s : s + n].tolist() if t in of_token}
        for s, n in zip(found.streams.start, found.streams.tokens, strict=True)
    ]
    assert all(len(s) == 1 for s in seen)
    assert len(set.union(*seen)) >= 3


def test_rollback_when_the_host_goes_away(server: Server, versions: list[Forged], tmp_path: Path) -> None:
    news: list[Message] = []
    handle = engine(server, tmp_path / "run", news)
    try:
        handle.setup(script(server, versions, tmp_path / "adapters", 50), 30)
        first = root_of(server, "tenant-a")
        handle.play()
        until(lambda: sum(m["op"] == "swap" for m in news) >= 2)
        assert root_of(server, "tenant-a") != first
    finally:
        handle.close()
    assert root_of(server, "tenant-a") == first
    unload(server, "tenant-a")
    found = history.load(tmp_path / "run")
    assert [e.reason for e in found.ends] == ["interrupted"]
    assert [u.state for u in found.undo] == ["planned", "played"]


def test_a_setup_that_the_server_refuses(server: Server, versions: list[Forged], tmp_path: Path) -> None:
    plan = script(server, versions, tmp_path / "adapters", 1) | {"root_server": "/nowhere"}
    handle = engine(server, tmp_path / "run", [])
    try:
        with pytest.raises(TargetError, match="did not load tenant-a"):
            handle.setup(plan, 30)
    finally:
        handle.close()


SCENARIO = """
target: {url: embedded}
adapters:
  tenant-a: {versions: markers 1}
traffic:
  arrivals: {poisson: 40/s}
  mix: {base: 1}
  prompts: {synthetic: {tokens: 4..8}}
  max_tokens: 4..8
phases:
  - {arm: aa, for: 2s}
"""


def test_an_open_loop_in_two_shares(server: Server, tmp_path: Path) -> None:
    news: list[Message] = []
    handle = engine(server, tmp_path / "run", news)
    try:
        message = {"op": "arrivals", "scenario": SCENARIO, "seed": 3, "vocab": 1000, "share": 1, "of": 2}
        handle.send(message)
        until(lambda: sum(m["op"] == "result" for m in news) >= 12)
        assert handle.stop("complete", 5)
    finally:
        handle.close()
    results = [m for m in news if m["op"] == "result"]
    assert {(m["id"], m["user"], m["outcome"], m["adapter"]) for m in results} == {(0, "arrivals", "ok", "base")}
    from loadtest import plan, scenario

    planned = [at for at, _ in (next(p) for p in [plan.arrivals(scenario.loads(SCENARIO), 3, 1000)] for _ in range(26))]
    table = history.load(tmp_path / "run").streams
    assert (table.sent >= table.intended).all()
    gaps = ((table.intended[1:12] - table.intended[0]) / 1e9).tolist()
    assert gaps == pytest.approx([planned[1 + 2 * i] - planned[1] for i in range(1, 12)], abs=1e-6)
