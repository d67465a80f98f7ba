"""The engine process behind its handle: life, streams, cancel, deaths, stop. Everything over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from rawserver import CHUNKED, LAST_CHUNK, Call, completion, event, serving, until

from loadtest import history
from loadtest.errors import LoadtestError
from loadtest.traffic.ipc import EngineHandle, Message, frame

IDS = [11, 12, 13, 14]


@dataclass
class Host:
    """A handle, and what it was told."""

    handle: EngineHandle
    news: list[Message]
    folder: Path
    deaths: list[float] = field(default_factory=list)

    def told(self, op: str) -> list[Message]:
        return [m for m in list(self.news) if m["op"] == op]

    def ask(self, **more: object) -> dict:
        return {"adapter": "a", "prompt": [1, 2, 3], "max_tokens": 4, "user": "u-1", **more}


@contextlib.contextmanager
def engine(folder: Path, url: str, **more: object) -> Iterator[Host]:
    news: list[Message] = []
    deaths: list[float] = []
    handle = EngineHandle(news.append, lambda: deaths.append(time.monotonic()))
    config = {"folder": str(folder), "engine": "e0", "role": "local", "seed": 3, "url": url, "model_base": "base"}
    handle.start()
    try:
        handle.configure({**config, "headers": {}, "limits": {"stall_s": 20}, **more})
        yield Host(handle, news, folder, deaths)
    finally:
        handle.close()


async def complete(call: Call) -> None:
    await call.send(CHUNKED)
    for i in IDS[:-1]:
        await call.chunk(event([i]))
    await call.chunk(completion(IDS)[len(b"".join(event([i]) for i in IDS[:-1])) :])
    await call.send(LAST_CHUNK)


async def endless(call: Call) -> None:
    """One token, then silence until the client leaves."""
    if call.path == "/health":
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        return
    await call.send(CHUNKED)
    await call.chunk(event(IDS[:1]))
    await call.wait_left()


def test_a_run_from_ready_to_stopped(tmp_path: Path) -> None:
    with serving(complete, keep=True) as server, engine(tmp_path / "run", server.url) as host:
        results = [host.handle.stream(host.ask()) for _ in range(3)]
        assert [(r["outcome"], r["tokens"], r["reason"], r["user"]) for r in results] == [("ok", 4, "", "u-1")] * 3
        assert all(0 < r["ttft_ms"] <= r["e2el_ms"] for r in results)
        host.handle.event("note", "hello")
        until(lambda: host.told("progress"))
        assert host.told("progress")[-1]["lag_ms"] >= 0
        assert host.handle.stop("complete", 1.0)
        assert host.told("progress")[-1]["sent"] == 3
        assert host.told("progress")[-1]["tokens"] == 12
    assert not host.deaths
    found = history.load(host.folder)
    assert found.problems == ()
    assert found.streams.outcome.tolist() == [0, 0, 0]
    assert found.ids.tolist() == IDS * 3
    assert found.prompts.tolist() == [1, 2, 3] * 3
    assert (found.streams.intended == found.streams.sent).all()
    assert [e.what for e in found.events] == ["note"]
    assert [e.reason for e in found.ends] == ["complete"]
    assert (found.runs[0].engine, found.runs[0].seed, found.runs[0].run) == ("e0", 3, "run")
    assert found.health
    assert found.health[-1].lag_p99_ms <= found.health[-1].lag_max_ms


def test_extra_fields_and_their_record(tmp_path: Path) -> None:
    with serving(complete, keep=True) as server, engine(tmp_path, server.url) as host:
        result = host.handle.stream(host.ask(extra={"ignore_eos": False, "temperature": 0.5, "top_p": 0.9}))
        assert result["outcome"] == "ok"
        body = server.calls[0].json
        assert (body["ignore_eos"], body["temperature"], body["top_p"]) == (False, 0.5, 0.9)
        assert host.handle.stop("complete", 0)
    assert history.load(tmp_path).streams.ignore_eos.tolist() == [False]


def test_many_streams_from_many_threads(tmp_path: Path) -> None:
    results: list[Message] = []
    with serving(complete, keep=True) as server, engine(tmp_path, server.url) as host:
        threads = [threading.Thread(target=lambda: results.append(host.handle.stream(host.ask()))) for _ in range(40)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(20)
        assert {r["outcome"] for r in results} == {"ok"}
        assert len({r["id"] for r in results}) == 40


class Killed(BaseException):
    """Stands for gevent's GreenletExit."""


