"""`loadtest calibrate` against its own firehose and against servers that are none."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from pinned import unpacked
from rawserver import CHUNKED, Call, RawServer
from test_client_capture import DONE, LAST_CHUNK, event, usage

from loadtest import calibration, history
from loadtest.analysis import export
from loadtest.analysis.verdict import Require, judge
from loadtest.calibration import Calibration
from loadtest.cli import main
from loadtest.errors import TargetError
from loadtest.report.text import client_line
from loadtest.tools import calibrate
from loadtest.traffic.capture import Reads, StampedRequest, request_class, tapping
from loadtest.traffic.client import open_session


def test_lags_are_those_of_this_machine_and_the_numbers_fit_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--streams", "20", "--seconds", "2.5", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["measured"]
    lag = found["lag_ms"]
    assert -0.01 <= lag["p50"] <= lag["p99"] <= lag["max"] < 60_000
    assert lag["n"] > 20 * 20
    assert found["cpu_us_per_token"] * found["tokens_per_s"] / 1e6 == pytest.approx(found["core"], rel=0.01)


def _verdict(folder: Path) -> dict[str, Any]:
    return dict(export.to_json(judge(history.load(folder), Require("stream-atomic"))))


def test_a_run_is_calibrated_at_its_own_streams_and_judged_with_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = unpacked("vllm-torn", tmp_path)
    before = _verdict(folder)
    assert "not calibrated" in client_line(before)
    assert main(["calibrate", "--run", str(folder), "--seconds", "2.5", "--json"]) == 0
    (measured,) = json.loads(capsys.readouterr().out)["measured"]
    assert measured["streams"] == before["client"]["open_streams"]
    after = _verdict(folder)
    assert after["client"]["calibration"]["lag_p99_ms"] == pytest.approx(measured["lag_ms"]["p99"], rel=1e-4)
    bar = max(before["client"]["stamp_error_ms"]["p99"] or 0.0, measured["lag_ms"]["p99"])
    assert after["client"]["stamp_error_ms"]["p99"] == pytest.approx(bar, rel=1e-4)
    assert f"calibrated at {measured['streams']} streams" in client_line(after)
    assert after["guarantees"] == before["guarantees"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"streams": 1}', json.dumps(dict.fromkeys(Calibration.__slots__, "x")), '{"streams":NaN}']
)
def test_an_unusable_calibration_is_a_named_problem(tmp_path: Path, text: str) -> None:
    assert calibration.read(tmp_path) == (None, ())
    (tmp_path / "calibration.json").write_text(text)
    found, problems = calibration.read(tmp_path)
    assert found is None
    assert problems[0].startswith("calibration.json: ignored")


def test_a_server_that_is_no_firehose_is_named() -> None:
    with pytest.raises(TargetError, match="streams failed, the first with refused"):
        calibrate.measure("http://127.0.0.1:9", 2, 2.0)


def test_wrong_numbers_of_streams_are_usage_errors() -> None:
    assert main(["calibrate", "--streams", "ten"]) == 64
    assert main(["calibrate", "--streams", "10", "--run", "."]) == 64
    assert main(["calibrate", "--url", "http://127.0.0.1:9", "--run", "."]) == 64
    assert main(["calibrate", "--streams", "0"]) == 64


async def _captured() -> Reads:
    async def script(call: Call) -> None:
        await call.send(CHUNKED)
        for i in range(3):
            await call.chunk(event([i]))
        await call.chunk(usage(3) + DONE)
        await call.send(LAST_CHUNK)

    async with RawServer(script).running() as server, open_session({}, 5) as session:
        reads = Reads(1 << 20, time.monotonic_ns)
        with tapping(reads):
            response = await session.post(server.url)
        await reads.capture(response)
        return reads


@pytest.mark.parametrize("forced", [False, True])
def test_without_the_tap_the_same_bytes_are_read_by_aiohttp(forced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if forced:
        monkeypatch.setenv("LOADTEST_CAPTURE", "iter_any")
    assert (request_class() is StampedRequest) is not forced
    reads = asyncio.run(_captured())
    # An aiohttp that calls `ClientRequest.send` no more, or with another connection, fails here: nothing is tapped.
    assert (reads.head_ns > 0) is not forced
    assert b"".join(reads.payloads) == b"".join(event([i]) for i in range(3)) + usage(3) + DONE
    assert list(reads.stamps) == sorted(reads.stamps)
