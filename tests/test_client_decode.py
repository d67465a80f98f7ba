"""What a finished exchange was: each reason code, and properties that hold for any bytes."""

from __future__ import annotations

import itertools
from array import array

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minihistory import history
from rawserver import DONE, completion, event, usage

from loadtest.analysis import guarantees
from loadtest.analysis.case import open_case
from loadtest.records import REASONS_FAIL, REASONS_INFO
from loadtest.traffic import decode as decode_module
from loadtest.traffic.ask import Ask
from loadtest.traffic.decode import Decoded, Ending, Exchange, decode, decoding
from loadtest.traffic.sse import Parser
from loadtest.traffic.usual import LONGEST, shape_of
from loadtest.traffic.words import Redactor, ServerError, error_of, excerpt, shown, without_secrets

SENT = 1_000_000_000


def ask(max_tokens: int = 4, **more: object) -> Ask:
    return Ask(stream=7, adapter="a", prompt=[1, 2, 3], max_tokens=max_tokens, user="u", **more)


def exchange(data: bytes | list[bytes], ending: Ending = "end", **more: object) -> Exchange:
    payloads = [data] if isinstance(data, bytes) else data
    fields: dict = {
        "ask": ask(),
        "sent_ns": SENT,
        "head_ns": SENT + 5,
        "ended_ns": SENT + 10**9,
        "status": 200,
        "content_type": "text/event-stream; charset=utf-8",
        "stamps": [SENT + 1_000_000 * (i + 1) for i in range(len(payloads))],
        "payloads": payloads,
        "ending": ending,
    }
    return Exchange(**(fields | more))


def judged(data: bytes | list[bytes], ending: Ending = "end", **more: object) -> Decoded:
    return decode(exchange(data, ending, **more))


def why(data: bytes | list[bytes], ending: Ending = "end", **more: object) -> tuple[str, str, str]:
    record = judged(data, ending, **more).record
    return record.outcome, record.reason, record.detail


def test_a_complete_stream() -> None:
    first = event([11], prompt_token_ids=[1, 2, 3])
    found = judged([first + event([12]), event([13, 14], "length"), usage(4), DONE])
    r = found.record
    assert (r.outcome, r.reason, r.detail, r.finish, r.done, r.usage) == ("ok", "", "", "length", True, 4)
    assert (r.tokens, r.chunks, r.text_only) == (4, 3, False)
    assert found.ids == array("i", [11, 12, 13, 14])
    assert found.arrivals == array("I", [1000, 1000, 2000, 2000])
    assert found.prompt == array("i", [1, 2, 3])
    assert (r.first_ns, r.last_ns) == (SENT + 1_000_000, SENT + 2_000_000)
    assert r.intended_ns == SENT


def test_prompt_ids_come_from_the_server_when_text_was_sent() -> None:
    data = event([11, 12, 13, 14], "length", prompt_token_ids=[9, 8]) + DONE
    found = judged(data, ask=Ask(stream=1, adapter="a", prompt="hello", max_tokens=4, intended_ns=5))
    assert found.prompt == array("i", [9, 8])
    assert found.record.intended_ns == 5
    assert judged(DONE, ask=Ask(stream=1, adapter="a", prompt="hello", max_tokens=4)).prompt == array("i")


def test_empty_text_with_ids_counts() -> None:
    assert judged(event([1, 2, 3, 4], "length", text="") + DONE).record.tokens == 4


def test_a_server_without_ids() -> None:
    def text(words: str, finish: str | None = None) -> bytes:
        return b"data: " + orjson.dumps({"choices": [{"text": words, "finish_reason": finish}]}) + b"\n\n"

    found = judged([text("a"), text("bc"), text("", "length"), usage(4) + DONE])
    assert (found.record.outcome, found.record.text_only, found.record.tokens) == ("ok", True, 2)
    assert found.ids == array("i", [-1, -1])
    assert found.arrivals == array("I", [1000, 2000])
    assert why([text("a"), text("", "length"), usage(3), DONE])[1] == "truncated"
    assert why([text("a"), text("", "length"), DONE])[0] == "ok"  # nobody can say how many tokens that was


def test_continuous_usage_keeps_the_last() -> None:
    assert judged(usage(1) + event([1, 2, 3, 4], "length") + usage(4) + DONE).record.usage == 4


