"""`fetch` against a small server that speaks the hub's protocol on loopback, in all its bad moods."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from loadtest.adapters.hub import DEFAULT_REPOS, LOCK_FILE, fetch
from loadtest.adapters.marker import Effect, random_effect
from loadtest.adapters.peft import CONFIG, WEIGHTS, content_hash
from loadtest.errors import AdapterError, Unreachable, UsageError
from loadtest.server.base import ensure_base

REPO = DEFAULT_REPOS[0]
TOKEN = "hf_do_not_print_me_0123456789"
KEPT = 65536  # of 100,000 bytes before a cut: what had been read in whole chunks
Content = dict[str, bytes]


@dataclass
class Hub:
    """Repositories by name, each a list of commits; `seen` is every request for a file."""

    commits: dict[str, list[Content]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cuts: list[int] = field(default_factory=list)  # send only so many bytes of the next weights files
    down_from: int | None = None  # answer 503 to weights from this request on, the first is 1
    answer: bytes | None = None  # what the API answers instead
    announce: dict[str, str] = field(default_factory=dict)  # file -> the hash to announce instead
    seen: list[tuple[str, str | None]] = field(default_factory=list)  # file, Range
    api_calls: int = 0
    tokens: dict[str, set[str | None]] = field(default_factory=lambda: {"hub": set(), "cdn": set()})
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def find(self, repo: str, revision: str) -> tuple[str, Content] | None:
        commits = {commit_id(c): c for c in self.commits.get(repo, [])}
        if revision == "main" and commits:
            return list(commits.items())[-1]
        return (revision, commits[revision]) if revision in commits else None

    async def info(self, request: web.Request) -> web.Response:
        self.api_calls += 1
        self.tokens["hub"].add(request.headers.get("authorization"))
        repo, revision = request.match_info["repo"], request.match_info.get("revision", "main")
        if self.answer is not None:
            return web.Response(body=self.answer, content_type="application/json")
        if repo in self.gated:
            return web.Response(status=403, headers={"X-Error-Code": "GatedRepo"})
        if repo not in self.commits:
            return web.Response(status=404, headers={"X-Error-Code": "RepoNotFound"})
        found = self.find(repo, revision)
        if found is None:
            return web.Response(status=404, headers={"X-Error-Code": "RevisionNotFound"})
        siblings = [self.sibling(name, content) for name, content in found[1].items()]
        return web.json_response({"id": repo, "modelId": repo, "sha": found[0], "tags": [], "siblings": siblings})

    def sibling(self, name: str, content: bytes) -> dict[str, Any]:
        sha1 = self.announce.get(name, git_sha1(content))
        out: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": sha1}
        if name.endswith((".safetensors", ".bin")):
            sha = self.announce.get(name, hashlib.sha256(content).hexdigest())
            out["lfs"] = {"sha256": sha, "size": len(content), "pointerSize": 134}
        return out

    async def resolve(self, request: web.Request) -> web.StreamResponse:
        self.tokens["hub"].add(request.headers.get("authorization"))
        if request.match_info["file"].endswith(".safetensors"):  # large files lie on another host
            raise web.HTTPFound(f"http://localhost:{self.port}/cdn{request.path}")
        return await self.send(request)

    async def cdn(self, request: web.Request) -> web.StreamResponse:
        self.tokens["cdn"].add(request.headers.get("authorization"))
        return await self.send(request)

    async def send(self, request: web.Request) -> web.StreamResponse:
        where = request.match_info
        found = self.find(where["repo"], where["revision"])
        if found is None:
            return web.Response(status=404, headers={"X-Error-Code": "EntryNotFound"})
        content, wanted = found[1][where["file"]], request.headers.get("Range")
        self.seen.append((where["file"], wanted))
        weights = where["file"].endswith(".safetensors")
        if weights and self.down_from is not None and len(ranges(self)) >= self.down_from:
            return web.Response(status=503)
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        body = content[start:]
        cut = self.cuts.pop(0) if weights and self.cuts else len(body)
        response = web.StreamResponse(status=206 if wanted else 200, headers={"Content-Length": str(len(body))})
        if wanted:
            response.headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        await response.prepare(request)
        await response.write(body[:cut])
        if cut < len(body):
            assert request.transport is not None
            request.transport.close()
        return response


def commit_id(content: Content) -> str:
    return hashlib.sha1(repr(sorted(content.items())).encode()).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub(adapter: Content, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub, started, stop = Hub({REPO: [adapter]}), threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        app = web.Application()
        app.router.add_get("/api/models/{repo:[^/]+/[^/]+}", hub.info)
        app.router.add_get("/api/models/{repo:[^/]+/[^/]+}/revision/{revision}", hub.info)
        app.router.add_get("/cdn/{repo:[^/]+/[^/]+}/resolve/{revision}/{file}", hub.cdn)
        app.router.add_get("/{repo:[^/]+/[^/]+}/resolve/{revision}/{file}", hub.resolve)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        sock = socket.create_server(("127.0.0.1", 0))
        await web.SockSite(runner, sock).start()
        hub.port = sock.getsockname()[1]
        loops.append(asyncio.get_running_loop())
        started.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(10)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "*")
    yield hub
    loops[0].call_soon_threadsafe(stop.set)
    thread.join(10)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Content:
    return made(tmp_path_factory.mktemp("made"), seed=0)


def made(folder: Path, seed: int) -> Content:
    path = random_effect(ensure_base(folder), folder / f"a{seed}", Effect(rank=16, seed=seed)).path
    return {file.name: file.read_bytes() for file in path.iterdir()} | {"README.md": b"# An adapter\n"}


def ranges(hub: Hub) -> list[str | None]:
    return [wanted for name, wanted in hub.seen if name == WEIGHTS]


def test_an_adapter_is_fetched_pinned_and_then_reused_without_the_hub(
    hub: Hub, adapter: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[tuple[str, int, int]] = []
    got = fetch([REPO], tmp_path, progress=lambda *report: reports.append(report))[0]
    assert {file.name: file.read_bytes() for file in got.path.iterdir()} == adapter
    assert got.revision == commit_id(adapter)
    assert not got.reused
    assert (got.sha, got.bytes) == (content_hash(got.path), sum(map(len, adapter.values())))
    size = len(adapter[WEIGHTS])
    done = [at for name, at, total in reports if name == f"{REPO}/{WEIGHTS}" and total == size]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, size)
    lock = json.loads((tmp_path / LOCK_FILE).read_text())[REPO]
    assert (lock["requested"], lock["revision"]) == ("main", got.revision)
    assert lock["files"][WEIGHTS] == hashlib.sha256(adapter[WEIGHTS]).hexdigest()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens: the disk must do
    again = fetch([REPO], tmp_path)[0]
    assert again.reused
    assert again.path == got.path
    assert sorted(p.name for p in tmp_path.iterdir()) == [".partial", LOCK_FILE, REPO.replace("/", "--")]


def test_a_bare_name_stays_at_its_pin_and_a_revision_moves_it(hub: Hub, adapter: Content, tmp_path: Path) -> None:
    first = fetch([REPO], tmp_path)[0]
    hub.commits[REPO].append(made(tmp_path / "made", seed=1))
    assert fetch([REPO], tmp_path)[0].revision == first.revision
    second = fetch([f"{REPO}@main"], tmp_path)[0]
    assert second.revision == commit_id(hub.commits[REPO][1])
    assert second.sha != first.sha
    assert first.path.is_dir(), "versions lie side by side: a hotfix needs both"
    assert fetch([REPO], tmp_path)[0].revision == second.revision
    assert fetch([f"{REPO}@{first.revision}"], tmp_path)[0].path == first.path


def test_a_lost_folder_is_fetched_again_at_the_pinned_commit(hub: Hub, tmp_path: Path) -> None:
    first = fetch([REPO], tmp_path)[0]
    hub.commits[REPO].append(made(tmp_path / "made", seed=1))
    (first.path / WEIGHTS).write_bytes(b"spoiled")
    second = fetch([REPO], tmp_path)[0]
    assert (second.revision, second.sha, second.reused) == (first.revision, first.sha, False)


def test_a_cut_download_resumes_within_one_fetch(hub: Hub, adapter: Content, tmp_path: Path) -> None:
    hub.cuts = [100_000]
    assert fetch([REPO], tmp_path)[0].bytes == sum(map(len, adapter.values()))
    assert ranges(hub) == [None, f"bytes={KEPT}-"]


def test_a_fetch_that_failed_goes_on_where_it_stopped(hub: Hub, adapter: Content, tmp_path: Path) -> None:
    hub.cuts, hub.down_from = [100_000], 2
    with pytest.raises(Unreachable, match=r"answered 503 .* goes on where it stopped") as caught:
        fetch([REPO], tmp_path)
    hub.down_from = None
    assert caught.value.exit_code == 69
    assert not (tmp_path / LOCK_FILE).exists()
    got = fetch([REPO], tmp_path)[0]
    assert (got.path / WEIGHTS).read_bytes() == adapter[WEIGHTS]
    assert ranges(hub)[-1] == f"bytes={KEPT}-"


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_wrong_hash_is_refused_and_nothing_is_kept(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.announce[name] = "0" * (64 if name == WEIGHTS else 40)
    with pytest.raises(AdapterError, match=rf"{name} has the hash [0-9a-f]+, the hub announces 0+"):
        fetch([REPO], tmp_path)
    assert not list(tmp_path.glob(f"**/{REPO.split('/')[1]}/*/{name}"))
    assert not (tmp_path / LOCK_FILE).exists()
    hub.announce.clear()
    assert fetch([REPO], tmp_path)[0].revision


def test_a_commit_that_no_longer_holds_what_the_lock_file_says_is_refused(hub: Hub, tmp_path: Path) -> None:
    got = fetch([REPO], tmp_path)[0]
    (got.path / WEIGHTS).unlink()
    lock = json.loads((tmp_path / LOCK_FILE).read_text())
    lock[REPO]["files"][WEIGHTS] = "1" * 64
    (tmp_path / LOCK_FILE).write_text(json.dumps(lock))
    with pytest.raises(AdapterError, match=f"{LOCK_FILE} has 1+ for the same commit"):
        fetch([REPO], tmp_path)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ({CONFIG: CONFIG, WEIGHTS: "adapter_model.bin"}, r"adapter_model\.bin, a pickle"),
        ({CONFIG: "config.json", WEIGHTS: "model.safetensors"}, f"holds no {CONFIG}"),
    ],
)
def test_a_pickle_or_a_whole_model_is_refused_before_any_download(
    hub: Hub, adapter: Content, tmp_path: Path, names: dict[str, str], reason: str
) -> None:
    hub.commits[REPO] = [{new: adapter[old] for old, new in names.items()}]
    with pytest.raises(AdapterError, match=reason):
        fetch([REPO], tmp_path)
    assert hub.seen == []


def test_weights_that_are_no_safetensors_are_refused(hub: Hub, adapter: Content, tmp_path: Path) -> None:
    hub.commits[REPO] = [adapter | {WEIGHTS: b"\x80\x04 a pickle in disguise" * 10}]
    with pytest.raises(AdapterError, match="claims a header of"):
        fetch([REPO], tmp_path)
    assert not (tmp_path / LOCK_FILE).exists()


def test_missing_gated_and_misnamed_repositories(hub: Hub, tmp_path: Path) -> None:
    hub.gated.add("some/gated")
    for spec, message in (
        ("no/body", "is not on"),
        ("some/gated", "is gated"),
        (f"{REPO}@v9", "does not exist"),
    ):
        with pytest.raises(AdapterError, match=message):
            fetch([spec], tmp_path)
    calls = hub.api_calls
    for spec in ("", "a/b/c", "a b", f"{REPO}@", "../up", "https://huggingface.co/a/b"):
        with pytest.raises(UsageError, match="is not a repository"):
            fetch([REPO, spec], tmp_path)
    assert hub.api_calls == calls, "names are checked before the network is used"


def test_the_token_goes_to_the_hub_only_and_is_never_shown(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.cuts = [1000]
    fetch([REPO], tmp_path)
    assert hub.tokens == {"hub": {f"Bearer {TOKEN}"}, "cdn": {None}}
    texts = []
    for token in (TOKEN, f"{TOKEN}\x01"):  # the second is no legal header: clients quote it in their error
        monkeypatch.setenv("HF_TOKEN", token)
        for endpoint in ("http://127.0.0.1:9", hub.url):
            monkeypatch.setenv("HF_ENDPOINT", endpoint)
            try:
                fetch(["no/body"], tmp_path)
            except (AdapterError, Unreachable) as error:
                texts.append(f"{error} {error.__cause__}")
    shown = capfd.readouterr()
    assert len(texts) == 4
    logged = [r.getMessage() for r in caplog.records if r.name != "aiohttp.server"]  # that one is the hub's
    assert logged
    assert TOKEN not in " ".join([*texts, *logged, shown.out, shown.err])


def test_without_a_network_the_error_names_the_way_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", "*")
    way_on = r"could not be fetched .* use marker adapters, `loadtest adapters forge`"
    with pytest.raises(Unreachable, match=way_on) as caught:
        fetch(list(DEFAULT_REPOS), tmp_path)
    assert caught.value.exit_code == 69
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["hub.example", "ftp://hub.example", "http://[", "http://h:99999"])
def test_an_endpoint_that_is_no_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(UsageError, match="HF_ENDPOINT is"):
        fetch([REPO], tmp_path)


def test_a_folder_that_cannot_be_written(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match="cannot be written"):
        fetch([REPO], tmp_path / "file" / "below")


def test_a_server_that_is_no_hub(tmp_path: Path, hub: Hub) -> None:
    for answer in (b"<html>", b"[]", b'{"id": 1}', b'{"id": "a/b", "sha": "x", "siblings": []}'):
        hub.answer = answer
        with pytest.raises(Unreachable, match="does not speak the hub's protocol"):
            fetch([REPO], tmp_path)
