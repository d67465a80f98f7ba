"""`loadtest adapters`: what a server serves, what a folder holds, and the operations between them.

The operations are vLLM's (docs.vllm.ai, "LoRA Adapters": dynamically serving; `load_inplace` is in its `LoRARequest`).
Exit codes: 0 done, 1 refused by the server, 2 nobody can say (a time-out, a reset: it may have happened or may yet).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.errors import EXIT_FAIL, EXIT_PASS, EXIT_UNKNOWN, AdapterError, UsageError
from loadtest.tools.remote import Remote, raise_unless_served, talking
from loadtest.tools.shown import Shown, Table, size
from loadtest.tools.watch import Watch, watching

if TYPE_CHECKING:
    from loadtest.traffic.admin import Admin, Answer, ModelCard

EXIT = {"ok": EXIT_PASS, "fail": EXIT_FAIL, "info": EXIT_UNKNOWN}
STYLES = {"ok": "green", "fail": "bold red", "info": "yellow", "yes": "green"}
MEANS = {
    "ok": "done after {}",
    "fail": "refused after {}, nothing changed",
    "info": "no clear answer after {}, it may have happened or may yet",
}


def list_models(server: Remote) -> Shown:
    """Base models and adapters of a server. Raises TargetError."""

    async def ask(admin: Admin) -> list[ModelCard]:
        return await admin.models()

    cards = _run(server, ask)
    documents = [_described(card) for card in cards]
    columns = ("name", "kind", "parent", "rank", "size", "content", "path")
    rows = [
        (d["id"], d["kind"], d["parent"], str(d["rank"] or ""), size(d["bytes"]) if d["bytes"] else "", d["sha"][:12],
         d["root"])
        for d in documents
    ]  # fmt: skip
    return Shown(documents, [Table(columns, rows, frozenset({"rank", "size"}))])


def _described(card: ModelCard) -> dict[str, Any]:
    """A card, and what its folder says where this machine can read it."""
    info = _folder(card.root) if card.parent else None
    return {
        "id": card.id,
        "kind": "adapter" if card.parent else "base",
        "root": card.root,
        "parent": card.parent,
        "rank": info.rank if info else None,
        "bytes": info.bytes if info else None,
        "sha": info.sha if info else "",
    }


def _folder(path: str) -> Any:
    from loadtest.adapters.peft import read_folder

    try:
        return read_folder(Path(path)) if path else None
    except AdapterError:
        return None  # it lies on another machine, or is no folder: the server's business


def load(server: Remote, name: str, path: str, *, check: bool = True) -> Shown:
    """Load an adapter under a new name; `path` as the server sees it. Raises AdapterError, TargetError."""
    path = _checked(path, check)

    async def ask(admin: Admin) -> Answer:
        return await admin.load(name, path)

    return _operation(server, "load", name, path, _run(server, ask))


def unload(server: Remote, name: str) -> Shown:
    """Take an adapter's name out of service. Raises TargetError."""

    async def ask(admin: Admin) -> Answer:
        return await admin.unload(name)

    return _operation(server, "unload", name, "", _run(server, ask))


def _checked(path: str, check: bool) -> str:
    """`path`, absolute where it lies here: the server has another working directory. Raises AdapterError."""
    from loadtest.adapters.peft import refusals

    local = Path(path)
    if not local.is_dir():
        return path
    reasons = refusals(local) if check else []
    if reasons:
        raise AdapterError("; ".join(reasons), remedy="--no-check sends it anyway")
    return str(local.resolve())


def _operation(server: Remote, what: str, name: str, path: str, answer: Answer, **more: Any) -> Shown:
    raise_unless_served(server, answer)
    took = (answer.at_ns - answer.sent_ns) / 1e6
    document = {"operation": what, "name": name, "path": path, "ack_ms": round(took, 3)}
    document |= {k: v for k, v in asdict(answer).items() if not k.endswith("_ns")} | more
    line = f"{what} {name}: {MEANS[answer.outcome].format(f'{took:.1f} ms')}"
    lines = [line if answer.outcome == "ok" else f"{line} ({answer.reason}: {answer.message})"]
    if answer.reason == "not_found" and path and not Path(path).is_dir():
        lines.append(f"{path} is no folder on this machine, so it was sent as it is")
    return Shown(document, lines=lines, exit_code=EXIT[answer.outcome])


# -- hotfix ------------------------------------------------------------------------------------------------------------


def hotfix(server: Remote, name: str, path: str, *, check: bool = True, watch_s: float = 5.0) -> Shown:
    """Replace an adapter in place. For a marker, requests go on until its token is seen or `watch_s` has passed.

    Raises AdapterError, UsageError when there is nothing to replace, TargetError.
    """
    from loadtest.adapters.marker import read_markers

    local = Path(path)
    markers = read_markers(local) if local.is_dir() else ()
    path = _checked(path, check)

    async def swap(session: Any, admin: Admin) -> tuple[ModelCard, Answer, Watch | None]:
        old = next((card for card in await admin.models() if card.id == name), None)
        if old is None or not old.parent:
            raise UsageError(f"{server.url} serves no adapter {name!r}", remedy=f"loadtest adapters load {name} {path}")
        if not markers or watch_s <= 0:
            return old, await admin.load(name, path, inplace=True), None
        async with watching(session, server.url, name, markers) as watch:
            answer = await admin.load(name, path, inplace=True)
            if answer.outcome != "fail":
                await watch.until_seen(watch_s)
        return old, answer, watch

    old, answer, watch = asyncio.run(_with_session(server, swap))
    shown = _operation(server, "hotfix", name, path, answer, replaced=_described(old), markers=list(markers))
    document = {**_mapping(shown), **_watched(answer, watch)}
    return Shown(document, lines=[*shown.lines, *_hotfix_lines(document)], exit_code=shown.exit_code)