def test_an_early_stop_is_right_only_where_something_allows_it() -> None:
    data = event([1, 2], "stop") + usage(2) + DONE
    assert why(data) == ("fail", "truncated", "2 tokens with finish reason 'stop', 4 were asked for")
    assert why(data, ask=ask(ignore_eos=False))[0] == "ok"
    assert why(data, ask=ask(extra={"stop_token_ids": [2]}))[0] == "ok"
    assert why(event([1, 2], "length") + DONE, ask=ask(ignore_eos=False))[1] == "truncated"


@pytest.mark.parametrize(
    ("data", "ending", "reason", "words"),
    [
        (completion([1, 2, 3]), "end", "truncated", "3 tokens with finish reason 'length', 4 were asked for"),
        (event([1, 2, 3, 4]) + usage(4) + DONE, "end", "truncated", "without a finish reason"),
        (event([1, 2, 3, 4], "length") + usage(5) + DONE, "end", "truncated", "4 tokens arrived, usage says 5"),
        (event([1, 2, 3, 4], "abort") + DONE, "end", "truncated", "finish reason 'abort'"),
        (event([1, 2, 3, 4], "length") + usage(4), "end", "truncated", "without [DONE]"),
        (b"", "end", "truncated", "without [DONE], after 0 of 4 tokens"),
        (event([1, 2]), "cut", "cut", "before [DONE], after 2 of 4 tokens"),
        (event([1, 2, 3, 4], "length"), "close", "cut", "before [DONE]"),
        (event([1, 2]) + b'data: {"choi', "cut", "cut", "after 2 of 4 tokens"),
        (completion([1, 2, 3, 4])[:-9], "cut", "cut", "after 4 of 4 tokens"),
        (event([1]) + b'data: {"error":{"message":"boom","type":"E"}}\n\n' + DONE, "end", "in_band_error", "E: boom"),
        (b'event: error\ndata: {"choices":[]}\n\n' + DONE, "end", "in_band_error", "error frame"),
        (b'data: {"object":"error","message":"old","type":"T"}\n\n', "end", "in_band_error", "T: old"),
        (event([1, 2, 3, 4], "length") + event([], "length") + DONE, "end", "duplicated", "after 'length'"),
        (event([1, 2, 3, 4], "length") + event([5]) + DONE, "end", "duplicated", "1 more tokens after"),
        (event([1, 2, 3, 4, 5], "length") + usage(5) + DONE, "end", "duplicated", "at most 4"),
        (event([1, 2, 3, 4, 5]), "stalled", "duplicated", "at most 4"),
        (b"data: {nope\n\n" + DONE, "end", "protocol", "not JSON"),
        (b"data: [1]\n\n" + DONE, "end", "protocol", "not a JSON object"),
        (b"data: \xff\xfe\n\n" + DONE, "end", "protocol", "not JSON"),
        (b'data: {"id":1}\n\n' + DONE, "end", "protocol", "no list of choices"),
        (b'data: {"choices":[{},{}]}\n\n' + DONE, "end", "protocol", "2 choices"),
        (b'data: {"choices":[3]}\n\n' + DONE, "end", "protocol", "not an object"),
        (b'data: {"choices":[{"token_ids":["x"]}]}\n\n' + DONE, "end", "protocol", "token ids"),
        (b'data: {"choices":[{"token_ids":[-4]}]}\n\n' + DONE, "end", "protocol", "token ids"),
        (b'data: {"choices":[{"token_ids":[4294967296]}]}\n\n' + DONE, "end", "protocol", "token ids"),
        (b'data: {"choices":[{"finish_reason":3}]}\n\n' + DONE, "end", "protocol", "finish reason is 3"),
        (b'data: {"choices":[],"usage":{"completion_tokens":-1}}\n\n' + DONE, "end", "protocol", "usage says -1"),
        (completion([1, 2, 3, 4]) + event([5]), "end", "protocol", "follows [DONE]"),
        (completion([1, 2, 3, 4]) + DONE, "end", "protocol", "follows [DONE]"),
        (completion([1, 2, 3, 4]) + b"rubbish", "end", "protocol", "follow [DONE]"),
        (b"x" * (9 * 1024 * 1024), "end", "protocol", "longer than"),
        (event([1]), "protocol", "protocol", "after 1 of 4 tokens"),
        (event([1]), "stalled", "stalled", "after 1 of 4 tokens"),
        (event([1]), "cancelled", "cancelled", "after 1 of 4 tokens"),
    ],
)
def test_each_way_to_be_incomplete(data: bytes, ending: Ending, reason: str, words: str) -> None:
    outcome, got, detail = why(data, ending)
    assert (got, outcome) == (reason, "info" if reason in REASONS_INFO else "fail"), detail
    assert words in detail


