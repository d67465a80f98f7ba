"""Adapters from the Hugging Face hub: pinned, resumed, checked, and never a pickle.

    DEST/adapters.lock.json                       repo -> revision and the sha256 of each file
    DEST/OWNER--NAME/REVISION/                    the adapter (first 12 digits of the commit), whole or absent
    DEST/.partial/OWNER--NAME/REVISION/           what a cut download left; the next fetch goes on from there

1. REPO@REVISION is resolved to a commit by the hub. A bare REPO that the lock file knows stays at the commit it names.
2. A file is downloaded if the disk has none of the right hash: sha256 of the hub's LFS metadata, else git's own sha1.
   A lock entry must agree too, so a commit that was rewritten upstream is noticed.
3. A folder moves into place only when all its files are checked and it reads as PEFT safetensors.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, get_token, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, but not re-exported by name
    are_progress_bars_disabled,
    build_hf_headers,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)

from loadtest.adapters.base import read_json
from loadtest.adapters.checks import CONFIG, PICKLES, WEIGHTS
from loadtest.adapters.peft import read_folder
from loadtest.errors import AdapterError, Unreachable, UsageError

DEFAULT_REPOS = ("lewtun/Qwen2.5-0.5B-SFT-LoRA",)
LOCK_FILE = "adapters.lock.json"
Progress = Callable[[str, int, int], None]  # "REPO/FILE", bytes so far, bytes in all

_CHUNK = 1 << 16  # bytes; the client's own 10 MB would be lost at each cut, and is one step of progress
_TIMEOUT_S = 10.0  # for resolving a revision: the hub answers in under a second
_OFFLINE = "without a network use marker adapters, `loadtest adapters forge`: they need no download"
_TRANSPORT: type[Exception] = HfHubHTTPError.__bases__[0]  # the HTTP library's base error, whichever library it is


@dataclass(frozen=True, slots=True)
class Fetched:
    """One adapter on disk."""

    repo: str
    revision: str  # full commit hash
    path: Path  # the PEFT folder
    sha: str  # adapters.peft.content_hash
    bytes: int  # of all its files
    reused: bool  # nothing was downloaded


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    size: int
    sha256: str  # of LFS files
    sha1: str  # git's blob hash, of the others


@dataclass(frozen=True, slots=True)
class _Wanted:
    repo: str
    revision: str
    files: tuple[_File, ...]


def fetch(repos: Sequence[str], dest: Path, *, progress: Progress = lambda name, done, total: None) -> list[Fetched]:
    """Download each "REPO[@REVISION]" below `dest`; HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are honoured.

    Raises UsageError for a name that is none, AdapterError for a repository that is missing, gated, without PEFT
    safetensors or not what its hash says, Unreachable when the hub does not answer. What was fetched before it stays.
    """
    wanted = [_parse(spec) for spec in repos]
    with _hub_client():
        session = _Session(Path(dest), progress)
        return [session.fetch(repo, revision) for repo, revision in wanted]


def _parse(spec: str) -> tuple[str, str | None]:
    repo, at, revision = spec.partition("@")
    try:
        validate_repo_id(repo)  # among others no ".." and no "--", so a repository has one folder name of its own
    except HFValidationError:
        repo = ""
    if not repo or (at and not revision):
        raise UsageError(f"{spec!r} is not a repository", remedy="write OWNER/NAME or OWNER/NAME@REVISION")
    return repo, revision or None


class _Session:
    def __init__(self, dest: Path, progress: Progress) -> None:
        self._dest, self._progress = dest, progress
        self._endpoint = _endpoint()
        self._api = HfApi(endpoint=self._endpoint)
        lock = self._dest / LOCK_FILE
        with _writing(dest):
            dest.mkdir(parents=True, exist_ok=True)
        self._lock: dict[str, Any] = read_json(lock) if lock.is_file() else {}

    def fetch(self, repo: str, requested: str | None) -> Fetched:
        """One adapter: from disk when the lock file and every hash agree, else from the hub."""
        pinned = self._pinned(repo) if requested is None else None
        here = pinned and self._on_disk(repo, pinned)
        if here:
            return here
        wanted = self._resolve(repo, pinned or requested)
        here = self._on_disk(repo, wanted.revision)
        if here is None:
            self._download(wanted)
            here = self._describe(repo, wanted.revision, reused=False)
        self._pin(wanted, requested or self._lock.get(repo, {}).get("requested", "main"), here.path)
        return here

    def _entry(self, repo: str) -> dict[str, Any]:
        entry = self._lock.get(repo)
        sound = (
            isinstance(entry, dict) and isinstance(entry.get("files"), dict) and isinstance(entry.get("revision"), str)
        )
        return cast(dict[str, Any], entry) if sound else {}

    def _pinned(self, repo: str) -> str | None:
        return self._entry(repo).get("revision")

    def _locked(self, repo: str, revision: str) -> dict[str, str]:
        """File -> sha256 that the lock file has for this commit."""
        entry = self._entry(repo)
        return dict(entry["files"]) if entry.get("revision") == revision else {}

    def _folder(self, repo: str, revision: str, under: str = "") -> Path:
        return self._dest / under / repo.replace("/", "--") / revision[:12]

    def _on_disk(self, repo: str, revision: str) -> Fetched | None:
        folder, locked = self._folder(repo, revision), self._locked(repo, revision)
        if not locked or any(_sha256(folder / name) != sha for name, sha in locked.items()):
            return None
        return self._describe(repo, revision, reused=True)

    def _describe(self, repo: str, revision: str, *, reused: bool) -> Fetched:
        folder = self._folder(repo, revision)
        size = sum(file.stat().st_size for file in folder.iterdir())
        return Fetched(repo, revision, folder, read_folder(folder).sha, size, reused)

    def _resolve(self, repo: str, revision: str | None) -> _Wanted:
        """Ask the hub for the commit and its files; refuses what is no PEFT safetensors before a byte is loaded."""
        name = f"{repo}@{revision}" if revision else repo
        with self._explained(name):
            info = self._api.model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_S)
            commit, listed = str(info.sha), {s.rfilename: s for s in info.siblings or []}
        if not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise self._not_a_hub(f"commit {commit!r}")
        if CONFIG not in listed or WEIGHTS not in listed:
            pickles = [p for p in PICKLES if p in listed]
            lacks = f"holds no {CONFIG} with {WEIGHTS}"
            why = f"holds {pickles[0]}, a pickle that runs code when loaded" if pickles else lacks
            raise AdapterError(f"{name} {why}", remedy="choose a repository with a PEFT adapter in safetensors")
        files = tuple(self._file(listed[wanted]) for wanted in (CONFIG, WEIGHTS, "README.md") if wanted in listed)
        return _Wanted(repo, commit, files)

    def _file(self, listed: RepoSibling) -> _File:
        sha256 = listed.lfs.sha256 if listed.lfs else ""
        if listed.size is None or not (sha256 or listed.blob_id):
            raise self._not_a_hub(f"no size and hash for {listed.rfilename}")
        return _File(listed.rfilename, listed.size, sha256, listed.blob_id or "")

    def _download(self, wanted: _Wanted) -> None:
        partial = self._folder(wanted.repo, wanted.revision, ".partial")
        final = self._folder(wanted.repo, wanted.revision)
        with _writing(partial):
            partial.mkdir(parents=True, exist_ok=True)
        locked = self._locked(wanted.repo, wanted.revision)
        for file in wanted.files:
            self._download_file(wanted, file, partial / file.name)
            _check(wanted.repo, file, partial / file.name, locked.get(file.name))
        read_folder(partial)  # AdapterError unless it is PEFT safetensors
        if final.exists():  # it failed its hashes, or the lock file that vouched for it is gone
            shutil.rmtree(final)
        final.parent.mkdir(parents=True, exist_ok=True)
        os.rename(partial, final)
        shutil.rmtree(self._dest / ".partial" / final.parent.name, ignore_errors=True)

    def _download_file(self, wanted: _Wanted, file: _File, target: Path) -> None:
        """Append to `target` until it has the size the hub announced."""
        name = f"{wanted.repo}/{file.name}"
        url = hf_hub_url(wanted.repo, file.name, revision=wanted.revision, endpoint=self._endpoint)
        target.touch()
        have = target.stat().st_size
        if have > file.size:
            os.truncate(target, have := 0)
        with (
            open(target, "r+b") as out,
            self._explained(name, f"run it again: it goes on where it stopped, or {_OFFLINE}"),
        ):
            out.seek(have)
            watched = _Watched(out, lambda done: self._progress(name, done, file.size))
            # Compressed bytes could not be resumed.
            headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
            http_get(url, cast(BinaryIO, watched), resume_size=have, headers=headers, expected_size=file.size)

    def _pin(self, wanted: _Wanted, requested: str, folder: Path) -> None:
        files = {file.name: _sha256(folder / file.name) for file in wanted.files}
        self._lock[wanted.repo] = {"requested": requested, "revision": wanted.revision, "files": files}
        private = self._dest / f".{LOCK_FILE}.{os.getpid()}"
        private.write_text(json.dumps(self._lock, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(private, self._dest / LOCK_FILE)

    def _not_a_hub(self, found: str) -> Unreachable:
        return Unreachable(f"{self._endpoint} does not speak the hub's protocol ({found})", remedy="check HF_ENDPOINT")

    @contextmanager
    def _explained(self, name: str, remedy: str = _OFFLINE) -> Iterator[None]:
        """Whatever the hub client raises, as one of ours; causes are dropped, their text may hold the token."""
        try:
            yield
        except GatedRepoError:
            raise AdapterError(f"{name} is gated", remedy="accept its terms on the hub and set HF_TOKEN") from None
        except RepositoryNotFoundError:
            what = f"{name} is not on {self._endpoint}, or it is private"
            raise AdapterError(what, remedy="check the name, or set HF_TOKEN") from None
        except (RevisionNotFoundError, EntryNotFoundError):
            what = f"{name} does not exist on {self._endpoint}"
            raise AdapterError(what, remedy="check the revision on the hub") from None
        except HfHubHTTPError as error:
            raise self._refused(name, error.response.status_code, remedy) from None
        except (OSError, _TRANSPORT) as error:
            raise self._failed(name, error, remedy) from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._not_a_hub(f"{type(error).__name__} for {name}") from None

    def _refused(self, name: str, status: int, remedy: str) -> AdapterError | Unreachable:
        if status in (401, 403):
            return AdapterError(
                f"{self._endpoint} refuses {name} ({status})", remedy="check HF_TOKEN and its permissions"
            )
        return Unreachable(f"{self._endpoint} answered {status} for {name}", remedy=remedy)

    def _failed(self, name: str, error: Exception, remedy: str) -> Unreachable:
        text, token = " ".join(str(error).split()), get_token()
        if not text or "bearer" in text.lower() or (token and token in text):
            text = type(error).__name__
        return Unreachable(f"{name} could not be fetched from {self._endpoint} ({text})", remedy=remedy)


def _endpoint() -> str:
    """HF_ENDPOINT as it is now; the hub client reads it only once."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    try:
        parts = urlsplit(endpoint)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound:
        raise UsageError(f"HF_ENDPOINT is {endpoint!r}, not a URL", remedy="unset it, or give http(s)://HOST")
    return endpoint