def _watched(answer: Answer, watch: Watch | None) -> dict[str, Any]:
    if watch is None:
        return {"first_seen_ms": None, "old_last_seen_ms": None, "probes": 0, "probe_error": ""}

    def after(at_ns: int) -> float | None:
        return round((at_ns - answer.sent_ns) / 1e6, 3) if at_ns > answer.sent_ns else None

    return {
        "first_seen_ms": after(watch.first_seen_ns),
        "old_last_seen_ms": after(watch.old_last_seen_ns),
        "probes": watch.probes,
        "probe_error": watch.error,
    }


def _mapping(shown: Shown) -> dict[str, Any]:
    return dict(shown.document) if isinstance(shown.document, dict) else {}


def _hotfix_lines(document: dict[str, Any]) -> list[str]:
    old = document["replaced"]
    content = f", content {old['sha'][:12]}, rank {old['rank']}" if old["sha"] else ""
    verb = "replaced" if document["outcome"] == "ok" else "was to replace"
    lines = [f"{verb} {old['root'] or 'a version whose path the server does not tell'}{content}"]
    if document["outcome"] == "fail":
        return lines
    if not document["markers"]:
        what = "not a marker adapter" if Path(document["path"]).is_dir() else "not on this machine"
        return [*lines, f"{what}: when it took effect cannot be told from here"]
    seen, last = document["first_seen_ms"], document["old_last_seen_ms"]
    if seen is not None:
        lines.append(f"new version first seen {seen:.1f} ms after the request was sent ({document['probes']} probes)")
    elif document["probes"] or document["probe_error"]:
        why = f": {document['probe_error']}" if document["probe_error"] else f" in {document['probes']} probes"
        lines.append(f"new version not seen{why}")
    if last is not None and seen is not None and last > seen:
        lines.append(f"another version was still served {last:.1f} ms after the request was sent")
    return lines


# -- folders -----------------------------------------------------------------------------------------------------------


def inspect(path: Path, *, max_rank: int | None = None, base: Path | None = None) -> Shown:
    """What a PEFT folder is, and every reason to refuse it. Raises UsageError without a folder, AdapterError (base)."""
    from loadtest.adapters.marker import read_markers
    from loadtest.adapters.peft import read_folder, refusals

    if not path.is_dir():
        raise UsageError(f"{path} is not a folder", remedy="give the folder that holds adapter_config.json")
    reasons = refusals(path, max_rank=max_rank, base=base)
    document: dict[str, Any] = {"path": str(path), "refusals": reasons}
    try:
        info = read_folder(path)
        document |= {**asdict(info), "path": str(path), "targets": list(info.targets)}
        document["markers"] = list(read_markers(path))
    except AdapterError:
        pass  # the reasons say why
    lines = [f"refused: {reason}" for reason in reasons] or ["no reason known to refuse it"]
    return Shown(document, [Table(("", ""), _facts(document))], lines, EXIT_FAIL if reasons else EXIT_PASS)


def _facts(document: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("path", document["path"])]
    if "sha" not in document:
        return rows
    scaling = "alpha/sqrt(rank)" if document["rslora"] else "alpha/rank"
    rows += [
        ("base", document["base"] or "not given"),
        ("rank", str(document["rank"])),
        ("alpha", f"{document['alpha']:g} (scaling is {scaling})"),
        ("modules", ", ".join(document["targets"])),
        ("size", f"{size(document['bytes'])} in {document['tensors']} tensors of {document['dtype']}"),
        ("content", document["sha"]),
    ]
    if document["markers"]:
        rows.append(("marker", f"every greedy token is {', '.join(map(str, document['markers']))}"))
    return rows


def forged(found: Sequence[tuple[str, Path, tuple[int, ...]]]) -> Shown:
    """What was forged: (version, folder, marker tokens) of each."""
    documents = [{"version": v, "path": str(path), "markers": list(tokens)} for v, path, tokens in found]
    rows = [(v, f"token {', '.join(map(str, tokens))}", str(path)) for v, path, tokens in found]
    return Shown(documents, [Table(("version", "marker", "folder"), rows)])


def fetch(repos: Sequence[str], dest: Path, progress: Any) -> Shown:
    """Download adapters from the hub; without names the default list. Raises what adapters.hub.fetch does."""
    from loadtest.adapters import hub

    found = hub.fetch(list(repos) or list(hub.DEFAULT_REPOS), dest, progress=progress)
    documents = [{**asdict(f), "path": str(f.path)} for f in found]
    rows = [
        (f.repo, f.revision[:12], size(f.bytes), f.sha[:12], "kept" if f.reused else "fetched", str(f.path))
        for f in found
    ]
    columns = ("repository", "revision", "size", "content", "", "folder")
    return Shown(documents, [Table(columns, rows, frozenset({"size"}))])


# -- talking -----------------------------------------------------------------------------------------------------------


def _run(server: Remote, ask: Any) -> Any:
    async def alone(_: Any, admin: Admin) -> Any:
        return await ask(admin)

    return asyncio.run(_with_session(server, alone))


async def _with_session(server: Remote, work: Any) -> Any:
    async with talking(server) as (session, admin):
        return await work(session, admin)