@pytest.mark.parametrize("tail", [b"", b"\n\n", b": bye\n\n", b"\r\n:x"])
@pytest.mark.parametrize("ending", ["end", "close", "cut", "stalled", "cancelled"])
def test_after_done_only_the_bytes_matter(tail: bytes, ending: Ending) -> None:
    assert why(completion([1, 2, 3, 4]) + tail, ending) == ("ok", "", "")


def test_done_without_its_empty_line() -> None:
    assert why(completion([1, 2, 3, 4])[:-2])[0] == "ok"
    assert why(completion([1, 2, 3, 4])[:-1], "cut")[0] == "ok"


def test_an_error_frame_before_a_cancel_is_still_the_servers() -> None:
    data = b'data: {"error":{"message":"engine died","type":"InternalServerError"}}\n\n'
    assert why(data, "cancelled")[:2] == ("fail", "in_band_error")


def test_no_head() -> None:
    for ending in ("cut", "close"):
        assert why([], ending, status=0, words="connect failed") == ("fail", "refused", "connect failed")
    assert why([], "stalled", status=0)[:2] == ("info", "stalled")
    assert why([], "cancelled", status=0)[:2] == ("info", "cancelled")
    assert why([], "protocol", status=0)[:2] == ("fail", "protocol")


def test_rejected_says_the_servers_words() -> None:
    body = b'{"error":{"message":"The model `x` does not exist.","type":"NotFoundError","code":404}}'
    got = why(body, status=404, content_type="application/json")
    assert got == ("fail", "rejected", "HTTP 404: NotFoundError: The model `x` does not exist.")
    assert why(b"<h1>oops", status=502, content_type="text/html")[2] == "HTTP 502: '<h1>oops'"
    assert why(b"", status=307)[:2] == ("fail", "rejected")


def test_a_wrong_content_type_is_no_stream() -> None:
    got = why(completion([1, 2, 3, 4]), content_type="application/json")
    assert got[:2] == ("fail", "protocol")
    assert "in place of text/event-stream" in got[2]
    assert why(b"", content_type="")[1] == "protocol"


def test_secrets_and_length() -> None:
    redact = Redactor("http://joe:hunter22@h/", {"Authorization": "Bearer sk-abcdef123", "X-Other": "fine"})
    text = "got Bearer sk-abcdef123 and sk-abcdef123 for joe from http://joe:hunter22@h/x and hunter22 fine\nnext"
    clean = redact(text, 300)
    assert "sk-abc" not in clean
    assert "hunter22" not in clean
    assert "fine next" in clean
    assert len(redact("x" * 1000, 300)) == 300
    assert "am9lOmh1bnRlcjIy" not in redact("Basic am9lOmh1bnRlcjIy am9lOmh1bnRlcjIy", 300)


@pytest.mark.parametrize("header", ["X-Api-Key: sk-ab'cd\\ef\"gh", "Authorization: Basic am9lOmh1bnRlcjIy"])
@pytest.mark.parametrize("before", [0, 150, 190, 199, 290, 1990])
def test_no_piece_of_a_secret_is_left_by_a_cut(header: str, before: int) -> None:
    name, _, value = header.partition(": ")
    redact = Redactor("http://h", {name: value})
    echo = orjson.dumps({"x" * before: value})
    for body in (echo, b'{"error": {"message": %s}}' % orjson.dumps("x" * before + value)):
        for data in (b"data: " + body + b"\n\n", b"data: " + body[:-1] + b"\n\n"):
            found = decode(exchange(data + DONE), redact)
            assert "sk-ab" not in found.record.detail
            assert "am9l" not in found.record.detail


def test_a_password_is_hidden_where_the_server_unpacked_it() -> None:
    redact = Redactor("http://h", {"Authorization": "Basic am9lOmh1bnRlcjIy"})
    assert redact("user joe may not: hunter22 is wrong", 99) == "user joe may not: *** is wrong"
    assert redact("see http://joe:p@ss@host/x", 99) == "see http://***@host/x"


def test_a_finish_reason_is_no_place_for_a_secret() -> None:
    redact = Redactor("http://h", {"Authorization": "Bearer sk-abcdef123"})
    found = decode(exchange(event([1, 2, 3, 4], "sk-abcdef123") + DONE), redact)
    assert found.record.finish == "***"
    assert "sk-abc" not in found.record.detail


@pytest.mark.parametrize("value", [b"true", b"-1", b"1.5", b'"4"', b"[" * 900 + b"]" * 900])
def test_counts_that_are_none(value: bytes) -> None:
    assert why(b'data: {"choices":[],"usage":{"completion_tokens":%s}}\n\n' % value)[1] == "protocol"


