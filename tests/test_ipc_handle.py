"""EngineHandle against an engine that is a script: what a real one does only when it is ill."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from rawserver import until

from loadtest.errors import LoadtestError, TargetError, UsageError
from loadtest.traffic import engine, ipc
from loadtest.traffic.ipc import MAX_FRAME, EngineHandle, FrameError, Message, Unframer, frame

# What stands for the engine: it is started as the engine is, with the socket's number before the last argument.
ENGINE = """#!{python} -ES
import json, signal, socket, struct, sys, time
assert sys.argv[1:3] == ["-m", "loadtest.traffic.engine"], sys.argv
peer = socket.socket(fileno=int(sys.argv[-2]))
def exactly(size):
    data = b""
    while len(data) < size:
        more = peer.recv(size - len(data))
        if not more:
            sys.exit(0)
        data += more
    return data
def recv(op=None):
    message = json.loads(exactly(*struct.unpack(">I", exactly(4))))
    assert op in (None, message["op"]), message
    return message
def send(op, **more):
    data = json.dumps(dict(more, op=op)).encode()
    peer.sendall(struct.pack(">I", len(data)) + data)
{script}
while True:
    recv()
"""


@dataclass
class Host:
    """A handle, and what it was told."""

    handle: EngineHandle
    news: list[Message] = field(default_factory=list)
    deaths: list[int] = field(default_factory=list)


Start = Callable[..., Host]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a handle whose engine runs `script`."""
    hosts: list[Host] = []

    def begin(script: str, listener: Callable[[Message], object] | None = None) -> Host:
        path = tmp_path / "engine"
        path.write_text(ENGINE.format(python=os.path.realpath(sys.executable), script=textwrap.dedent(script)))
        path.chmod(0o755)
        news: list[Message] = []
        deaths: list[int] = []
        hosts.append(Host(EngineHandle(listener or news.append, lambda: deaths.append(1)), news, deaths))
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", str(path))
            hosts[-1].handle.start()
        return hosts[-1]

    yield begin
    for host in hosts:
        host.handle.close()


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_frame_may_be_256_mib_and_no_byte_more() -> None:
    assert MAX_FRAME == 256 << 20
    assert Unframer().feed(MAX_FRAME.to_bytes(4, "big")) == []
    with pytest.raises(FrameError, match=f"of {MAX_FRAME + 1} bytes, at most {MAX_FRAME}"):
        Unframer().feed((MAX_FRAME + 1).to_bytes(4, "big"))
    assert Unframer().feed(frame({"op": "x"}) + b"\0\0\0")[0] == {"op": "x"}


@pytest.mark.parametrize(
    ("code", "kind"), [(TargetError.exit_code, TargetError), (UsageError.exit_code, UsageError), (70, LoadtestError)]
)
def test_a_setup_that_failed_is_an_error_of_its_exit_code(start: Start, code: int, kind: type[LoadtestError]) -> None:
    host = start(f"""
        assert recv("setup")["script"] == {{"x": 1}}
        send("setup_done", ok=False, error="why", exit_code={code})
    """)
    with pytest.raises(LoadtestError, match="why") as found:
        host.handle.setup({"x": 1}, 5)
    assert type(found.value) is kind
    assert host.news == []


def test_a_setup_that_succeeded_or_said_no_more_than_that_it_did_not(start: Start) -> None:
    host = start("""
        recv("setup"), send("setup_done", ok=True)
        recv("setup"), send("setup_done")
    """)
    host.handle.setup({}, 5)
    with pytest.raises(LoadtestError) as found:
        host.handle.setup({}, 5)
    assert found.value.exit_code == 70


def test_an_engine_that_does_not_answer_is_named(start: Start) -> None:
    host = start("")
    with pytest.raises(LoadtestError, match=r"did not answer 'configure' within 0\.1 s"):
        host.handle.configure({"folder": "x"}, 0.1)
    assert host.handle.alive


def test_an_engine_that_ends_says_why_to_whoever_asks(start: Start) -> None:
    host = start("""
        recv("configure")
        send("error", message="configure: no room")
        sys.exit(1)
    """)
    with pytest.raises(LoadtestError, match=r"configure: no room: see engine\.log") as found:
        host.handle.configure({}, 5)
    assert found.value.exit_code == 70
    until(lambda: host.deaths)
    assert not host.handle.alive
    for call in (host.handle.play, lambda: host.handle.event("x"), lambda: host.handle.send({"op": "x"})):
        with pytest.raises(BrokenPipeError):
            call()
    with pytest.raises(LoadtestError, match="no room"):
        host.handle.hotfix("a", None, 5)
    assert [m["op"] for m in host.news] == ["error"]


