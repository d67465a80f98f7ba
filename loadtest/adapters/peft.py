"""PEFT folders: read, hash, write, and copy them, sound or on purpose unsound."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.adapters.base import read_json
from loadtest.adapters.checks import CONFIG, WEIGHTS, is_alpha, is_count, refusals
from loadtest.adapters.tensors import Array, read_header, read_stored, write_tensors
from loadtest.errors import AdapterError

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "PeftInfo",
    "content_hash",
    "copy_fresh",
    "corrupt_copy",
    "inflate_rank",
    "read_folder",
    "refusals",
    "write_folder",
]


@dataclass(frozen=True, slots=True)
class PeftInfo:
    """What a PEFT folder says about itself."""

    path: Path
    base: str  # base_model_name_or_path, "" when not given
    rank: int
    alpha: float
    rslora: bool  # scaling is alpha/sqrt(rank) instead of alpha/rank
    targets: tuple[str, ...]  # names of the adapted modules, as the tensors have them
    bytes: int  # size of the weights file
    dtype: str  # stored type, "mixed" when there are several
    tensors: int
    sha: str  # content_hash


def read_folder(path: Path) -> PeftInfo:
    """Describe the PEFT folder at `path`. AdapterError when it cannot be read as one."""
    path = Path(path)
    config, tensors = read_json(path / CONFIG), read_header(path / WEIGHTS)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not is_count(rank) or not is_alpha(alpha):
        raise AdapterError(f"{path / CONFIG}: r is {rank!r}, lora_alpha is {alpha!r}", remedy="give two numbers")
    dtypes = {entry.dtype for entry in tensors.values()}
    return PeftInfo(
        path=path,
        base=str(config.get("base_model_name_or_path") or ""),
        rank=rank,
        alpha=float(alpha),
        rslora=bool(config.get("use_rslora")),
        targets=tuple(sorted({name.split(".lora_")[0].rpartition(".")[2] for name in tensors if ".lora_" in name})),
        bytes=(path / WEIGHTS).stat().st_size,
        dtype=dtypes.pop() if len(dtypes) == 1 else "mixed" if dtypes else "",
        tensors=len(tensors),
        sha=content_hash(path),
    )


def content_hash(path: Path) -> str:
    """sha256 (hex) of what an engine reads: the config, however its JSON is laid out, then the weights file's bytes.

    The same wherever the folder lies. AdapterError when either file cannot be read.
    """
    path = Path(path)
    text = json.dumps(read_json(path / CONFIG), sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(len(text).to_bytes(8, "little") + text)
    try:
        with open(path / WEIGHTS, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        what = f"{path / WEIGHTS} cannot be read ({error.strerror})"
        raise AdapterError(what, remedy="give a PEFT folder with safetensors weights") from error
    return digest.hexdigest()


def write_folder(
    path: Path, tensors: Mapping[str, Array], config: Mapping[str, Any], *, extra: Mapping[str, str] | None = None
) -> None:
    """Write a PEFT folder in one step: readers see all of it or nothing. uint16 arrays are bfloat16 bits.

    `extra`: file name -> text, written beside it. AdapterError when `path` exists already or cannot be written.
    """
    with _new_folder(path) as private:
        write_tensors(private / WEIGHTS, tensors)
        (private / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name, text in (extra or {}).items():
            (private / name).write_text(text, encoding="utf-8")


def copy_fresh(src: Path, dst: Path) -> Path:
    """A new folder `dst` with the files of `src` as hard links (copies across devices): a path never loaded, for free.

    The files are shared: do not write into them. AdapterError when `src` is no folder or `dst` exists.
    """
    with _new_folder(dst) as private:
        shutil.copytree(_folder(src), private, copy_function=_link, dirs_exist_ok=True)
    return Path(dst)


def corrupt_copy(src: Path, dst: Path) -> Path:
    """A copy of `src` whose weights file has its header overwritten: every loader must refuse it. `src` stays whole."""
    with _new_folder(dst) as private:
        shutil.copytree(_folder(src), private, dirs_exist_ok=True)
        with open(private / WEIGHTS, "r+b") as file:
            file.seek(8)
            head = file.read(64)
            file.seek(8)
            file.write(bytes(byte ^ 0xFF for byte in head))
    return Path(dst)


def inflate_rank(src: Path, dst: Path, rank: int) -> Path:
    """A valid adapter at `dst` that does what `src` does at a higher `rank`: refused, if at all, for that.

    AdapterError when `rank` is not above that of `src`, or `src` cannot be read.
    """
    info, config = read_folder(src), read_json(Path(src) / CONFIG)
    if rank <= info.rank:
        raise AdapterError(f"{src} already has rank {info.rank}", remedy=f"ask for more than {info.rank}, not {rank}")
    tensors: dict[str, Array] = {}
    for name, stored in read_stored(Path(src) / WEIGHTS).items():
        axis = 0 if ".lora_A" in name else 1
        more = [(0, rank - stored.shape[axis]) if i == axis else (0, 0) for i in range(stored.ndim)]
        tensors[name] = np.pad(stored, more)
    ratio = rank / info.rank
    config.update(r=rank, lora_alpha=info.alpha * (ratio**0.5 if info.rslora else ratio))
    write_folder(dst, tensors, config)
    return Path(dst)


def _folder(path: Path) -> Path:
    if not Path(path).is_dir():
        raise AdapterError(f"{path} is not a folder", remedy=f"give the folder that holds {CONFIG}")
    return Path(path)


def _link(src: str, dst: str) -> str:
    try:
        os.link(os.path.realpath(src), dst)  # a download cache holds symbolic links; the file itself is wanted
    except OSError:  # another device, or a file system without links
        shutil.copy2(src, dst)
    return dst


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A private folder that becomes `path` when the block ends well, and vanishes when it does not."""
    path = Path(path)
    if path.exists():
        raise AdapterError(f"{path} exists already", remedy="choose another: a server may be reading this one")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        private = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        what = f"{path} cannot be written ({error.strerror})"
        raise AdapterError(what, remedy="choose a folder you may write to") from error
    try:
        yield private
        private.chmod(0o755)  # a server under another user reads it
        os.rename(private, path)
    finally:
        shutil.rmtree(private, ignore_errors=True)