def test_values_nested_too_deeply_are_a_breach_and_no_crash() -> None:
    deep = b"[" * 1000 + b"]" * 1000
    for data in (b'{"choices":[{"token_ids":%s}]}', b'{"choices":[{"finish_reason":%s}]}', b'{"error":{"message":%s}}'):
        assert why(b"data: " + data % deep + b"\n\n")[0] == "fail"


def test_an_event_may_be_as_long_as_its_prompt_needs() -> None:
    ids = list(range(100_000, 200_000))
    data = event([11], prompt_token_ids=ids) + event([12, 13, 14], "length") + DONE
    long = Ask(stream=7, adapter="a", prompt=ids, max_tokens=4, user="u")
    assert judged(data, ask=long).record.outcome == "ok"
    assert "longer than" in why(data)[2]


def raw(**chunk: object) -> bytes:
    """One event of just these fields."""
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def test_numbers_of_a_stream_that_said_nothing() -> None:
    found = judged(b"", "cut")
    r = found.record
    assert (r.tokens, r.chunks, r.usage, r.offset, r.first_ns, r.last_ns, r.finish) == (0, 0, -1, 0, 0, 0, "")
    assert (r.done, r.text_only) == (False, False)
    assert found.prompt == array("i", [1, 2, 3])


def test_the_first_and_the_last_of_three_tokens() -> None:
    found = judged([event([0]), event([2**31 - 1]), event([7, 0])])
    assert found.ids == array("i", [0, 2**31 - 1, 7, 0])
    assert (found.record.first_ns, found.record.last_ns) == (SENT + 1_000_000, SENT + 3_000_000)
    found = judged([event([1]), event([2])])
    assert (found.record.first_ns, found.record.last_ns) == (SENT + 1_000_000, SENT + 2_000_000)
    found = judged([event([1, 2]), event([3]), event([]), event([4, 5])])
    assert (found.record.chunks, found.record.tokens) == (3, 5)


def test_arrivals_are_rounded_up_and_stay_within_their_column() -> None:
    late = 2**32
    stamps = [SENT + s for s in (-1, 999, 1000, (late - 1) * 1000, late * 1000, 2 * late * 1000)]
    found = judged([event([i]) for i in range(6)], stamps=stamps)
    assert list(found.arrivals) == [0, 1, 1, late - 1, late - 1, late - 1]


def test_words_of_a_record_are_cut_at_their_limits() -> None:
    assert judged(event([1, 2, 3, 4], "f" * 400) + DONE).record.finish == "f" * 40
    assert len(judged(b"x" * 400, status=500).record.detail) == 300


@pytest.mark.parametrize(("breaches", "tokens"), [(1000, 1), (1001, 0)])
def test_after_a_thousand_breaches_nothing_more_is_read(breaches: int, tokens: int) -> None:
    assert judged([b"data: 1\n\n" * breaches, event([5])]).record.tokens == tokens


def pauses(reads: list[bytes]) -> int:
    steps = list(decoding(exchange(reads), lambda text, limit: text[:limit]))
    return sum(step is None for step in steps)


def test_a_pause_after_sixteen_kilobytes_of_work() -> None:
    def sized(data: int) -> bytes:
        return b"data: " + b'{"choices":[]}'.ljust(data) + b"\n\n"

    most = 16 * 1024 - 2 * 1024  # every read counts as a kilobyte beside its data, and so does the end
    assert [pauses([sized(n)]) for n in (most - 1, most)] == [0, 1]
    assert [pauses([sized(15 * 1024), sized(n)]) for n in (most - 1, most)] == [1, 2]
    assert pauses([b":\n"] * 32) == 2
    assert pauses([b":\n" * (16 * 8 * 1024)]) == 1  # one long read is as many short ones


def test_an_event_may_be_as_long_as_what_was_asked_for_and_no_longer() -> None:
    most = 128 * 1024 + 4096 * 7  # three ids were sent, and four are to come
    good = completion([1, 2, 3, 4])
    assert why(good[:-14] + b":" * most + b"\n" + DONE)[0] == "ok"
    assert f"longer than {most} bytes" in why(good[:-14] + b":" * (most + 1) + b"\n" + DONE)[2]
    large = Ask(stream=7, adapter="a", prompt=[1] * 5000, max_tokens=4, user="u")
    room = 8 * 1024 * 1024
    assert f"longer than {room} bytes" in why(b":" * (room + 1) + b"\n", ask=large)[2]