def test_a_killed_wait_cancels_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = threading.Event()

    async def script(call: Call) -> None:
        await endless(call)
        left.set()

    with serving(script) as server, engine(tmp_path, server.url) as host:
        real = threading.Event.wait

        def wait(self: threading.Event, timeout: float | None = None) -> bool:
            if threading.current_thread().name == "user":
                until(lambda: server.calls)
                raise Killed
            return real(self, timeout)

        caught = []

        def user() -> None:
            try:
                host.handle.stream(host.ask())
            except Killed:
                caught.append(True)

        monkeypatch.setattr(threading.Event, "wait", wait)
        thread = threading.Thread(target=user, name="user")
        thread.start()
        thread.join(20)
        monkeypatch.undo()
        assert caught
        assert left.wait(10)
        assert host.handle.stop("complete", 0)
    streams = history.load(tmp_path).streams
    assert [streams.reasons[i] for i in streams.reason] == ["cancelled"]


def test_stop_drains_then_cancels_and_refuses_new_ones(tmp_path: Path) -> None:
    go = threading.Event()

    async def script(call: Call) -> None:
        if call.json["model"] == "a":
            await asyncio.to_thread(go.wait)
            await complete(call)
        else:
            await endless(call)

    results: dict[str, Message] = {}
    with serving(script) as server, engine(tmp_path, server.url) as host:

        def user(adapter: str) -> None:
            results[adapter] = host.handle.stream(host.ask(adapter=adapter))

        threads = [threading.Thread(target=user, args=(name,)) for name in ("a", "b")]
        for t in threads:
            t.start()
        until(lambda: len(server.calls) == 2)
        host.handle.send({"op": "stop", "reason": "run_time", "drain_s": 1.5})
        late = host.handle.stream(host.ask())
        assert (late["outcome"], late["reason"], late["detail"]) == ("info", "cancelled", "the run is ending")
        go.set()
        until(lambda: host.told("stopped"))
        for t in threads:
            t.join(20)
    assert results["a"]["outcome"] == "ok"
    assert (results["b"]["outcome"], results["b"]["reason"]) == ("info", "cancelled")
    found = history.load(tmp_path)
    assert len(found.streams) == 2
    assert [e.reason for e in found.ends] == ["run_time"]


def test_engine_death_wakes_waiters(tmp_path: Path) -> None:
    results: list[Message] = []
    with serving(endless) as server, engine(tmp_path, server.url) as host:
        thread = threading.Thread(target=lambda: results.append(host.handle.stream(host.ask())))
        thread.start()
        until(lambda: server.calls)
        os.kill(host.handle.pid, signal.SIGKILL)
        thread.join(10)
        assert (results[0]["outcome"], results[0]["reason"]) == ("info", "unfinished")
        until(lambda: host.deaths)
        assert host.handle.stream(host.ask())["reason"] == "unfinished"
        with pytest.raises(LoadtestError, match="has ended"):
            host.handle.setup({}, 5)
        assert not host.handle.stop("complete", 0)
    assert len(host.deaths) == 1
    streams = history.load(tmp_path).streams  # `send` may or may not have reached the disk
    assert all(streams.reasons[i] == "unfinished" for i in streams.reason)


def test_close_without_stop_is_an_interruption(tmp_path: Path) -> None:
    with serving(endless) as server, engine(tmp_path, server.url) as host:
        thread = threading.Thread(target=lambda: host.handle.stream(host.ask()))
        thread.start()
        until(lambda: server.calls)
        host.handle.close()
        thread.join(10)
        assert not thread.is_alive()
    found = history.load(tmp_path)
    assert [e.reason for e in found.ends] == ["interrupted"]
    assert [found.streams.reasons[i] for i in found.streams.reason] == ["cancelled"]
    assert not host.deaths


def test_interrupts_are_the_hosts_affair_and_sigterm_is_a_stop(tmp_path: Path) -> None:
    with serving(complete, keep=True) as server, engine(tmp_path, server.url) as host:
        os.kill(host.handle.pid, signal.SIGINT)
        assert host.handle.stream(host.ask())["outcome"] == "ok"
        os.kill(host.handle.pid, signal.SIGTERM)
        until(lambda: host.told("stopped"))
    assert [e.reason for e in history.load(tmp_path).ends] == ["interrupted"]


