"""Checks of loadtest.swarm that import Locust: run in a process of their own (tests/test_swarm.py starts it).

`import locust` patches sockets, threads and time of the whole process with gevent's; the other tests must not get that.
Each `check_*` function is one check; the results go to standard output as JSON: name -> "" or a traceback.
"""

from __future__ import annotations

import json
import sys
import traceback
from types import SimpleNamespace
from typing import Any

import gevent
from locust import User, task
from locust.argument_parser import get_parser, ui_extra_args_dict
from locust.env import Environment
from locust.runners import STATE_INIT, STATE_MISSING

from loadtest.swarm import cluster, hooks, rows
from loadtest.swarm.shape import Stages
from loadtest.swarm.users import AdapterUser, ArrivalsUser

RESULT = {"adapter": "tenant-a", "outcome": "ok", "reason": "", "tokens": 7, "ttft_ms": 20.0, "e2el_ms": 310.0}


def entry(environment: Environment, method: str, name: str = "tenant-a") -> Any:
    return environment.stats.get(name, method)


def local() -> Environment:
    environment = Environment()
    environment.create_local_runner()
    return environment


def check_arguments_come_from_command_line_environment_and_web_form() -> None:
    hooks.install()
    hooks.install()  # a locustfile that imports another one calls it twice
    names = {"scenario", "target", "seed", "results"}
    parser = get_parser(default_config_files=[])
    assert vars(parser.parse_args(["--scenario", "x.yaml"]))["scenario"] == "x.yaml"
    assert vars(parser.parse_args([], env_vars={"LOADTEST_SEED": "7"}))["seed"] == "7"
    assert names <= set(ui_extra_args_dict([]))


def check_stream_rows() -> None:
    environment = local()
    rows.stream(environment, rows.Result.read(RESULT), {"user": "Tenant-0"})
    rows.stream(environment, rows.Result.read({**RESULT, "outcome": "fail", "reason": "cut"}), {})
    rows.stream(environment, rows.Result.read({**RESULT, "outcome": "info", "reason": "cancelled"}), {})
    row = entry(environment, "STREAM")
    assert (row.num_requests, row.num_failures, row.total_content_length) == (2, 1, 14)
    assert entry(environment, "TTFT").num_requests == 2
    assert entry(environment, "CANCELLED").num_requests == 1
    assert environment.stats.total.num_requests == 2  # neither first tokens nor cancelled streams
    assert [repr(e.error) for e in environment.stats.errors.values()] == ["StreamFailed('cut')"]


def check_swap_rows() -> None:
    environment = local()
    swap = {"adapter": "tenant-a", "version": "v1", "arm": "real", "outcome": "ok", "reason": "", "ack_ms": 12.0}
    rows.swap(environment, swap)
    rows.swap(environment, {**swap, "arm": "bad", "outcome": "fail", "reason": "not_found"})  # as wanted
    rows.swap(environment, {**swap, "arm": "bad"})  # accepted although it had to be refused
    rows.swap(environment, {**swap, "outcome": "info", "reason": "timeout", "ack_ms": None})
    row = entry(environment, "SWAP")
    assert (row.num_requests, row.num_failures) == (4, 2)
    assert {repr(e.error) for e in environment.stats.errors.values()} == {
        "SwapFailed('ok: accepted')",
        "SwapFailed('info: timeout')",
    }


def check_stages_ramp_hold_and_end() -> None:
    shape = Stages([(10.0, 2, 1.0), (20.0, 8, 4.0)], run_time_s=60.0)
    seen = []
    for elapsed in (0.0, 9.9, 10.0, 25.0, 59.9, 60.0):
        shape.get_run_time = lambda at=elapsed: at  # type: ignore[method-assign]
        seen.append(shape.tick())
    assert seen == [(2, 1.0), (2, 1.0), (8, 4.0), (8, 4.0), (8, 4.0), None], seen
    assert Stages([(10.0, 2, 1.0)], run_time_s=None).tick() == (2, 1.0)


def check_only_what_a_user_writes_is_collected_as_a_user_class() -> None:
    assert AdapterUser.abstract
    assert Stages.abstract
    assert not ArrivalsUser.abstract

    class Mine(AdapterUser):
        weight = 3

        @task
        def ask(self) -> None:
            self.stream(prompt="hello")

    assert not Mine.abstract
    assert issubclass(Mine, User)
    assert Mine.weight == 3


class Runner:
    """The part of Locust's master that a Roster talks to."""

    def __init__(self, *clients: str) -> None:
        self.clients = {c: SimpleNamespace(state=STATE_INIT) for c in clients}
        self.sent: list[tuple[str, str, dict[str, Any]]] = []

    def get_worker_index(self, client: str) -> int:
        return list(self.clients).index(client)

    def send_message(self, kind: str, data: dict[str, Any], client_id: str) -> None:
        self.sent.append((kind, client_id, data))


def summoned(*clients: str) -> tuple[Runner, cluster.Roster]:
    runner = Runner(*clients)
    roster = cluster.Roster(runner, {"folder": "r1"})
    roster.summon()
    return runner, roster


def check_every_worker_gets_an_engine_and_a_share() -> None:
    runner, roster = summoned("a", "b")
    assert [(c, d["engine"], d["share"], d["of"]) for _, c, d in runner.sent] == [("a", "e1", 0, 2), ("b", "e2", 1, 2)]
    roster.ready("a", {"run": "r1", "error": ""})
    roster.ready("b", {"run": "r0", "error": ""})  # about an earlier run
    gevent.spawn_later(0.05, roster.ready, "b", {"run": "r1", "error": "no such folder"})
    assert [(m.client, m.error) for m in roster.await_ready()] == [("b", "no such folder")]


def check_a_worker_that_says_hello_late_is_asked_again_or_anew() -> None:
    runner, roster = summoned("a")
    runner.sent.clear()
    roster.hello("a")  # its init was not through when `run` was sent
    roster.ready("a", {"run": "r1", "error": ""})
    roster.hello("a")  # nothing new
    runner.clients["late"] = SimpleNamespace(state=STATE_INIT)
    roster.hello("late")
    assert [(c, d["engine"], d["share"], d["of"]) for _, c, d in runner.sent] == [
        ("a", "e1", 0, 1),
        ("late", "e2", 1, 1),  # share 1 of 1: outside the arrivals
    ]


def check_the_dead_are_not_waited_for_and_told_once() -> None:
    runner, roster = summoned("a", "b", "c")
    for client in "abc":
        roster.ready(client, {"run": "r1", "error": ""})
    runner.clients["a"].state = STATE_MISSING
    del runner.clients["b"]
    gevent.spawn_later(0.05, roster.closed, "c", {"run": "r1"})
    roster.dismiss("complete", 0.0, timeout_s=30.0)
    assert sorted(m.client for m in roster.newly_missing()) == ["a", "b"]
    assert roster.newly_missing() == []
    assert roster.unclosed() == []


def main() -> None:
    results = {}
    for name, check in list(globals().items()):
        if name.startswith("check_"):
            try:
                check()
                results[name] = ""
            except Exception:
                results[name] = traceback.format_exc()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