def test_the_body_of_a_refusal_is_no_stream() -> None:
    found = judged(completion([1, 2, 3, 4]), status=201)
    assert (found.record.tokens, found.record.reason, found.record.done) == (0, "rejected", False)
    assert why(b"no", status=201)[2] == "HTTP 201: 'no'"
    assert why(b"no", status=404, words="cut short")[2] == "HTTP 404: 'no' (cut short)"
    found = judged(completion([1, 2, 3, 4]), content_type="text/plain; x=text/event-stream")
    assert (found.record.tokens, found.record.reason) == (0, "protocol")
    assert why(b"no", content_type="text/plain")[2].endswith("in place of text/event-stream: 'no'")
    assert judged(completion([1, 2, 3, 4]), content_type=" Text/Event-Stream ;q").record.outcome == "ok"


def test_the_servers_prompt_ids_are_taken_once() -> None:
    data = event([1], prompt_token_ids=[9, 8]) + event([2], prompt_token_ids=[7]) + event([3], prompt_token_ids=None)
    assert judged(data).prompt == array("i", [9, 8])


@pytest.mark.parametrize(
    ("chunk", "reason"),
    [
        ({"choices": [], "error": {"message": "no", "type": "E"}}, "in_band_error"),
        ({"choices": [], "error": None}, "cut"),
        ({"choices": [], "detail": "of no error"}, "cut"),
        ({"choices": [], "object": "error", "message": "of no error"}, "cut"),
        ({"detail": "no"}, "in_band_error"),
        ({"choices": {}}, "protocol"),
        ({"choices": [{"token_ids": [5, -4]}]}, "protocol"),
        ({"choices": [{"token_ids": [-4, 5]}]}, "protocol"),
        ({"choices": [{"token_ids": [2**31]}]}, "protocol"),
        ({"choices": [{"token_ids": [5, 2**31]}]}, "protocol"),
        ({"choices": [{"token_ids": ["5"]}]}, "protocol"),
        ({"choices": [{"token_ids": [1.5]}]}, "protocol"),
        ({"choices": [{"token_ids": "5"}]}, "protocol"),
        ({"choices": [{"token_ids": {}}]}, "protocol"),
        ({"choices": [], "usage": {}}, "protocol"),
        ({"choices": [], "usage": [1]}, "cut"),
        ({"choices": [], "usage": {"completion_tokens": 2**31}}, "protocol"),
    ],
)
def test_one_chunk(chunk: dict, reason: str) -> None:
    found = judged(raw(**chunk), "cut")
    assert (found.record.reason, found.record.tokens, list(found.ids)) == (reason, 0, []), found.record.detail


@pytest.mark.parametrize("count", [0, 1, 2**31 - 1])
def test_counts_that_are_some(count: int) -> None:
    found = judged(usage(count), "cut").record
    assert (found.reason, found.usage) == ("cut", count)


def test_what_follows_a_finish_reason_without_tokens_is_no_second_end() -> None:
    calm = raw(choices=[{"text": "", "finish_reason": None}]) + event([]) + raw(choices=[{}])
    assert why(event([1, 2, 3, 4], "length") + calm + DONE) == ("ok", "", "")
    assert judged(event([1, 2, 3, 4], "length") + calm + DONE).record.finish == "length"


def test_no_tokens_at_all_are_not_four() -> None:
    outcome, reason, detail = why(event([], "length") + DONE)
    assert (outcome, reason, detail[:9]) == ("fail", "truncated", "0 tokens ")
    assert why(event([], "stop") + DONE, ask=ask(ignore_eos=False))[0] == "ok"
    assert why(event([1], "stop") + DONE)[1] == "truncated"
    assert why(raw(choices=[{"text": "a", "finish_reason": "length"}]) + DONE)[0] == "ok"


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(("ids", "counted"), list(itertools.product(range(1, 6), range(6))))
def test_the_checker_calls_a_wrong_count_by_the_same_name(ids: int, counted: int, early: bool) -> None:
    data = event(list(range(ids)), "stop") + usage(counted) + DONE
    reason = why(data, ask=ask(ignore_eos=not early))[1]
    loads = "load a v0 0 1 ok\nload b v0 0 1 ok\n"
    case = open_case(history(loads + f"stream a 15: v0*{ids} | usage={counted} max=4{' eos' * early}"))
    assert guarantees.complete(case).kinds == ({reason: 1} if reason else {})
    if reason:
        assert reason == ("truncated" if ids < counted or (ids < 4 and not early) else "duplicated")


