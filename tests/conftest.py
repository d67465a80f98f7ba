"""Fixtures that several files share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

# Before numpy is imported: on a busy machine two threads of a small product wait for each other ten times as long as it
# takes. The embedded server runs with one as well.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from embedded import Embedded
from vllm_kit import vllm

# A suite begun with `&` in a script has SIGINT ignored, and so had every process whose Ctrl-C is tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """One vLLM for all tests that only ask it things: a start takes a minute. Eight slots, so that some stay free."""
    with vllm(tmp_path_factory.mktemp("vllm"), max_loras=8) as server:
        yield server