def test_the_end_of_the_phases_is_waited_for_and_told(start: Start) -> None:
    host = start("""
        recv("play")
        recv("event")
        send("play_done", reason="complete")
    """)
    host.handle.play()
    assert host.handle.wait_play(0.05) is None
    host.handle.event("go", "on")
    assert host.handle.wait_play(10) == "complete"
    until(lambda: host.news)
    assert host.news == [{"op": "play_done", "reason": "complete"}]


def test_phases_whose_engine_ends_are_an_error(start: Start) -> None:
    host = start('recv("play")\nsys.exit(3)')
    host.handle.play()
    with pytest.raises(LoadtestError, match="the traffic engine has ended"):
        host.handle.wait_play(10)


def test_hotfixes_that_cross_have_their_own_answers(start: Start) -> None:
    """And one that nobody waits for any more is news."""
    host = start("""
        asked = [recv("hotfix") for _ in range(2)]
        for message in reversed(asked):
            send("hotfix_done", id=message["id"], adapter=message["adapter"], version=message["version"])
        send("hotfix_done", id=99)
    """)
    answers: dict[str, Message] = {}

    def ask(adapter: str) -> None:
        answers[adapter] = host.handle.hotfix(adapter, f"{adapter}-1", 10)

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("a", "b")]
    for t in threads:
        t.start()
    for t in threads:
        t.join(10)
    assert {a: (m["adapter"], m["version"]) for a, m in answers.items()} == {"a": ("a", "a-1"), "b": ("b", "b-1")}
    until(lambda: host.news)
    assert [m["id"] for m in host.news] == [99]


def test_results_go_to_whoever_asked_and_those_of_nobody_are_news(start: Start) -> None:
    host = start("""
        first, second = recv("stream"), recv("stream")
        send("result", id=0, outcome="fail")
        send("result", id=77, outcome="lost")
        send("result", id=second["id"], outcome=second["adapter"])
        send("result", id=first["id"], outcome=first["adapter"])
    """)
    found: dict[str, str] = {}

    def user(name: str) -> None:
        found[name] = host.handle.stream({"adapter": name, "prompt": "x", "max_tokens": 1, "user": "u"})["outcome"]

    threads = [threading.Thread(target=user, args=(name,)) for name in ("a", "b")]
    for t in threads:
        t.start()
    for t in threads:
        t.join(10)
    assert found == {"a": "a", "b": "b"}
    assert [m["id"] for m in host.news] == [0]


@pytest.mark.parametrize("closing", [False, True])
def test_a_stream_without_an_answer_has_the_whole_form_of_one(start: Start, closing: bool) -> None:
    host = start('recv("stream")\n' + ("" if closing else "sys.exit(1)"))
    found: list[Message] = []
    ask = {"adapter": "a", "prompt": "x", "max_tokens": 1, "user": "u-1"}
    thread = threading.Thread(target=lambda: found.append(host.handle.stream(ask)))
    thread.start()
    until(lambda: host.handle._streams or found)
    if closing:
        host.handle.close()
    thread.join(10)
    assert found == [
        {
            "op": "result",
            "id": 1,
            "adapter": "a",
            "user": "u-1",
            "outcome": "info",
            "reason": "cancelled" if closing else "unfinished",
            "detail": "the traffic engine has ended",
            "tokens": 0,
            "ttft_ms": None,
            "e2el_ms": None,
        }
    ]
    assert not closing or host.deaths == []