def test_every_form_of_a_secret_goes_whole_and_the_longest_first() -> None:
    redact = Redactor("http://h", {"X-Api-Key": "ab'c\"d\\e"})
    for form in ("ab'c\"d\\e", "ab\\'c\"d\\\\e", "ab'c\\\"d\\\\e"):  # as it is, as Python and as JSON write it
        assert redact(f"<{form}>", 99) == "<***>"
    redact = Redactor("http://abcd:abcdefgh@h")
    assert redact("<abcdefgh> <abcd>", 99) == "<***> <***>"
    redact = Redactor("http://abc:wxyz@h")
    assert redact("<abc> <wxyz>", 99) == "<abc> <***>"
    assert without_secrets("http://joe:p@h/x//a@b") == "http://h/x//a@b"


def test_how_much_of_a_servers_words_is_kept() -> None:
    redact = Redactor()
    assert [redact("x" * n, 10) for n in (10, 11)] == ["x" * 10, "x" * 9 + "…"]
    assert len(redact("x" * 20_001, 99_999)) == 20_000
    assert excerpt(b"x" * 2001) == repr("x" * 2000)
    assert shown(list(range(21))) == repr(list(range(20)))
    assert len(shown({"x" * 3000: 1})) == 2000


def test_errors_of_odd_shapes() -> None:
    assert error_of({"error": ""}) is error_of({"error": 3}) is error_of({"error": []}) is None
    assert error_of({"detail": [1, 2, 3, 4]}) == ServerError("", "[1, 2, 3]", "detail")
    assert error_of({"error": "no"}) == ServerError("", "no", "error")


chunk = st.one_of(
    st.lists(st.integers(0, 2**31 - 1), max_size=3).map(event),
    st.sampled_from([event([5], "length"), event([], "stop"), usage(4), DONE, b": keep\n\n", b"data: {}\n\n", b"\n"]),
    st.sampled_from([b"data: ", b'{"error":1}', b"data: [1", b"\xff", b"\r", b"event: error\n", b'data: {"choices":'])
    | st.binary(max_size=20),
)


@given(st.lists(chunk, max_size=12), st.sampled_from(["end", "close", "cut", "stalled", "cancelled", "protocol"]))
@settings(max_examples=400, deadline=None)
def test_any_bytes_give_a_record_that_holds_together(chunks: list[bytes], ending: Ending) -> None:
    found = judged(chunks, ending)
    r = found.record
    assert len(found.ids) == len(found.arrivals) == r.tokens >= r.chunks >= 0
    assert (r.outcome == "ok") == (r.reason == "")
    assert r.reason in ("", *REASONS_FAIL, *REASONS_INFO)
    assert len(r.detail) <= 300
    assert list(found.arrivals) == sorted(found.arrivals)
    if r.outcome == "ok":
        assert r.done
        assert r.finish in ("length", "stop")
        assert r.tokens == 4 or r.text_only


