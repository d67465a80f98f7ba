"""A real vLLM for tests marked `vllm`: found where `make vllm` puts it, started by the tool's own launcher."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from embedded import Embedded

from loadtest.errors import TargetError
from loadtest.managed import interpreter, open_managed
from loadtest.scenario import Managed, Target

MARKS = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]


def need_vllm() -> None:
    """Skip where there is none."""
    try:
        found = interpreter(None)
    except TargetError as e:
        pytest.skip(f"vLLM is not installed: {e}")
    if not found.is_file():
        pytest.skip(f"vLLM is not installed: LOADTEST_VLLM_PYTHON names {found}, which is not there")


@contextlib.contextmanager
def vllm(work: Path, **spec: object) -> Iterator[Embedded]:
    """A server for the generated base, gone when the test is."""
    need_vllm()
    work.mkdir(parents=True, exist_ok=True)
    target = open_managed(Target(**({"managed": Managed()} | spec)), work, lambda line: None)  # type: ignore[arg-type]
    try:
        assert target.guarded is not None
        port = int(target.url.rpartition(":")[2])
        yield Embedded(target.url, port, target.guarded.process, target.guarded.log, -1)
    finally:
        target.stop()
