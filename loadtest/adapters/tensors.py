"""The safetensors container by hand: header checks that name the damage, partial reads, bfloat16 in and out.

A file is: 8 bytes little-endian header length, that many bytes of JSON, then the tensors' bytes without holes.
numpy has no bfloat16, so here a bfloat16 array is a uint16 array of its bits.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np
from numpy.typing import NDArray

from loadtest.errors import AdapterError

Array = NDArray[Any]
Floats = NDArray[np.float32]

MAX_HEADER = 100_000_000  # the format's own limit, in bytes
SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "C64": 8, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
_READABLE = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_WRITTEN = {"float32": "F32", "float16": "F16", "uint16": "BF16", "float64": "F64"}
_AGAIN = "write or download the file again"


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: where its bytes lie."""

    name: str
    dtype: str  # as the format spells it: "F32", "BF16", ...
    shape: tuple[int, ...]
    start: int  # bytes from the start of the file
    end: int


def read_header(path: Path) -> dict[str, Entry]:
    """All tensors of a safetensors file, by name. AdapterError says what is wrong with the first broken thing."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            text, data = _header_text(file, path, size)
    except OSError as error:
        what = f"{path} cannot be read ({error.strerror})"
        raise AdapterError(what, remedy="check the path and its permissions") from error
    entries = [_entry(path, name, info, data) for name, info in _header_json(path, text).items()]
    _check_layout(path, entries, data, size)
    return {entry.name: entry for entry in entries}


def _header_text(file: BinaryIO, path: Path, size: int) -> tuple[bytes, int]:
    if size < 8:
        raise AdapterError(f"{path} has {size} bytes, too few for a safetensors header", remedy=_AGAIN)
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER or length > size - 8:
        raise AdapterError(f"{path} claims a header of {length} bytes but has {size} bytes in all", remedy=_AGAIN)
    return file.read(length), 8 + length


def _header_json(path: Path, text: bytes) -> dict[str, Any]:
    try:
        if text[:1] != b"{":
            raise ValueError("it does not begin with '{'")
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("__metadata__ is not a map of strings")
        json.dumps([header, metadata], ensure_ascii=False).encode("utf-8")  # a lone surrogate is not text
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path} has a corrupt safetensors header ({error})", remedy=_AGAIN) from error
    return dict(header)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key appears twice")
    return out


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def _entry(path: Path, name: str, info: Any, data: int) -> Entry:
    """One header line as an Entry; `data` is where the tensors' bytes begin."""
    fields: dict[str, Any] = info if isinstance(info, dict) else {}
    dtype, shape, offsets = str(fields.get("dtype")), fields.get("shape"), fields.get("data_offsets")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise AdapterError(f"{path} gives tensor {name!r} no valid shape and data_offsets", remedy=_AGAIN)
    if dtype not in SIZES:
        raise AdapterError(f"{path} holds tensor {name!r} as {dtype}", remedy="convert it to float32 or bfloat16")
    found, needed = offsets[1] - offsets[0], math.prod(shape) * SIZES[dtype]
    if found != needed:
        what = f"{path} gives tensor {name!r} {found} bytes, {shape} of {dtype} needs {needed}"
        raise AdapterError(what, remedy=_AGAIN)
    return Entry(name, dtype, tuple(shape), data + offsets[0], data + offsets[1])


def _check_layout(path: Path, entries: list[Entry], data: int, size: int) -> None:
    """Tensors must cover the rest of the file, in some order, without holes or overlaps."""
    at = data
    for entry in sorted(entries, key=lambda e: (e.start, e.end)):
        if entry.start != at:
            raise AdapterError(f"{path} has a hole or an overlap before tensor {entry.name!r}", remedy=_AGAIN)
        at = entry.end
    if at != size:
        what = "is truncated" if at > size else "has trailing bytes"
        raise AdapterError(f"{path} {what}: its header accounts for {at} bytes, the file has {size}", remedy=_AGAIN)


def decode(raw: Array, dtype: str) -> Floats:
    """Float32 values of an array read with the stored width (bfloat16: uint16 bits)."""
    if dtype == "BF16":
        return np.left_shift(raw.astype(np.uint32), np.uint32(16)).view(np.float32)
    return np.asarray(raw, dtype=np.float32)


def encode(values: NDArray[np.floating[Any]], dtype: str) -> Array:
    """`values` as stored in `dtype` ("F32", "F16" or "BF16"; bfloat16 rounds to nearest even, finite values only)."""
    if dtype == "BF16":
        bits = np.asarray(values, dtype=np.float32).view(np.uint32)
        lift = np.uint32(0x7FFF) + (np.right_shift(bits, np.uint32(16)) & np.uint32(1))
        return np.right_shift(bits + lift, np.uint32(16)).astype(np.uint16)
    return np.asarray(values, dtype=np.float16 if dtype == "F16" else np.float32)


def view(path: Path, entry: Entry) -> Array:
    """The stored array, mapped and not read; `decode` a slice of it. AdapterError for a dtype that is no float."""
    if entry.dtype not in _READABLE:
        raise AdapterError(f"{path} holds {entry.name!r} as {entry.dtype}", remedy="use float32 or bfloat16 weights")
    if math.prod(entry.shape) == 0:
        return np.zeros(entry.shape, dtype=_READABLE[entry.dtype])
    return np.memmap(path, dtype=_READABLE[entry.dtype], mode="r", offset=entry.start, shape=entry.shape)


def read_stored(path: Path) -> dict[str, Array]:
    """Every tensor as it is stored (bfloat16: uint16 bits), by name."""
    return {name: np.array(view(path, entry)) for name, entry in read_header(path).items()}


def write_tensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write `tensors` (float32, float16, float64, or uint16 = bfloat16 bits) as one safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it
    at = 0
    for name, array in tensors.items():
        end = at + array.nbytes
        header[name] = {"dtype": _WRITTEN[array.dtype.name], "shape": list(array.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the data aligned, as the reference writer does
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).data)