@pytest.mark.parametrize("how", ["eof", "sigterm"])
def test_the_end_has_no_patience_with_open_streams(tmp_path: Path, how: str) -> None:
    """Each would have come to its end half a second later."""
    asked = threading.Event()

    async def script(call: Call) -> None:
        await call.send(CHUNKED)
        asked.set()
        await asyncio.sleep(0.5)
        await call.chunk(completion(IDS))
        await call.send(LAST_CHUNK)

    with serving(script) as server, engine(tmp_path, server.url) as host:
        thread = threading.Thread(target=lambda: host.handle.stream(host.ask()))
        thread.start()
        assert asked.wait(10)
        if how == "eof":
            host.handle.close()
        else:
            os.kill(host.handle.pid, signal.SIGTERM)
            until(lambda: host.told("stopped"))
        thread.join(10)
    streams = history.load(tmp_path).streams
    assert [streams.reasons[i] for i in streams.reason] == ["cancelled"]


def test_what_was_told_is_on_record_when_the_engine_is_killed(tmp_path: Path) -> None:
    with serving(complete, keep=True) as server, engine(tmp_path, server.url) as host:
        until(lambda: host.told("progress"))
        host.handle.event("note", "hello")
        assert host.handle.stream(host.ask())["outcome"] == "ok"  # what came before it has been handled
        os.kill(host.handle.pid, signal.SIGKILL)
        until(lambda: host.deaths)
    found = history.load(tmp_path)
    assert [(e.what, e.detail) for e in found.events] == [("note", "hello")]
    assert len(found.health) >= len(host.told("progress"))
    assert found.ends == ()


def test_one_healthy_replica_keeps_a_fleet_alive(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with serving(script) as gone:
        nobody = gone.url
    with serving(script) as server, engine(tmp_path, nobody, replicas=[nobody, server.url], spread="user") as host:
        for _ in range(6):
            assert host.handle.stream(host.ask())["reason"] == "refused"
        until(lambda: server.calls)
        assert host.handle.stop("complete", 0)
        assert host.told("target_died") == []
    assert [c.path for c in server.calls] == ["/health"]


def set_realtime_allowed() -> bool:
    """Asked of another process: this one's scheduling stays."""
    words = "import sys; from loadtest.traffic.priority import set_realtime; sys.exit(not set_realtime(True))"
    return subprocess.run([sys.executable, "-c", words], timeout=20).returncode == 0


@pytest.mark.parametrize(("said", "status"), [([], 0), ([{"op": "play"}], 70)])
def test_the_exit_status_says_whether_it_was_configured(said: list[Message], status: int) -> None:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "loadtest.traffic.engine", str(theirs.fileno()), str(os.getpid())]
    with ours, subprocess.Popen(command, pass_fds=(theirs.fileno(),), stderr=subprocess.DEVNULL) as child:
        theirs.close()
        for message in said:
            ours.sendall(frame(message))
        if not said:
            ours.shutdown(socket.SHUT_WR)
        assert child.wait(20) == status


PARENT = """
import sys, time
from loadtest.traffic.ipc import EngineHandle
handle = EngineHandle()
handle.start()
handle.configure({"folder": sys.argv[1], "engine": "e0", "role": "local", "seed": 1, "url": sys.argv[2]})
import os
if sys.argv[3] == "fork" and os.fork() == 0:
    time.sleep(60)  # holds a copy of the host's end
    os._exit(0)
print(handle.pid, flush=True)
handle.stream({"adapter": "a", "prompt": "x", "max_tokens": 4, "user": "u"})
"""


@pytest.mark.parametrize("mode", ["plain", "fork"])
def test_the_engine_ends_when_its_parent_is_killed(tmp_path: Path, mode: str) -> None:
    with serving(endless) as server:
        command = [sys.executable, "-c", PARENT, str(tmp_path), server.url, mode]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            until(lambda: server.calls)
            children = psutil.Process(parent.pid).children()
            parent.kill()
            until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    found = history.load(tmp_path)
    assert [e.reason for e in found.ends] == ["interrupted"]
    assert [found.streams.reasons[i] for i in found.streams.reason] == ["cancelled"]