@given(st.lists(chunk, max_size=12), st.data())
@settings(max_examples=200, deadline=None)
def test_the_reads_decide_times_only(chunks: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(chunks)
    cut = data.draw(st.integers(0, len(whole)))
    one, two = judged(whole), judged([whole[:cut], whole[cut:]])
    assert one.ids == two.ids
    assert (one.record.outcome, one.record.reason, one.record.detail, one.record.chunks) == (
        two.record.outcome,
        two.record.reason,
        two.record.detail,
        two.record.chunks,
    )


SPOKEN = b'data: {"id":"c","created":1,"choices":[{"index":0,"text":"%s","finish_reason":%s,"token_ids":[%s]%s}]%s}%s'
TEXTS = (
    b"",
    b" word",
    b"x" * 40,
    b"\\n",
    b'\\"',
    b"\\u0041",
    "é".encode(),
    b"\xff",
    b"\x01",
    b'","token_ids":[5',
    b"\\",
)
IDS = (b"1", b"7", b"2147483647", b"2147483648", b"01", b"-1", b"", b"1,2", b" 3", b"1e2", b"1.0", b"true", b"9" * 30)
MORE = (b"", b',"text":"y"', b',"token_ids":[9]', b',"logprobs":{"text":"z"}', b',"prompt_token_ids":[1]', b',"a":"]"')
REST = (
    b"",
    b',"usage":null',
    b',"usage":{"completion_tokens":2}',
    b',"error":{"message":"no"}',
    b',"x":"\\"text\\":\\""',
)
spoken = st.builds(
    lambda *parts: SPOKEN % parts,
    st.sampled_from(TEXTS[:3]) | st.sampled_from(TEXTS),
    st.sampled_from([b"null"] * 6 + [b'"length"']),
    st.sampled_from(IDS[:3]) | st.sampled_from(IDS),
    st.sampled_from([b""] * 6) | st.sampled_from(MORE),
    st.sampled_from([b""] * 6) | st.sampled_from(REST),
    st.sampled_from([b"\n\n"] * 6 + [b"\r\n\r\n", b"\n", b"\n\r", b"\n\nevent: error\n"]),
)


def parsed(reads: list[bytes]) -> Decoded:
    """What the parser says of each of them: without a shape none goes past it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_module, "TRIES", 0)
        return judged(reads)


@given(st.lists(spoken | st.sampled_from([DONE, b"\n", b": hi\n\n", b"", b"data: {", b"event: error\n"]), max_size=30))
@settings(max_examples=400, deadline=None)
def test_reads_that_are_not_parsed_mean_what_the_parser_says(reads: list[bytes]) -> None:
    assert judged(reads) == parsed(reads)


@pytest.mark.parametrize("word", TEXTS)
@pytest.mark.parametrize("number", IDS)
def test_one_odd_event_among_usual_ones(word: bytes, number: bytes) -> None:
    usual = SPOKEN % (b" word", b"null", b"7", b"", b"", b"\n\n")
    reads = [usual, usual, SPOKEN % (word, b"null", number, b"", b"", b"\n\n"), usual]
    assert judged(reads) == parsed(reads)


@pytest.mark.parametrize(
    "odd",
    [
        b'data: {"choices":[{"text":"a","token_ids":[2]}]}\n',
        b'data: {"choices":[{"text":"a","token_ids":[2]}]}\n\ndata: {}\n\n',
        b': hi\ndata: {"choices":[{"text":"a","token_ids":[2]}]}\n\n',
        b'data:{"choices":[{"text":"a","token_ids":[2]}]}\n\n',
        b'data: {"choices":[{"text":"a","token_ids":[2]}]}\r\n\n',
        b'data: {"choices":[{"text":"a","token_ids":[2],"more":{"text":"b"}}]}\n\n',
        b'data: {"choices":[{"text":"a","token_ids":[2],"more":{"token_ids":[3]}}]}\n\n',
        b'data: {"choices":[{"text":null,"token_ids":[2]}]}\n\n',
        b'data: {"choices":[{"text":"a","token_ids":null}]}\n\n',
        b'data: {"choices":[{"text":"a","token_ids":[2\n\n',
        b"",
    ],
)
def test_reads_without_a_shape(odd: bytes) -> None:
    assert shape_of(odd) is None


def test_a_shape_takes_any_text_and_id_that_json_would() -> None:
    shape = shape_of(b'data: {"choices":[{"text":"","token_ids":[]}]}\n\n')
    assert shape is None  # no id, no shape
    shape = shape_of(b'data: {"choices":[{"text":"","token_ids":[7]}]}\n\n')
    assert shape is not None
    made = b'data: {"choices":[{"text":"%s","token_ids":[%s]}]}\n\n'
    good = [(b" a~", b"0"), (b"", b"2147483647"), (b"}", b"10")]
    good += [(b"x" * LONGEST, b"1")]
    ids, texts = shape.tokens([made % pair for pair in good])
    assert (list(ids), texts) == ([0, 2**31 - 1, 10, 1], [b" a~", b"", b"}", b"x" * LONGEST])
    assert shape.tokens([]) == (array("i"), [])
    for odd in (
        *(made % (b"", number) for number in (b"2147483648", b"07", b"", b"-1", b"1" * 11, b"1" * 5000, b"1_0")),
        *(made % (word, b"1") for word in (b"\x1f", b"\x80", b"\\n", b'a"', b'","token_ids":[5', b"x" * (LONGEST + 1))),
        made[:-2] % (b"a", b"1"),
        made[6:] % (b"a", b"1"),
        b'data: {"choices":[{"text":"a"]}]}\n\n',
        b'data: {"choices":[{"text":"]}]}\n\n',
        b"",
    ):
        for before in range(4):
            reads = [made % (b"b", b"8")] * before + [odd] + [made % (b"c", b"9")] * 3
            ids, texts = shape.tokens(reads)
            assert list(ids) == [8] * len(texts)
            assert min(before, 1) <= len(ids) <= before


@given(st.lists(st.sampled_from(TEXTS[:3]) | st.sampled_from(TEXTS[:5]), min_size=1, max_size=300), st.data())
@settings(max_examples=50, deadline=None)
def test_long_runs_of_usual_reads_mean_what_the_parser_says(words: list[bytes], data: st.DataObject) -> None:
    numbers = [b"%d" % i for i in range(len(words))]
    for place in data.draw(st.lists(st.integers(0, len(words) - 1), max_size=3)):
        numbers[place] = data.draw(st.sampled_from(IDS))
    reads = [SPOKEN % (w, b"null", n, b"", b"", b"\n\n") for w, n in zip(words, numbers, strict=True)]
    assert judged([*reads, DONE]) == parsed([*reads, DONE])


def test_a_long_read_among_usual_ones_is_cut_for_the_parser() -> None:
    """Each of its parts is work after which others may have their turn."""
    usual = SPOKEN % (b" word", b"null", b"7", b"", b"", b"\n\n")
    reads = [usual, usual, SPOKEN % (b"x" * 100_000, b"null", b"8", b"", b"", b"\n\n"), usual]
    assert judged(reads) == parsed(reads)
    steps = [len(list(decoding(exchange(r), Redactor()))) for r in (reads, reads[:2] + reads[3:])]
    assert steps[0] > steps[1]


def test_the_usual_reads_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the law above would say nothing."""
    seen: list[bytes] = []
    feed = Parser.feed
    monkeypatch.setattr(Parser, "feed", lambda self, chunk: seen.append(chunk) or feed(self, chunk))
    reads = [event([11], prompt_token_ids=[1, 2, 3]), *(event([i]) for i in range(100)), event([1], "length"), DONE]
    found = judged(reads, ask=ask(102))
    assert found.record.outcome == "ok"
    assert found.ids == array("i", [11, *range(100), 1])
    assert len([s for s in seen if s]) <= 5


@pytest.mark.parametrize(
    "odd",
    [
        b'data: {"choices":[{"text":"a","text_":"b","token_ids_":[1],"token_ids":[2],"logprobs":{"text":"x"}}]}\n\n',
        b'data: {"choices":[{"a\\"text":"a","token_ids":[2]}]}\n\n',
        b'data: {"text":"a","choices":[{"token_ids":[2]}]}\n\n',
        b'data: {"choices":[{"text":"a"}],"token_ids":[2]}\n\n',
        b'data: {"choices":[{"text":"a","token_ids":[2],"finish_reason":"stop"}]}\n\n',
        b'data: {"choices":[{"text":"a","token_ids":[2]}],"usage":{"completion_tokens":3}}\n\n',
        b'data: {"choices":[{"token_ids":[2],"text":"a"}]}\n\n',
    ],
)
def test_places_that_do_not_count_make_no_shape(odd: bytes) -> None:
    assert decode_module._proven(shape_of(odd)) is None


@pytest.mark.parametrize(
    "extra", [{"stop": ["x"]}, {"stop_token_ids": [7]}, {"stop": []}, {"stop_token_ids": None}, {}]
)
def test_a_stream_that_a_stop_may_end_early_is_recorded_as_one(extra: dict[str, object]) -> None:
    early = any(extra.values())
    found = judged(event([1, 2], "stop") + usage(2) + DONE, ask=ask(extra=extra)).record
    assert (found.ignore_eos, found.reason) == (not early, "" if early else "truncated")


@pytest.mark.parametrize("ids", [b"[true]", b"[false]", b"[1, true]", b"[true, 2]"])
def test_a_truth_value_is_no_token_id(ids: bytes) -> None:
    data = b'data: {"choices": [{"index": 0, "text": "", "token_ids": ' + ids + b"}]}\n\n"
    assert why(data + DONE)[:2] == ("fail", "protocol")


@pytest.mark.parametrize(
    ("late_ns", "us"),
    [
        *((0, 0), (1, 1), (999, 1), (1000, 1), (1001, 2), (-1, 0), (-999, 0), (-1000, 0), (-5_000_000, 0)),
        *(((2**32 - 1) * 1000, 2**32 - 1), ((2**32 - 1) * 1000 + 1, 2**32 - 1), (2**60, 2**32 - 1)),
    ],
)
def test_arrivals_are_rounded_up_and_kept_within_their_column(late_ns: int, us: int) -> None:
    """Beside others: one that does not fit changes none of them."""
    found = judged([event([11]), event([12], "length")], stamps=[SENT + late_ns, SENT + 1_000_001])
    assert list(found.arrivals) == [us, 1001]


def test_usual_reads_leave_others_their_turn_as_well() -> None:
    reads = [event([i]) for i in range(5000)]
    assert 10 <= len(list(decoding(exchange(reads, ask=ask(5000)), Redactor()))) <= 50
