"""The HTTP contract, case by case over real sockets, with the answers that a vLLM 0.32.0 gave to the same requests."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from embedded import Embedded, embedded, until
from engine_kit import oracle
from peft_maker import Recipe, make
from safetensors.numpy import load_file, save_file

from loadtest.server.base import ensure_base
from loadtest.server.lora import read_version
from loadtest.server.weights import load_model

PROMPT = [1, 2, 300, 400, 500]
LOAD, UNLOAD, COMPLETE = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/completions"
ALREADY = (
    "The lora adapter 'a' has already been loaded. "
    "If you want to load the adapter in place, set 'load_inplace' to True."
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def paths(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("adapters")
    return [make(base, out / f"v{i}", i) for i in range(3)]


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with embedded(base, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(autouse=True)
def _empty(server: Embedded) -> Iterator[None]:
    yield
    for card in server.call("GET", "/v1/models").json["data"][1:]:
        server.unload(card["id"])


# ---- loading ----


def test_load_swap_list_and_unload(server: Embedded, base: Path, paths: list[Path]) -> None:
    answer = server.load("a", paths[0])
    assert (answer.status, answer.body) == (200, b"Success: LoRA adapter 'a' added successfully.")
    assert server.load("a", paths[0]).error == (400, "InvalidUserInput", ALREADY)
    assert server.load("a", paths[1], inplace=True).status == 200
    cards = server.call("GET", "/v1/models").json["data"]
    assert [(c["id"], c["root"], c["parent"]) for c in cards] == [
        ("base", str(base), None),
        ("a", str(paths[1]), "base"),
    ]
    answer = server.unload("a")
    assert (answer.status, answer.body) == (200, b"Success: LoRA adapter 'a' removed successfully.")
    assert len(server.call("GET", "/v1/models").json["data"]) == 1
    assert server.unload("a").error == (404, "NotFoundError", "The lora adapter 'a' cannot be found.")


@pytest.mark.parametrize(
    ("path", "body", "kind", "words"),
    [
        (LOAD, {"lora_name": "", "lora_path": "/x"}, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must"),
        (LOAD, {"lora_name": "base", "lora_path": "/x"}, "InvalidUserInput", "conflicts with a served base model"),
        (LOAD, {"lora_name": "b"}, "Bad Request", "'loc': 'body.lora_path', 'msg': 'Field required'"),
        (LOAD, {"lora_name": 3, "lora_path": "x"}, "Bad Request", "Input should be a valid string"),
        (LOAD, {"lora_name": "b", "lora_path": "x", "load_inplace": "maybe"}, "Bad Request", "valid boolean"),
        (LOAD, [1], "Bad Request", "Input should be a valid dictionary"),
        (LOAD, b"{nope", "Bad Request", "JSON decode error"),
        (LOAD, b"", "Bad Request", "Field required"),
        (UNLOAD, {"lora_name": ""}, "InvalidUserInput", "'lora_name' needs to be provided"),
        (UNLOAD, {}, "Bad Request", "Field required"),
    ],
)
def test_bad_admin_bodies(server: Embedded, path: str, body: object, kind: str, words: str) -> None:
    status, found, message = server.call("POST", path, body).error
    assert (status, found) == (400, kind)
    assert words in message


def test_wrong_content_type(server: Embedded, paths: list[Path]) -> None:
    body = {"lora_name": "b", "lora_path": str(paths[0])}
    for path in (LOAD, COMPLETE):
        message = server.call("POST", path, body, content_type="text/plain").error[2]
        assert message == "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"


def bad_folders(base: Path, out: Path) -> dict[str, tuple[Path, int, str]]:
    """Folders that must be refused: name -> (path, status, words of the message)."""

    def variant(name: str, recipe: Recipe | None = None) -> Path:
        return make(base, out / name, 9, recipe)

    corrupt = variant("corrupt")
    weights = corrupt / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    pickle = variant("pickle")
    (pickle / "adapter_model.safetensors").rename(pickle / "adapter_model.bin")
    unconfigured = variant("unconfigured")
    (unconfigured / "adapter_config.json").unlink()
    broken = variant("broken")
    (broken / "adapter_config.json").write_text("{nope")
    empty = variant("empty")
    (empty / "adapter_config.json").write_text("{}")
    odd, misshapen = variant("odd"), variant("misshapen")
    tensors = load_file(odd / "adapter_model.safetensors")
    save_file({k.replace("q_proj", "foo_proj"): v for k, v in tensors.items()}, odd / "adapter_model.safetensors")
    name = next(k for k in tensors if "q_proj.lora_B" in k)
    save_file(tensors | {name: tensors[name][:10].copy()}, misshapen / "adapter_model.safetensors")
    return {
        "missing": (out / "missing", 404, "Loading lora x failed: No adapter found for <path>"),
        "relative": (Path("some/repo"), 404, "No adapter found for some/repo"),
        "unconfigured": (unconfigured, 404, "No adapter found"),
        "corrupt": (corrupt, 500, "incomplete metadata, file not fully covered"),
        "pickle": (pickle, 500, "doesn't contain tensors"),
        "broken": (broken, 500, "Expecting property name enclosed in double quotes"),
        "empty": (empty, 500, "Missing required configuration fields"),
        "odd": (odd, 500, "Please verify that the loaded LoRA module is correct"),
        "misshapen": (misshapen, 500, "expected (r, 128) and (128, r)"),
        "rank": (variant("rank", Recipe(rank=128)), 500, "LoRA rank 128 is greater than max_lora_rank 64."),
        "dora": (variant("dora", Recipe(extra={"use_dora": True})), 500, "does not yet support DoRA"),
        "bias": (variant("bias", Recipe(extra={"bias": "all"})), 500, "Adapter bias is not supported."),
        "saved": (variant("saved", Recipe(extra={"modules_to_save": ["lm_head"]})), 500, "modules_to_save"),
        "pissa": (variant("pissa", Recipe(extra={"init_lora_weights": "pissa"})), 500, "init_lora_weights='pissa'"),
    }


def test_folders_that_cannot_be_served_are_refused_and_change_nothing(
    server: Embedded, base: Path, paths: list[Path], tmp_path: Path
) -> None:
    server.load("a", paths[0])
    before = server.ids("a", PROMPT)
    for how, (path, wanted, words) in bad_folders(base, tmp_path).items():
        status, kind, message = server.load("x", path).error
        assert (status, kind) == (wanted, "NotFoundError" if wanted == 404 else "InternalServerError"), how
        assert words in message, how
        assert server.load("a", path, inplace=True).status == wanted, how
    assert server.ids("a", PROMPT) == before
    assert [c["root"] for c in server.call("GET", "/v1/models").json["data"][1:]] == [str(paths[0])]


def test_sagemaker_aliases(server: Embedded, paths: list[Path]) -> None:
    answer = server.call("POST", "/adapters", {"name": "s", "src": str(paths[2])})
    assert (answer.status, answer.body) == (200, b"Adapter s registered")
    answer = server.call("DELETE", "/adapters/s")
    assert (answer.status, answer.body) == (200, b"Adapter s unregistered")
    assert server.call("DELETE", "/adapters/s").status == 404
    assert server.call("POST", "/adapters", {"name": "s"}).status == 400


def test_the_content_of_a_path_is_read_at_the_load(server: Embedded, paths: list[Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(paths[0], tmp_path / "f"))
    server.load("a", folder)
    first = server.ids("a", PROMPT)
    shutil.copytree(paths[1], folder, dirs_exist_ok=True)
    assert server.ids("a", PROMPT) == first
    server.load("a", folder, inplace=True)
    assert server.ids("a", PROMPT) != first


def test_plain_routes(server: Embedded) -> None:
    for path in ("/health", "/ping"):
        answer = server.call("GET", path)
        assert (answer.status, answer.body) == (200, b"")
    assert server.call("GET", "/version").json["version"].startswith("0.32.0")
    assert server.call("GET", "/nope").json == {"detail": "Not Found"}
    assert server.call("GET", LOAD).json == {"detail": "Method Not Allowed"}


def test_without_runtime_lora_the_routes_do_not_exist(base: Path, paths: list[Path], tmp_path: Path) -> None:
    with embedded(base, tmp_path, "--no-runtime-lora", "--lora-modules", f"a={paths[0]}") as fixed:
        answer = fixed.load("b", paths[1])
        assert (answer.status, answer.json) == (404, {"detail": "Not Found"})
        assert fixed.ids("a", PROMPT) != fixed.ids("base", PROMPT)


# ---- completions ----


def test_stream_frames(server: Embedded, base: Path, paths: list[Path]) -> None:
    server.load("a", paths[0])
    model = load_model(base)
    wanted = oracle(model, PROMPT, [read_version(str(paths[0]), model.config, 64)] * 4)
    answer = server.complete("a", PROMPT, stream=True, stream_options={"include_usage": True})
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    *tokens, usage, done = answer.frames
    assert done == "[DONE]"
    choices = [f["choices"][0] for f in tokens]
    assert [c["token_ids"] for c in choices] == [[i] for i in wanted]
    assert [c["finish_reason"] for c in choices] == [None, None, None, "length"]
    assert [c["prompt_token_ids"] for c in choices] == [PROMPT, None, None, None]
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 5, "total_tokens": 9, "completion_tokens": 4}
    assert {(f["id"], f["object"], f["model"]) for f in tokens} == {(tokens[0]["id"], "text_completion", "a")}
    whole = server.complete("a", PROMPT).json
    assert whole["choices"][0]["token_ids"] == wanted
    assert whole["choices"][0]["text"] == "".join(c["text"] for c in choices)
    assert whole["usage"] == usage["usage"]


def test_without_return_token_ids_there_are_none(server: Embedded) -> None:
    frames = server.complete("base", PROMPT, stream=True, return_token_ids=False).frames
    assert [f["choices"][0]["token_ids"] for f in frames[:-1]] == [None] * 4
    assert frames[0]["choices"][0]["prompt_token_ids"] is None


def test_text_prompts_and_default_model(server: Embedded) -> None:
    body = {"prompt": "hello world", "max_tokens": 2, "temperature": 0, "return_token_ids": True}
    answer = server.call("POST", COMPLETE, body).json
    assert answer["model"] == "base"
    assert answer["choices"][0]["token_ids"] == server.ids("base", answer["choices"][0]["prompt_token_ids"], 2)


def test_text_never_holds_half_a_character(server: Embedded, base: Path) -> None:
    frames = server.complete("base", PROMPT, 200, stream=True, temperature=8.0, seed=1).frames
    texts = [f["choices"][0]["text"] for f in frames[:-1]]
    assert len(texts) == 200
    assert "" in texts  # some bytes waited for others
    assert sum(len(f["choices"][0]["token_ids"]) for f in frames[:-1]) == 200


def test_stop_strings(server: Embedded) -> None:
    text = server.complete("base", PROMPT, 40).json["choices"][0]["text"]
    stop = text[20:24]
    at = text.index(stop)
    whole = server.complete("base", PROMPT, 40, stop=[stop]).json["choices"][0]
    assert (whole["text"], whole["finish_reason"], whole["stop_reason"]) == (text[:at], "stop", stop)
    assert len(whole["token_ids"]) < 40
    frames = server.complete("base", PROMPT, 40, stop=stop, stream=True).frames
    assert "".join(f["choices"][0]["text"] for f in frames[:-1]) == text[:at]
    assert frames[-2]["choices"][0]["stop_reason"] == stop


def test_prompt_logprobs_and_logprobs(server: Embedded) -> None:
    choice = server.complete("base", PROMPT, 2, prompt_logprobs=1, logprobs=2).json["choices"][0]
    scores = choice["prompt_logprobs"]
    assert scores[0] is None
    assert len(scores) == len(PROMPT)
    for token, score in zip(PROMPT[1:], scores[1:], strict=True):
        best = min(score.values(), key=lambda s: s["rank"])
        assert best["rank"] == 1
        assert score[str(token)]["logprob"] <= best["logprob"] <= 0
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert [len(top) for top in logprobs["top_logprobs"]] == [2, 2]
    frames = server.complete("base", PROMPT, 2, logprobs=2, stream=True).frames
    assert [f["choices"][0]["logprobs"]["text_offset"] for f in frames[:-1]] == [[o] for o in logprobs["text_offset"]]


def test_max_tokens_is_fitted_to_the_context(server: Embedded) -> None:
    answer = server.complete("base", [7] * 2040, 100).json
    assert answer["usage"] == {"prompt_tokens": 2040, "total_tokens": 2048, "completion_tokens": 8}


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"model": "zz"}, 404, "The model `zz` does not exist."),
        ({"model": "zz", "stream": True}, 404, "The model `zz` does not exist."),
        ({"prompt": ""}, 400, "Either prompt or prompt_embeds must be provided and non-empty."),
        ({"prompt": None}, 400, "Either prompt or prompt_embeds must be provided and non-empty."),
        ({"prompt": []}, 400, "You must pass at least one prompt"),
        ({"prompt": ["a", "b"]}, 400, "takes one prompt per request"),
        ({"prompt": [5000]}, 400, "Token id 5000 is out of vocabulary"),
        ({"prompt": [-1]}, 400, "greater than or equal to 0"),
        ({"prompt": [1] * 2048}, 400, "maximum context length is 2048 tokens"),
        ({"max_tokens": 0}, 400, "max_tokens must be at least 1, got 0."),
        ({"max_tokens": "x"}, 400, "Input should be a valid integer, unable to parse string as an integer"),
        ({"temperature": -1}, 400, "temperature must be non-negative, got -1.0."),
        ({"top_p": 2}, 400, "top_p must be in (0, 1], got 2.0."),
        ({"n": 2}, 400, "n must be 1 when using greedy sampling, got 2."),
        ({"logprobs": 50}, 400, "Requested sample logprobs of 50, which is greater than max allowed: 20"),
        ({"prompt_logprobs": 1, "stream": True}, 400, "`prompt_logprobs` are not available when `stream=True`."),
        ({"stream_options": {"include_usage": True}}, 400, "Stream options can only be defined when `stream=True`."),
        ({"cache_salt": ""}, 400, "Parameter 'cache_salt' must be a non-empty string if provided."),
        ({"suffix": "x"}, 400, "suffix requires"),
        ({"echo": True}, 400, "echo=True is not supported by the embedded engine"),
        ({"temperature": 1.0, "top_p": 0.9}, 400, "top_p=0.9 is not supported by the embedded engine"),
    ],
)
def test_bad_completions(server: Embedded, change: dict[str, object], status: int, words: str) -> None:
    body: dict[str, object] = {"model": "base", "prompt": PROMPT, "max_tokens": 4, "temperature": 0}
    found, _, message = server.call("POST", COMPLETE, body | change).error
    assert found == status
    assert words in message


def test_unknown_and_neutral_fields_are_ignored(server: Embedded) -> None:
    body = {"best_of": 3, "unknown": 1, "top_p": 0.5, "frequency_penalty": 0.0, "n": 1, "user": "u"}
    assert server.complete("base", PROMPT, **body).status == 200


def test_openai_client(server: Embedded, paths: list[Path]) -> None:
    server.load("a", paths[0])
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        assert [m.id for m in client.models.list()] == ["base", "a"]
        whole = client.completions.create(model="a", prompt="hello", max_tokens=8, temperature=0)
        parts = list(
            client.completions.create(
                model="a",
                prompt="hello",
                max_tokens=8,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert "".join(p.choices[0].text for p in parts if p.choices) == whole.choices[0].text
        assert parts[-1].usage == whole.usage
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="nobody", prompt="hello")


def test_http_1_0_gets_an_unchunked_body(server: Embedded) -> None:
    body = json.dumps({"model": "base", "prompt": PROMPT, "max_tokens": 3, "temperature": 0, "stream": True}).encode()
    head = f"POST {COMPLETE} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(head.encode() + body)
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    start, _, events = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in start.lower()
    assert events.startswith(b"data: {")
    assert events.endswith(b"data: [DONE]\n\n")


def test_one_connection_serves_one_request_after_the_other(server: Embedded) -> None:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    body = json.dumps({"model": "base", "prompt": PROMPT, "max_tokens": 3, "temperature": 0, "stream": True})
    answers = []
    for _ in range(3):
        connection.request("POST", COMPLETE, body, {"Content-Type": "application/json"})
        answers.append(connection.getresponse().read())
    connection.close()
    assert all(a.endswith(b"data: [DONE]\n\n") and a.count(b"data: ") == 4 for a in answers)


def test_a_client_that_goes_away_leaves_the_batch(base: Path, tmp_path: Path) -> None:
    with embedded(base, tmp_path, "--step-ms", "5") as slow:
        body = json.dumps({"model": "base", "prompt": PROMPT, "max_tokens": 2000, "ignore_eos": True, "stream": True})
        head = f"POST {COMPLETE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", slow.port), timeout=10) as raw:
            raw.sendall((head + body).encode())
            raw.recv(100)
            until(lambda: slow.metric("vllm:num_requests_running") == 1)
        until(lambda: slow.metric("vllm:num_requests_running") == 0)
        assert slow.metric("vllm:generation_tokens_total") < 2000
        metrics = slow.call("GET", "/metrics").body.decode()
        assert 'vllm:request_success_total{engine="0",finished_reason="abort",model_name="base"} 1.0' in metrics


def test_metrics(server: Embedded, paths: list[Path]) -> None:
    server.load("a", paths[0])
    names = ("prompt_tokens_total", "generation_tokens_total", "prefix_cache_queries_total", "prefix_cache_hits_total")
    before = {name: server.metric(f"vllm:{name}") for name in names}
    prompt = list(range(1000, 1040))
    for _ in range(2):
        server.ids("a", prompt, 3)
    after = {name: server.metric(f"vllm:{name}") for name in names}
    assert [after[n] - before[n] for n in names] == [80, 6, 80, 32]
    body = server.call("GET", "/metrics").body.decode()
    assert 'vllm:lora_requests_info{max_lora="4",running_lora_adapters="",waiting_lora_adapters=""}' in body