def test_a_dead_target_is_said_once(tmp_path: Path) -> None:
    with serving(complete) as server:
        url = server.url
    with engine(tmp_path, url) as host:
        results = [host.handle.stream(host.ask()) for _ in range(12)]
        assert {r["reason"] for r in results} == {"refused"}
        until(lambda: host.told("target_died"))
        host.handle.stream(host.ask())
        assert len(host.told("target_died")) == 1
        assert host.handle.stop("target_died", 0)
    assert [e.what for e in history.load(tmp_path).events] == ["target_died"]


def test_refusals_of_a_healthy_target_are_no_death(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        if call.path == "/health":
            await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with serving(script) as server, engine(tmp_path, server.url) as host:
        for _ in range(8):
            assert host.handle.stream(host.ask())["reason"] == "refused"
        until(lambda: any(c.path == "/health" for c in server.calls))
        assert host.handle.stop("complete", 0)
        assert host.told("target_died") == []


def test_nonsense_is_answered_and_survived(tmp_path: Path) -> None:
    with serving(complete, keep=True) as server, engine(tmp_path, server.url) as host:
        host.handle.send({"op": "sing"})
        host.handle.send({"op": "stream", "id": 5})
        host.handle.send({"op": "configure"})
        host.handle.send({"op": "play"})
        until(lambda: len(host.told("error")) >= 4)
        assert host.handle.stream(host.ask())["outcome"] == "ok"
        said = [m["message"] for m in host.told("error")]
    assert sorted(said) == sorted(
        [
            "sing: LoadtestError: unknown message 'sing'",
            "stream: KeyError: 'adapter'",
            "configure: LoadtestError: 'configure' came twice",
            "LoadtestError: 'play' came before 'setup'",
        ]
    )
    assert [(e.what, e.detail) for e in history.load(tmp_path).events] == [("error", words) for words in said]
    log = (tmp_path / "engine.log").read_text()
    assert all(words.partition(": ")[2] in log for words in said)


def test_what_comes_before_configure_ends_the_engine(tmp_path: Path) -> None:
    news: list[Message] = []
    deaths: list[int] = []
    handle = EngineHandle(news.append, lambda: deaths.append(1))
    handle.start()
    try:
        handle.send({"op": "play"})
        until(lambda: deaths)
    finally:
        handle.close()
    assert [m["message"] for m in news] == ["play: LoadtestError: 'play' came before 'configure'"]


def test_progress_is_what_the_history_says(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        if call.json["model"] == "a":
            await complete(call)
        elif call.json["model"] == "refused":
            await call.send(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
        else:
            await endless(call)

    with serving(script, keep=True) as server, engine(tmp_path, server.url, limits={"stall_s": 0.2}) as host:
        for adapter in ("a", "refused", "stalls", "a"):
            host.handle.stream(host.ask(adapter=adapter))
        seen = len(host.told("progress"))
        until(lambda: len(host.told("progress")) > seen)
        policy = os.sched_getscheduler(host.handle.pid) & ~os.SCHED_RESET_ON_FORK
        assert policy == (os.SCHED_RR if set_realtime_allowed() else os.SCHED_OTHER)  # it needs little
        host.handle.event("long", "x" * 3000)
        assert host.handle.stop("complete", 0)
    told = {m["at_ns"]: m for m in host.told("progress")}
    last = host.told("progress")[-1]
    assert {k: last[k] for k in ("open", "sent", "ok", "fail", "info", "tokens", "dropped")} == {
        "open": 0, "sent": 4, "ok": 2, "fail": 1, "info": 1, "tokens": 9, "dropped": 0,
    }  # fmt: skip
    found = history.load(tmp_path)
    assert last["started_ns"] == found.runs[0].started_ns
    assert len(told) == len(found.health)
    for message, health in zip(told.values(), found.health, strict=True):
        assert (message["lag_ms"], message["open"]) == (health.lag_p99_ms, health.open_streams)
        assert message["cpu"] == pytest.approx(health.cpu_s * 1e9 / (health.at_ns - health.from_ns), abs=1e-3)
    assert [len(e.detail) for e in found.events] == [2000]


def test_open_streams_are_counted_while_they_are_open(tmp_path: Path) -> None:
    with serving(endless) as server, engine(tmp_path, server.url) as host:
        threads = [threading.Thread(target=lambda: host.handle.stream(host.ask())) for _ in range(3)]
        for t in threads:
            t.start()
        until(lambda: host.told("progress") and host.told("progress")[-1]["open"] == 3)
        host.handle.close()
        for t in threads:
            t.join(10)
    assert max(h.open_streams for h in history.load(tmp_path).health) == 3


def test_a_full_disk_is_said_once_and_ends_nothing(tmp_path: Path) -> None:
    with serving(complete, keep=True) as server, engine(tmp_path, server.url) as host:
        assert host.handle.stream(host.ask())["outcome"] == "ok"
        resource.prlimit(host.handle.pid, resource.RLIMIT_FSIZE, (0, 0))
        until(lambda: host.told("error"))
        seen = len(host.told("progress"))
        assert host.handle.stream(host.ask())["outcome"] == "ok"
        until(lambda: len(host.told("progress")) > seen)
        assert host.handle.stop("complete", 0)
        (error,) = host.told("error")
    assert "bytes of the history cannot be written: " in error["message"]
    assert error["message"].endswith(": make room where the results lie")


@pytest.mark.parametrize("spread", ["user", "stream"])
def test_streams_are_spread_over_replicas(tmp_path: Path, spread: str) -> None:
    with serving(complete, keep=True) as one, serving(complete, keep=True) as two:
        urls = [one.url, two.url]
        with engine(tmp_path, one.url, replicas=urls, spread=spread) as host:
            for user in ("u-1", "u-1", "u-2", "u-2"):
                assert host.handle.stream(host.ask(user=user))["outcome"] == "ok"
            assert host.handle.stop("complete", 0)
    found = history.load(tmp_path)
    assert found.streams.replica.tolist() == ([0, 0, 1, 1] if spread == "user" else [1, 0, 1, 0])
    assert (len(one.calls), len(two.calls)) == (2, 2)
    assert list(found.runs[0].replicas) == urls


def test_a_configuration_that_cannot_work_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LoadtestError, match=r"configure: .*file"), engine(tmp_path / "file", "http://127.0.0.1:1"):
        pass


def test_secrets_stay_out_of_the_folder(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        words = b'{"error":{"message":"bad key sk-verysecret99","type":"Auth"}}'
        await call.send(b"HTTP/1.1 401 No\r\nContent-Length: %d\r\n\r\n" % len(words) + words)

    headers = {"Authorization": "Bearer sk-verysecret99"}
    with serving(script) as server, engine(tmp_path, server.url, headers=headers) as host:
        assert host.handle.stream(host.ask())["reason"] == "rejected"
        assert server.calls[0].headers["authorization"] == "Bearer sk-verysecret99"
        assert host.handle.stop("complete", 0)
    for path in tmp_path.iterdir():
        assert b"verysecret" not in path.read_bytes()


GEVENT = """
import gevent.monkey
gevent.monkey.patch_all()
import sys, gevent
from loadtest.traffic.ipc import EngineHandle
news, deaths = [], []
handle = EngineHandle(news.append, lambda: deaths.append(1))
handle.start()
handle.configure({"folder": sys.argv[1], "engine": "e0", "role": "local", "seed": 1, "url": sys.argv[2]})
ask = {"adapter": "ok", "prompt": [1, 2, 3], "max_tokens": 4, "user": "u"}
jobs = [gevent.spawn(handle.stream, ask) for _ in range(30)]
gevent.joinall(jobs, timeout=20)
assert {j.value["outcome"] for j in jobs} == {"ok"}, [j.value for j in jobs]
cut = [gevent.spawn(handle.stream, {**ask, "adapter": "endless"}) for _ in range(5)]
while sum(m["op"] == "progress" and m["open"] == 5 for m in news) == 0:
    gevent.sleep(0.02)
gevent.killall(cut, timeout=10)
while [m["open"] for m in news if m["op"] == "progress"][-1]:
    gevent.sleep(0.02)
assert handle.stop("complete", 1.0)
handle.close()
assert not deaths
print("fine", flush=True)
"""


def test_inside_a_process_patched_by_gevent(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await (complete if call.json["model"] == "ok" else endless)(call)

    with serving(script, keep=True) as server:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(GEVENT), str(tmp_path), server.url],
            capture_output=True,
            timeout=60,
            text=True,
        )
    assert done.stdout == "fine\n", done.stderr
    streams = history.load(tmp_path).streams
    reasons = [streams.reasons[i] for i in streams.reason]
    assert sorted(reasons) == [""] * 30 + ["cancelled"] * 5
