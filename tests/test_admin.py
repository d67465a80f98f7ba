"""Admin answers sorted into ok, fail and info; every row of the contract, and what no contract foresees."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import aiohttp
import orjson
import pytest
from rawserver import Call, RawServer, Script

from loadtest.errors import TargetError, Unreachable
from loadtest.traffic import admin
from loadtest.traffic.admin import Admin, Answer, ModelCard
from loadtest.traffic.client import open_session
from loadtest.traffic.words import Redactor

T = TypeVar("T")


def reply(status: int, body: bytes, *more: str) -> bytes:
    head = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *more]
    return "\r\n".join([*head, "", ""]).encode() + body


def error(status: int, kind: str, message: str) -> bytes:
    return reply(status, orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": status}}))


def ask(
    script: Script, question: Callable[[Admin], Awaitable[T]], timeout_s: float = 5.0, *, keep: bool = False
) -> tuple[T, list[Call]]:
    async def main() -> tuple[T, list[Call]]:
        async with (
            RawServer(script, keep).running() as server,
            open_session({"Authorization": "Bearer sk-secret77"}, 2) as s,
        ):
            redact = Redactor(server.url, {"Authorization": "Bearer sk-secret77"})
            admin = Admin(s, server.url + "/", timeout_s=timeout_s, redact=redact)
            return await question(admin), server.calls

    return asyncio.run(main())


def says(data: bytes) -> Script:
    async def script(call: Call) -> None:
        await call.send(data)

    return script


def load(script: Script, timeout_s: float = 5.0) -> Answer:
    return ask(script, lambda a: a.load("n", "/p"), timeout_s)[0]


def test_what_is_sent() -> None:
    async def all_three(admin: Admin) -> None:
        await admin.load("n", "/p")
        await admin.load("n", "/q", inplace=True)
        await admin.unload("n")

    _, calls = ask(says(reply(200, b"Success")), all_three, keep=True)
    assert [(c.path, c.json) for c in calls] == [
        ("/v1/load_lora_adapter", {"lora_name": "n", "lora_path": "/p"}),
        ("/v1/load_lora_adapter", {"lora_name": "n", "lora_path": "/q", "load_inplace": True}),
        ("/v1/unload_lora_adapter", {"lora_name": "n"}),
    ]
    assert {c.headers["content-type"] for c in calls} == {"application/json"}
    assert calls[0].headers["authorization"] == "Bearer sk-secret77"


def test_ok_is_plain_text() -> None:
    answer = load(says(reply(200, b"Success: LoRA adapter 'n' added successfully.")))
    assert (answer.outcome, answer.status, answer.reason) == ("ok", 200, "")
    assert answer.message == "Success: LoRA adapter 'n' added successfully."
    assert 0 < answer.sent_ns <= answer.at_ns


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (error(400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided."), "invalid"),
        (error(400, "InvalidUserInput", "The lora adapter 'n' has already been loaded."), "already_loaded"),
        (error(404, "NotFoundError", "Loading lora n failed: No adapter found for <path>"), "not_found"),
        (error(500, "InternalServerError", "LoRA rank 128 is greater than max_lora_rank 16"), "server_error"),
        (reply(404, b'{"detail":"Not Found"}'), "feature_off"),
        (reply(405, b'{"detail":"Method Not Allowed"}'), "feature_off"),
        (reply(404, b'{"detail":"no adapter n"}'), "not_found"),
        (reply(422, b'{"detail":[{"loc":["body"],"msg":"missing"}]}'), "invalid"),
        (reply(401, b'{"error":"Unauthorized"}'), "unauthorized"),
        (error(429, "X", "slow down"), "busy"),
        (reply(200, b'{"error":{"message":"no"}}'), "error_under_200"),
        (reply(307, b"", "Location: /other"), "redirect"),
    ],
)
def test_refusals(data: bytes, reason: str) -> None:
    answer = load(says(data))
    assert (answer.outcome, answer.reason) == ("fail", reason)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (reply(500, b"<h1>oops</h1>"), "unreadable"),
        (reply(404, b"<h1>nginx</h1>"), "unreadable"),
        (reply(200, b"<html>a portal</html>"), "unreadable"),
        (reply(200, b'{"object": "list", "da'), "unreadable"),
        (reply(200, bytes(range(256))), "unreadable"),
        (reply(200, b"\xff\xfe\xfd"), "unreadable"),
        (reply(500, b""), "unreadable"),
        (reply(202, b"{}"), "unreadable"),
        (error(504, "X", "upstream timed out"), "gateway"),
        (reply(502, b"bad gateway"), "gateway"),
        (error(500, "InternalServerError", "EngineCore encountered an issue. See stack trace"), "engine_dead"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nSucc", "reset"),
        (b"", "reset"),
        (b"SSH-2.0-x\r\n\r\n", "unreadable"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 5_000_000, "unreadable"),
    ],
)
def test_what_nobody_can_say(data: bytes, reason: str) -> None:
    answer = load(says(data))
    assert (answer.outcome, answer.reason) == ("info", reason), answer.message


def test_timeout_reset_and_nobody_there() -> None:
    async def silent(call: Call) -> None:
        await call.wait_left()

    async def reset(call: Call) -> None:
        call.reset()

    answer = load(silent, timeout_s=0.1)
    assert (answer.outcome, answer.reason, answer.status) == ("info", "timeout", 0)
    assert load(reset).reason == "reset"

    async def main() -> Answer:
        async with open_session({}, 2) as session:
            return await Admin(session, "http://127.0.0.1:9").unload("n")

    answer = asyncio.run(main())
    assert (answer.outcome, answer.reason) == ("info", "refused")


def test_messages_hold_no_secret_and_are_short() -> None:
    answer = load(says(error(401, "X", "bad key sk-secret77 " + "x" * 2000)))
    assert "secret77" not in answer.message
    assert len(answer.message) == 500


def test_models() -> None:
    cards = {"data": [{"id": "base", "root": "/m", "parent": None}, {"id": "n", "root": "/p", "parent": "base"}]}
    found, _ = ask(says(reply(200, orjson.dumps(cards))), lambda a: a.models())
    assert found == [ModelCard("base", "/m", ""), ModelCard("n", "/p", "base")]


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]", b'{"data":[1]}', b'{"data":[{}]}', b'{"data":3}'])
def test_models_that_are_none(body: bytes) -> None:
    with pytest.raises(TargetError, match=r"/v1/models answered 200 with .*, not with a list of models"):
        ask(says(reply(200, body)), lambda a: a.models())


def test_probes() -> None:
    assert ask(says(reply(200, b"")), lambda a: a.health())[0] is True
    assert ask(says(reply(503, b"")), lambda a: a.health())[0] is False
    assert ask(says(b""), lambda a: a.health())[0] is False
    assert ask(says(reply(200, b'{"version":"0.15.0"}')), lambda a: a.version())[0] == "0.15.0"
    assert ask(says(reply(404, b'{"detail":"Not Found"}')), lambda a: a.version())[0] == ""
    assert ask(says(reply(200, b"# HELP x\nx 1\n")), lambda a: a.metrics())[0] == "# HELP x\nx 1\n"
    assert ask(says(reply(404, b"")), lambda a: a.metrics())[0] == ""


def test_unreachable_says_what_was_tried() -> None:
    async def main() -> None:
        async with open_session({}, 2) as session:
            await Admin(session, "http://joe:hunter22@127.0.0.1:9").models()

    with pytest.raises(Unreachable, match=r"GET http://127\.0\.0\.1:9/v1/models failed") as caught:
        asyncio.run(main())
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "outcome", "reason"),
    [(300, "info", "redirect"), (303, "info", "redirect"), (307, "fail", "redirect"), (308, "fail", "redirect"),
     (401, "fail", "unauthorized"), (402, "fail", "invalid"), (403, "fail", "unauthorized"),
     (503, "fail", "server_error")],
)  # fmt: skip
def test_a_status_with_an_error_that_says_little(status: int, outcome: str, reason: str) -> None:
    got = admin._sort(admin._Reply(status, b'{"error":{"message":"no"}}'))
    assert got[:2] == (outcome, reason)


@pytest.mark.parametrize(
    ("status", "body", "outcome", "reason"),
    [
        (200, b"line one\nline\ttwo", "ok", ""),
        (200, b"", "ok", ""),
        (200, b'{"status":"fine"}', "ok", ""),
        (200, b"[1]", "ok", ""),
        (200, b"Success\x00", "info", "unreadable"),
        (200, b"\x00Success", "info", "unreadable"),
        (200, b'"half', "info", "unreadable"),
        (200, b"[1, 2", "info", "unreadable"),
        (200, b"{", "info", "unreadable"),
        (200, b"<", "info", "unreadable"),
        (201, b"Success", "info", "unreadable"),
        (202, b'{"error":{"message":"no"}}', "info", "unreadable"),
        (299, b'{"error":{"message":"no"}}', "info", "unreadable"),
        (399, b'{"error":{"message":"no"}}', "info", "redirect"),
        (400, b'{"error":{"message":"no"}}', "fail", "invalid"),
        (404, b'{"error":{"message":"Not Found"}}', "fail", "not_found"),
        (405, b'{"error":{"message":"no"}}', "fail", "invalid"),
        (408, b'{"error":{"message":"no"}}', "info", "gateway"),
        (408, b"", "info", "gateway"),
        (409, b'{"error":{"message":"no"}}', "fail", "invalid"),
        (430, b'{"error":{"message":"no"}}', "fail", "invalid"),
        (499, b'{"error":{"message":"no"}}', "fail", "invalid"),
        (500, b'{"error":{"message":"no"}}', "fail", "server_error"),
        (502, b'{"error":{"message":"no"}}', "info", "gateway"),
        (504, b'{"error":{"message":"no"}}', "info", "gateway"),
        (505, b'{"error":{"message":"no"}}', "fail", "server_error"),
        (429, b'{"error":{"message":"already too many"}}', "fail", "busy"),
    ],
)
def test_an_answer_just_beside_another(status: int, body: bytes, outcome: str, reason: str) -> None:
    assert admin._sort(admin._Reply(status, body))[:2] == (outcome, reason)


def test_which_words_an_answer_keeps() -> None:
    def words(status: int, body: bytes) -> str:
        return admin._sort(admin._Reply(status, body))[2]

    assert words(504, b'{"error":{"message":"upstream"}}') == "upstream"
    assert words(504, b"upstream") == "status 504"
    assert words(200, b'{"error":{"message":"no"}}') == "no"
    assert words(200, b" done \n") == "done"
    assert words(500, b"oops") == "status 500 with 'oops'"


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "refuses our key (401)"), (402, "answered 402 with"), (403, "refuses our key (403)"),
     (404, "answered 404 with")],
)  # fmt: skip
def test_models_of_a_server_that_refuses(status: int, words: str) -> None:
    with pytest.raises(TargetError) as caught:
        ask(says(reply(status, b'{"error":{"message":"no"}}')), lambda a: a.models())
    assert words in str(caught.value)


def test_models_without_root_and_parent() -> None:
    found, _ = ask(says(reply(200, b'{"data":[{"id":"n"},{"id":7,"root":null,"parent":"b"}]}')), lambda a: a.models())
    assert found == [ModelCard("n", "", ""), ModelCard("7", "", "b")]


@pytest.mark.parametrize(("given", "probe", "operation"), [({}, "5 s", "30 s"), ({"timeout_s": 0.5}, "0.5 s", "0.5 s")])
def test_how_long_it_waits(monkeypatch: pytest.MonkeyPatch, given: dict, probe: str, operation: str) -> None:
    async def silent(*_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(Admin, "_request", silent)

    async def main() -> Answer:
        async with open_session({}, 2) as session:
            asked = Admin(session, "http://127.0.0.1:9", **given)
            with pytest.raises(Unreachable, match=f"no answer within {probe}"):
                await asked.version()
            return await asked.load("n", "/p")

    answer = asyncio.run(main())
    assert (answer.outcome, answer.message) == ("info", f"no answer within {operation}")


def test_a_body_of_just_the_bound() -> None:
    room = 4 * 1024 * 1024
    assert ask(says(reply(200, b"x" * room)), lambda a: a.metrics())[0] == "x" * room
    with pytest.raises(Unreachable, match=f"the body is longer than {room} bytes"):
        ask(says(reply(200, b"x" * (room + 1))), lambda a: a.metrics())


@pytest.mark.parametrize(
    ("code", "words"),
    [(1, "operation not permitted"), (111, "connection refused"), (0, "odd words"), (-2, "odd words"),
     (None, "odd words")],
)  # fmt: skip
def test_why_nobody_was_reached(code: int | None, words: str) -> None:
    key = aiohttp.client_reqrep.ConnectionKey("h", 1, False, True, None, None, None)
    assert admin._named(aiohttp.ClientConnectorError(key, OSError(code, "Odd words"))) == words


def test_secrets_of_the_url_are_hidden_without_being_told() -> None:
    async def main() -> Answer:
        async with (
            RawServer(says(error(400, "X", "not with hunter22"))).running() as server,
            open_session({}, 2) as own,
        ):
            return await Admin(own, server.url.replace("//", "//joe:hunter22@")).unload("n")

    assert asyncio.run(main()).message == "not with ***"