@contextmanager
def _hub_client() -> Iterator[None]:
    """The hub client without progress bars and retry warnings of its own, reading in small steps; restored after."""
    log, bars = logging.getLogger("huggingface_hub"), not are_progress_bars_disabled()
    level, chunk = log.level, constants.DOWNLOAD_CHUNK_SIZE
    log.setLevel(logging.ERROR)
    disable_progress_bars()
    constants.DOWNLOAD_CHUNK_SIZE = _CHUNK
    try:
        yield
    finally:
        constants.DOWNLOAD_CHUNK_SIZE = chunk
        log.setLevel(level)
        if bars:
            enable_progress_bars()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A full or read-only disk is no network fault."""
    try:
        yield
    except OSError as error:
        what = f"{path} cannot be written ({error.strerror})"
        raise AdapterError(what, remedy="choose a folder with space that you may write to") from error


class _Watched:
    """A binary file that reports its position after each write."""

    def __init__(self, file: BinaryIO, report: Callable[[int], None]) -> None:
        self._file, self._report = file, report
        report(file.tell())

    def write(self, data: bytes) -> int:
        with _writing(Path(str(self._file.name))):
            written = self._file.write(data)
        self._report(self._file.tell())
        return written

    def seek(self, offset: int) -> int:
        return self._file.seek(offset)

    def tell(self) -> int:
        return self._file.tell()

    def truncate(self) -> int:
        return self._file.truncate()


def _sha256(path: Path) -> str:
    """Hex digest, "" when there is no such file."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def _check(repo: str, file: _File, path: Path, locked: str | None) -> None:
    """AdapterError, and the file removed, when its bytes are not those that the hub or the lock file announced."""
    sha256 = _sha256(path)
    if file.sha256:
        found, announced = sha256, file.sha256
    else:
        blob = b"blob %d\0" % path.stat().st_size + path.read_bytes()
        found, announced = hashlib.sha1(blob, usedforsecurity=False).hexdigest(), file.sha1
    if found != announced:
        path.unlink()
        what = f"{repo}/{file.name} has the hash {found}, the hub announces {announced}"
        raise AdapterError(what, remedy="fetch it again; if it stays so, do not use it")
    if locked is not None and sha256 != locked:
        path.unlink()
        what = f"{repo}/{file.name} has sha256 {sha256}, {LOCK_FILE} has {locked} for the same commit"
        raise AdapterError(what, remedy=f"if you trust the new content, remove {repo} from {LOCK_FILE}")
