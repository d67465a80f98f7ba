"""Locust as a user starts it, against the embedded server: exit codes, rows, workers, signals, web form, leftovers."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path

import pytest
from locust_run import SCENARIOS, Locust, Web, free_port, locust, until

from loadtest import harness

pytestmark = [pytest.mark.slow, pytest.mark.timeout(170)]
HEADLESS = ("--headless", "--only-summary")
PLAYING = "loadtest: phase 1/3"

EDITED = """
from locust import between, events, task
from loadtest.swarm.hooks import install
from loadtest.swarm.users import AdapterUser

install()

class Tenant(AdapterUser):
    @task
    def complete(self):
        assert self.stream().ok

class Reader(AdapterUser):
    weight = 2
    wait_time = between(0.01, 0.05)

    @task
    def read(self):
        result = self.stream(model="tenant-b", prompt="Hello there", max_tokens=5, temperature=0.5)
        assert result.tokens == 5, result

    @task
    def stumble(self):
        raise RuntimeError("the locustfile's own mistake")

@events.request.add_listener
def on_request(request_type, name, response_length, context, **_):
    if context.get("user", "").startswith("Reader"):
        print("HEARD", request_type, name, response_length, flush=True)
"""


def counts_add_up(run: Locust) -> bool:
    streams = run.verdict()["streams"]
    return streams["attempted"] == streams["ok"] + streams["fail"] + streams["info"] == len(run.lines("send")) > 0


def held(run: Locust) -> bool:
    """PASS, or UNKNOWN for no other reason than that this machine was too busy; and that is the exit code."""
    code, verdict = run.exit_code(), run.verdict()
    failed = {gate["name"] for gate in verdict["gates"] if gate["status"] == "failed"}
    return code == verdict["exit_code"] == (2 if failed else 0) and failed <= {"client_lag"}


def never_passed(run: Locust) -> bool:
    return run.verdict()["status"] in ("UNKNOWN", "FAIL") and run.process.wait() in (1, 2)


def test_a_run_ends_with_its_phases_and_exits_with_its_verdict(tmp_path: Path) -> None:
    files = ("--csv", str(tmp_path / "out"), "--html", str(tmp_path / "out.html"))
    with locust(tmp_path, "short.yaml", *HEADLESS, *files) as run:
        assert held(run), run.output
        assert run.nothing_left()
    assert counts_add_up(run)
    with (tmp_path / "out_stats.csv").open() as f:
        rows = {(r["Type"], r["Name"]): int(r["Request Count"]) for r in csv.DictReader(f)}
    assert rows["STREAM", "tenant-a"] > 0 < rows["STREAM", "tenant-b"]
    assert rows["TTFT", "tenant-a"] == rows["STREAM", "tenant-a"]
    assert rows["SWAP", "tenant-a"] == 8
    assert rows["", "Aggregated"] == sum(n for (kind, _), n in rows.items() if kind in ("STREAM", "SWAP"))
    assert (tmp_path / "out.html").stat().st_size > 0
    assert [e["reason"] for e in run.lines("end")] == ["complete"]
    assert len({s["user"] for s in run.lines("send")}) == 4
    assert run.output.index("stream-atomic is required") > run.output.index("Aggregated")  # the verdict comes last


def test_processes_reach_one_verdict_and_swap_once(tmp_path: Path) -> None:
    with locust(tmp_path, "short.yaml", *HEADLESS, "--processes", "2", "-u", "6", "-r", "20") as run:
        assert held(run), run.output
        assert run.nothing_left()
    assert counts_add_up(run)
    by_engine = {e: len(run.lines("send", e)) for e in ("e0", "e1", "e2")}
    assert by_engine["e0"] == 0 < min(by_engine["e1"], by_engine["e2"])
    assert {r["engine"] for r in run.lines("run") if run.lines("invoke", r["engine"])} == {"e0"}
    assert sum(i["by"] == "scenario" for i in run.lines("invoke")) == 8
    assert sorted({s["user"] for s in run.lines("send")}) == [f"Tenant-{i}" for i in range(6)]
    assert [e["reason"] for e in run.lines("end")] == ["complete"] * 3


def test_users_and_run_time_on_the_command_line_override_the_scenario(tmp_path: Path) -> None:
    with locust(tmp_path / "cut", "long.yaml", *HEADLESS, "-u", "2", "-t", "2s", "-s", "5") as cut:
        assert cut.exit_code() == 2, cut.output
    assert {s["user"] for s in cut.lines("send")} == {"Tenant-0", "Tenant-1"}
    assert [e["reason"] for e in cut.lines("end")] == ["run_time"]
    assert "run_time_over" in [e["what"] for e in cut.lines("event")]
    assert cut.verdict()["streams"]["info"] == 0  # --stop-timeout lets streams end
    with locust(tmp_path / "longer", "short.yaml", *HEADLESS, "-t", "9s") as longer:
        assert held(longer), longer.output
    played = max(p["at_ns"] for p in longer.lines("phase"))
    assert max(s["sent_ns"] for s in longer.lines("send")) > played - 1_000_000_000


@pytest.mark.parametrize("processes", [(), ("--processes", "2")], ids=["alone", "workers"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_signal_ends_in_rollback_and_verdict(tmp_path: Path, number: signal.Signals, processes: tuple[str]) -> None:
    with locust(tmp_path, "long.yaml", *HEADLESS, *processes) as run:
        run.wait_for(PLAYING)
        until(lambda: len(run.lines("stream")) > 5, "streams")
        if number == signal.SIGINT:
            os.killpg(run.process.pid, number)  # a terminal sends it to all of them
        else:
            os.kill(run.process.pid, number)
        run.exit_code()
        assert run.nothing_left()
        assert never_passed(run), run.output
    assert {e["reason"] for e in run.lines("end")} == {"interrupted"}
    assert counts_add_up(run)


def test_ctrl_c_before_the_first_user(tmp_path: Path) -> None:
    with locust(tmp_path, "long.yaml", *HEADLESS) as run:
        run.wait_for("loadtest: results in")
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.exit_code() == 2, run.output
        assert run.nothing_left()
        assert "Traceback" not in run.output


@pytest.mark.parametrize("processes", [(), ("--processes", "2")], ids=["alone", "workers"])
def test_a_killed_locust_leaves_no_process_behind(tmp_path: Path, processes: tuple[str]) -> None:
    with locust(tmp_path, "long.yaml", *HEADLESS, *processes) as run:
        run.wait_for(PLAYING)
        run.look()
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait()
        assert len(run.seen) >= 3 + 2 * len(processes)  # engine, guardian, server; two workers with an engine each
        assert run.nothing_left()
    assert harness.judge(run.run).status in ("UNKNOWN", "FAIL")
    assert counts_add_up(run)


def test_a_killed_worker_is_on_record(tmp_path: Path) -> None:
    with locust(tmp_path, "long.yaml", *HEADLESS, "--processes", "2") as run:
        run.wait_for(PLAYING)
        until(lambda: run.lines("stream", "e1") and run.lines("stream", "e2"), "streams of both workers")
        own = run.process.cmdline()
        next(process for process, command in run.commands() if command == own).kill()
        until(lambda: "is missing: its users are gone" in run.output, "the missing worker")
        os.kill(run.process.pid, signal.SIGTERM)
        run.exit_code()
        assert never_passed(run), run.output
        assert run.nothing_left()
    assert "worker_missing" in [e["what"] for e in run.lines("event", "e0")]


@pytest.mark.parametrize("victim", ["loadtest.server.app", "loadtest.traffic.engine"])
def test_a_server_or_engine_that_dies_ends_the_run_judged(tmp_path: Path, victim: str) -> None:
    with locust(tmp_path, "long.yaml", *HEADLESS) as run:
        run.wait_for(PLAYING)
        until(lambda: len(run.lines("stream")) > 5, "streams")
        run.look()
        for process, command in run.commands():
            if victim in command and "loadtest.guardian" not in command:
                process.kill()
        run.exit_code()
        assert never_passed(run), run.output
        assert run.nothing_left()
    assert counts_add_up(run)


@pytest.mark.parametrize("processes", [(), ("--processes", "2")], ids=["alone", "workers"])
@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--scenario", str(SCENARIOS / "wrong.yaml")), 64, "traffic.users"),
        (("--target", "http://127.0.0.1:9"), 69, "127.0.0.1:9"),
    ],
    ids=["scenario", "target"],
)
def test_what_cannot_start_says_why_and_starts_nobody(
    tmp_path: Path, args: tuple[str, ...], code: int, words: str, processes: tuple[str]
) -> None:
    with locust(tmp_path, "short.yaml", *HEADLESS, *args, *processes) as run:
        assert run.exit_code() == code, run.output
        assert words in run.output
        assert "Traceback" not in run.output
        assert run.nothing_left()
    assert not list(run.results.glob("*"))  # nothing was recorded, and `latest` stays with what was


def test_the_web_ui_starts_stops_and_starts_again(tmp_path: Path) -> None:
    port = free_port()
    with locust(tmp_path, "short.yaml", "--web-host", "127.0.0.1", "--web-port", str(port)) as run:
        web = Web(port)
        until(web.up, "the web UI")
        assert all(f'"{name}"' in web.get("/") for name in ("scenario", "target", "seed", "results"))
        start = {"user_count": 3, "spawn_rate": 10}
        refused = web.post("/swarm", **start, scenario=SCENARIOS / "wrong.yaml")
        assert (refused["success"], "traffic.users" in refused["message"]) == (False, True), refused
        assert web.stats()["state"] == "ready"
        assert web.post("/swarm", **start, scenario=SCENARIOS / "long.yaml")["success"]
        until(lambda: any(r["method"] == "STREAM" and r["num_requests"] > 5 for r in web.stats()["stats"]), "rows")
        first = run.run
        assert web.post("/stop")["success"]
        assert [e["reason"] for e in run.lines("end")] == ["interrupted"]
        assert web.post("/swarm", **start, scenario=SCENARIOS / "short.yaml", seed=2)["success"]
        until(lambda: (run.run / "verdict.json").exists() and run.run != first, "the second verdict")
        assert run.lines("run")[0]["seed"] == 2
        until(lambda: web.stats()["state"] == "stopped", "the end of the second run")
        os.kill(run.process.pid, signal.SIGTERM)
        assert held(run), run.output
        assert run.nothing_left()


def test_an_edited_locustfile(tmp_path: Path) -> None:
    edited = tmp_path / "mine.py"
    edited.write_text(EDITED)
    with locust(tmp_path, "short.yaml", *HEADLESS, "-u", "6", locustfile=edited) as run:
        assert held(run), run.output
    assert {s["user"].split("-")[0] for s in run.lines("send")} == {"Tenant", "Reader"}
    assert {(s["adapter"], s["max_tokens"]) for s in run.lines("send") if "Reader" in s["user"]} == {("tenant-b", 5)}
    assert "HEARD STREAM tenant-b 5" in run.output
    assert "user_error" in [e["what"] for e in run.lines("event")]


@pytest.mark.parametrize("processes", [(), ("--processes", "2")], ids=["alone", "workers"])
def test_arrivals_are_sent_by_the_engines(tmp_path: Path, processes: tuple[str]) -> None:
    with locust(tmp_path, "arrivals.yaml", *HEADLESS, *processes) as run:
        assert held(run), run.output
        assert run.nothing_left()
    assert counts_add_up(run)
    senders = {r["engine"] for r in run.lines("run") if run.lines("send", r["engine"])}
    assert senders == ({"e1", "e2"} if processes else {"e0"})
    intended = [s["intended_ns"] for s in run.lines("send")]
    assert len(set(intended)) == len(intended)  # no arrival is sent twice
    assert "STREAM" in run.output


def test_stages_change_the_number_of_users(tmp_path: Path) -> None:
    with locust(tmp_path, "stages.yaml", *HEADLESS) as run:
        assert held(run), run.output
    assert {s["user"] for s in run.lines("send")} == {f"Tenant-{i}" for i in range(5)}