def test_a_listener_that_raises_is_logged_and_the_reader_goes_on(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(message: Message) -> None:
        raise KeyError("a bug of the listener")

    host = start('send("news")\nrecv("configure"), send("ready", pid=1)', broken)
    host.handle.configure({}, 5)
    assert "a listener of the traffic engine failed" in caplog.text
    assert host.deaths == []


def test_an_engine_that_talks_nonsense_has_ended(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    host = start('peer.sendall(b"\\xff\\xff\\xff\\xff")')
    until(lambda: host.deaths)
    assert not host.handle.alive
    assert "the traffic engine's messages ended: a frame of 4294967295 bytes" in caplog.text
    assert host.handle.stream({"adapter": "a"})["reason"] == "unfinished"
    assert host.deaths == [1]


@pytest.mark.parametrize("path", [None, "/somewhere/else"])
def test_the_engine_is_of_the_hosts_own_tree(start: Start, monkeypatch: pytest.MonkeyPatch, path: str | None) -> None:
    """Whatever else is installed or on the path."""
    if path is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", path)
    host = start('import os\nsend("env", path=os.environ.get("PYTHONPATH"))')
    until(lambda: host.news)
    root = str(Path(ipc.__file__).parents[2])
    ours = [] if "site-packages" in root else [root]
    assert host.news[0]["path"] == (os.pathsep.join([*ours, *([path] if path else [])]) or None)


def test_the_host_waits_longer_than_an_engine_takes() -> None:
    assert ipc.ROLLBACK_S > engine.ROLLBACK_S
    assert ipc.CLOSE_S > engine.LAST_ROLLBACK_S


def test_a_stop_in_order_is_no_death(start: Start) -> None:
    host = start("""
        message = recv("stop")
        assert (message["reason"], message["drain_s"]) == ("complete", 1.5)
        send("stopped")
        time.sleep(0.2)
        sys.exit(0)
    """)
    assert host.handle.stop("complete", 1.5)
    until(lambda: not host.handle.alive)
    assert host.deaths == []


def test_a_stop_has_its_drain_and_the_time_of_a_rollback(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    host = start("""
        recv("stop")
        time.sleep(0.3)
        send("stopped")
        recv("stop")
    """)
    monkeypatch.setattr(ipc, "ROLLBACK_S", 0.1)
    assert host.handle.stop("complete", 10)
    began = time.monotonic()
    assert not host.handle.stop("complete", 0.1)
    assert time.monotonic() - began >= 0.2


def test_an_engine_that_does_not_end_is_terminated_then_killed(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = start(f"""
        signal.signal(signal.SIGTERM, lambda *a: open({str(tmp_path / "asked")!r}, "w").close())
        send("deaf")
        while True:
            time.sleep(60)
    """)
    until(lambda: host.news)
    monkeypatch.setattr(ipc, "CLOSE_S", 0.3)
    pid = host.handle.pid
    host.handle.close()
    assert gone(pid)
    assert (tmp_path / "asked").exists()
    assert host.deaths == []
    assert host.handle.pid == 0


def test_an_engine_that_ends_at_its_eof_is_not_terminated(start: Start, tmp_path: Path) -> None:
    host = start(f"""
        signal.signal(signal.SIGTERM, lambda *a: open({str(tmp_path / "asked")!r}, "w").close())
        send("ready")
        assert peer.recv(1) == b""
        time.sleep(0.2)
        open({str(tmp_path / "orderly")!r}, "w").close()
        sys.exit(0)
    """)
    until(lambda: host.news)
    host.handle.close()
    assert (tmp_path / "orderly").exists()
    assert not (tmp_path / "asked").exists()


def test_a_handle_that_cannot_start_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    before = psutil.Process().num_fds()
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    handle = EngineHandle()
    with pytest.raises(FileNotFoundError):
        handle.start()
    assert psutil.Process().num_fds() == before
    assert not handle.alive
    handle.close()


def test_whoever_is_killed_while_waiting_cancels_its_stream_only(start: Start) -> None:
    host = start("""
        first = recv("stream")
        send("got")
        assert recv("cancel")["id"] == first["id"]
        send("result", id=first["id"], outcome="info")
        second = recv("stream")
        send("result", id=second["id"], outcome="ok")
    """)
    real = signal.signal(signal.SIGALRM, interrupt)
    ask = {"adapter": "a", "prompt": "x", "max_tokens": 1, "user": "u"}
    try:
        left = signal.setitimer(signal.ITIMER_REAL, 0.3)  # whoever bounds this test's time may use it too
        with pytest.raises(KeyboardInterrupt):
            host.handle.stream(ask)
    finally:
        signal.signal(signal.SIGALRM, real)
        signal.setitimer(signal.ITIMER_REAL, *left)
    assert host.handle.stream(ask)["outcome"] == "ok"
    assert [m["op"] for m in host.news] == ["got"]


def interrupt(number: int, stack: object) -> None:
    raise KeyboardInterrupt
