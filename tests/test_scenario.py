"""Scenarios: DESIGN's example, what is written back, what the errors say, and that nothing raises anything else."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadtest import scenario
from loadtest.errors import ScenarioError
from loadtest.scenario import Scenario
from loadtest.scenario_units import IntRange, SecondsRange, show_duration

SHIPPED = sorted((Path(__file__).parent.parent / "scenarios").glob("*.yaml"))
EXAMPLE = """\
title: Hotfix tenant-a under load
target: {url: embedded, swap: pin} # swap and plant: policy and planted faults of the embedded engine
adapters:
  tenant-a: {versions: markers}    # one marker version per swap; or markers 3; or a list of {id, path} or {id, hub}
  tenant-b: {versions: markers 1}
traffic:
  users: 20                        # closed loop; or arrivals: {poisson: 8/s}; or stages: [...]
  mix: {tenant-a: 6, tenant-b: 3, base: 1}
  prompts: {synthetic: {tokens: 32..256, shared_prefix: 0.3}}
  max_tokens: 64..256
phases:
  - {arm: aa, for: 10s}
  - {arm: sham, hotfix: tenant-a, every: 1s..2s, count: 10}
  - {arm: real, hotfix: tenant-a, every: 1s..2s, count: 30}
  - {arm: bad,  hotfix: tenant-a, with: [missing, corrupt, rank-too-high], every: 1s}
  - {arm: aa, for: 10s}
require: {level: stream-atomic, swap_ack_p99: 500ms, hangover: 1.2, isolated: {error_rate: 0, stall: 2x}}
"""
SMALL = """\
adapters:
  a: {versions: markers}
traffic: {users: 2}
phases:
  - {arm: real, hotfix: a, every: 1s, count: 3}
"""
EVERYTHING = """\
title: every key
seed: 7
target:
  url: http://127.0.0.1:8000
  model: qwen
  base: models/qwen
  adapters_dir: {local: /tmp/adapters, server: /adapters}
  api_key_env: VLLM_API_KEY
  max_loras: 8
  max_lora_rank: 32
adapters:
  a: {versions: [{id: v0, path: one}, {id: v1, hub: owner/name@main}]}
  b: {versions: markers 3, rank: 16}
traffic:
  stages: [{users: 2, for: 10s}, {users: 8, for: 1m, spawn_rate: 2/s}]
  prompts: {texts: [hello, "yes", "1e5", "line\\nbreak", "2024-01-01", "é 🦉"]}
  max_tokens: 32
  think: 0s..1s
  stream_deadline: 2m
  stall: 5s
phases:
  - {arm: aa, for: 500ms}
  - {arm: real, hotfix: a, every: 1s..1500ms, for: 20s, mode: reload, timeout: 8s}
  - {arm: sham, hotfix: b, every: 1s, count: 2, mode: reload, timeout: 8s}
"""


def problems(text: str) -> dict[str, str]:
    """key -> "line message: remedy" of a text that must be refused."""
    with pytest.raises(ScenarioError) as caught:
        scenario.loads(text, "s.yaml")
    return {p.key: f"{p.line} {p.message}: {p.remedy}" for p in caught.value.problems}


def test_the_example_of_the_design_reads_as_it_says() -> None:
    s = scenario.loads(EXAMPLE)
    assert (s.target.url, s.target.swap, s.target.managed) == ("embedded", "pin", None)
    assert [a.marker_count for a in s.adapters.values()] == [None, 1]
    assert s.mix == {"tenant-a": 6, "tenant-b": 3, "base": 1}
    assert s.traffic.prompts.synthetic is not None
    assert s.traffic.prompts.synthetic.tokens == IntRange(32, 256)
    assert [p.arm for p in s.phases] == ["aa", "sham", "real", "bad", "aa"]
    assert s.phases[1].every == SecondsRange(1.0, 2.0)
    assert s.phases[3].how == ("missing", "corrupt", "rank-too-high")
    assert s.phases[0].duration == 10.0
    r = s.require
    assert r.isolated is not None
    assert (r.swap_ack_p99, r.hangover, r.isolated.error_rate, r.isolated.stall) == (0.5, 1.2, 0.0, 2.0)
    assert (r.level, r.min_swaps) == ("stream-atomic", 10)


def test_defaults_are_those_that_the_documents_name() -> None:
    s = scenario.loads(SMALL)
    assert (s.phases[0].mode, s.phases[0].timeout, s.target.max_lora_rank) == ("inplace", 30.0, 64)
    assert s.adapters["a"].rank == 8
    assert s.traffic.think == SecondsRange(0.0, 0.0)


@pytest.mark.parametrize("text", [EXAMPLE, SMALL, EVERYTHING], ids=["example", "small", "everything"])
def test_what_is_written_reads_back_equal_and_says_its_defaults(text: str) -> None:
    s = scenario.loads(text)
    written = scenario.to_yaml(s)
    assert scenario.loads(written) == s
    assert "timeout:" in written
    assert "max_lora_rank:" in written


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_scenarios_read_and_survive_other_targets_and_users(path: Path) -> None:
    s = scenario.load(path)
    assert s.title
    assert scenario.loads(scenario.to_yaml(s)) == s
    busy = scenario.with_users(s, 3)
    assert scenario.loads(scenario.to_yaml(busy)) == busy
    assert busy.traffic.users == 3 or busy.traffic.arrivals is not None
    there = scenario.with_target(s, "http://127.0.0.1:1")
    there = there.model_copy(update={"target": there.target.model_copy(update={"base": "somewhere"})})
    assert scenario.loads(scenario.to_yaml(there)) == there
    assert scenario.loads(scenario.to_yaml(scenario.with_target(s, "embedded"))).target.url == "embedded"


def test_a_target_of_the_command_line_may_hold_a_password_and_must_be_an_address() -> None:
    s = scenario.loads(SMALL)
    assert scenario.with_target(s, "http://me:secret@host:80").target.url == "http://me:secret@host:80"
    for url in ("localhost:8000", "http://", "http://me:secret@", "http://host:99999", "ftp://host"):
        with pytest.raises(ScenarioError) as caught:
            scenario.with_target(s, url)
        assert "secret" not in str(caught.value)


def test_ten_mistakes_are_ten_problems_each_with_its_line_and_a_remedy() -> None:
    text = """\
title: ten mistakes
target: {url: embeded, swap: pins}
adapters:
  tenant-a: {versions: marker}
  tenant-b: {versions: markers 1, rnak: 8}
traffic:
  users: 20
  arrivals: {poisson: 8/s}
  mix: {tenant-a: 6, tenant-c: 1}
  max_tokens: 256..64
phases:
  - {arm: aa}
  - {arm: real, hotfix: tenant-b, every: 5, count: 10}
  - {arm: real, hotfix: tenant_a, every: 1s..2s}
require: {level: stream-atomic, hangover: 1.2, hangovr: 2}
"""
    found = problems(text)
    assert {key: int(words.split()[0]) for key, words in found.items()} == {
        "target.url": 2,
        "target.swap": 2,
        "adapters.tenant-a.versions": 4,
        "adapters.tenant-b.rnak": 5,
        "traffic.arrivals": 8,
        "traffic.mix.tenant-c": 9,
        "traffic.max_tokens": 10,
        "phases[0]": 12,
        "phases[1].every": 13,
        "phases[1].hotfix": 13,
        "phases[2].hotfix": 14,
        "phases[2]": 14,
        "require.hangover": 15,
        "require.hangovr": 15,
    }
    assert "'embeded'" in found["target.url"]
    assert "did you mean 'pin'?" in found["target.swap"]
    assert "did you mean 'rank'?" in found["adapters.tenant-b.rnak"]
    assert "write 64..256" in found["traffic.max_tokens"]
    assert "write 5s if you mean seconds" in found["phases[1].every"]
    assert "did you mean 'tenant-a'?" in found["phases[2].hotfix"]
    assert "did you mean 'hangover'?" in found["require.hangovr"]
    assert all(re.search(r": \S", words) for words in found.values()), "each has a remedy"


def test_errors_are_lines_that_an_editor_can_follow() -> None:
    with pytest.raises(ScenarioError) as caught:
        scenario.loads(SMALL.replace("count: 3", "count: -3"), "s.yaml")
    assert str(caught.value) == "s.yaml:5: phases[0].count: expected greater than or equal to 1, got -3: change it"
    assert caught.value.exit_code == 64


MISTAKES = {
    "duplicate key": (SMALL + "title: one\ntitle: two\n", "title", "7 the key stands twice (first at line 6)"),
    "tab": (SMALL.replace("  - {arm", "\t- {arm"), "", "5 a tab is used for indentation"),
    "not a mapping": ("- 1\n- 2\n", "", "1 expected a mapping of keys, got a list"),
    "a word": ("hello", "", "1 expected a mapping"),
    "empty": ("", "", "1 the file is empty"),
    "open bracket": ("adapters: {a: [1\n", "", "2 not valid YAML"),
    "two documents": (SMALL + "---\na: 1\n", "", "6 not valid YAML"),
    "tag": (SMALL.replace("markers}", "!!python/name:os.system x}"), "adapters.a.versions", "2 tags are not supported"),
    "tag on a mapping": ("title: !secret {a: 1}\n" + SMALL, "title", "1 tags are not supported"),
    "no phases": ("adapters: {a: {}}\nphases: []\n", "phases", "2 expected at least 1"),
    "no adapters": ("phases: [{arm: aa, for: 1s}]\n", "adapters", "1 missing"),
    "misplaced": (SMALL + "users: 3\n", "users", "6 unknown key: it belongs under traffic"),
    "weight": (SMALL.replace("users: 2", "mix: {a: 0}"), "traffic.mix.a", "3 expected greater than 0, got 0"),
    "weight of a wrong type": (
        SMALL.replace("users: 2", "mix: {a: much}"),
        "traffic.mix.a",
        "expected a number, got 'much'",
    ),
    "no unit": (SMALL.replace("every: 1s", "every: 1"), "phases[0].every", "write 1s if you mean seconds"),
    "range upside down": (SMALL.replace("1s", "2s..1s"), "phases[0].every", "write 1s..2s"),
    "zero every": (SMALL.replace("1s", "0s..1s"), "phases[0].every", "more than 0 seconds"),
    "unhashable name": (SMALL.replace("hotfix: a", "hotfix: [a]"), "phases[0].hotfix", "expected text, got a list"),
    "count and for": (SMALL.replace("count: 3", "count: 3, for: 9s"), "phases[0]", "either count or for"),
    "too short": (SMALL.replace("count: 3", "for: 500ms"), "phases[0].for", "may be over before the first swap"),
    "too many": (SMALL.replace("every: 1s, count: 3", "every: 1ms, for: 1h"), "phases[0].every", "10000 swaps"),
    "with in real": (SMALL.replace("count: 3", "count: 3, with: [missing]"), "phases[0].with", "for bad phases only"),
    "unknown bad": (
        SMALL.replace("real, hotfix: a, every: 1s, count: 3", "bad, hotfix: a, every: 1s, with: [mising]"),
        "phases[0].with[0]",
        "did you mean 'missing'?",
    ),
    "bad reload": (
        SMALL.replace(
            "real, hotfix: a, every: 1s, count: 3", "bad, hotfix: a, every: 1s, with: [missing], mode: reload"
        ),
        "phases[0].mode",
        "unload the adapter before",
    ),
    "one version": (SMALL.replace("versions: markers", "versions: markers 1"), "phases[0].hotfix", "one version only"),
    "markers 0": (SMALL.replace("versions: markers", "versions: markers 0"), "adapters.a.versions", "markers N"),
    "level": (SMALL + "require: {level: atomic}\n", "require.level", "expected safe or token-regular or"),
    "rank": (SMALL.replace("versions: markers", "rank: 128"), "adapters.a.rank", "above target.max_lora_rank (64)"),
    "base as a name": (SMALL.replace("a: {v", "base: {v"), "adapters.base", "base model's own name"),
    "served name": (SMALL + "target: {model: a}\n", "adapters.a", "served base model's name"),
    "path in a name": (SMALL.replace("  a: {v", "  ../a: {v"), "adapters.../a", "cannot be a folder's name"),
    "path in an id": (
        SMALL.replace("versions: markers", "versions: [{id: ../x, path: p}]"),
        "adapters.a.versions[0].id",
        "expected a label",
    ),
    "key of a version": (
        SMALL.replace("versions: markers", "versions: [{id: x, path: p, sha: 3}]"),
        "adapters.a.versions[0].sha",
        "2 unknown key",
    ),
    "path and hub": (
        SMALL.replace("versions: markers", "versions: [{id: x, path: p, hub: o/n@main}]"),
        "adapters.a.versions[0]",
        "either path or hub",
    ),
    "hub without revision": (
        SMALL.replace("versions: markers", "versions: [{id: x, hub: o/n}]"),
        "adapters.a.versions[0].hub",
        "owner/name@revision",
    ),
    "no base to forge for": (SMALL + "target: {url: 'http://h:1'}\n", "adapters.a.versions", "set target.base"),
    "policy of a real server": (
        SMALL + "target: {url: 'http://h:1', base: b, swap: pin}\n",
        "target.swap",
        "embedded server only",
    ),
    "two targets": (
        SMALL + "target: {url: embedded, managed: {engine: vllm-cpu}}\n",
        "target.url",
        "exclude each other",
    ),
    "relative server path": (
        SMALL + "target: {url: 'http://h:1', base: b, adapters_dir: {local: x, server: y}}\n",
        "target.adapters_dir.server",
        "absolute path",
    ),
    "spawn rate of arrivals": (
        SMALL.replace("users: 2", "arrivals: {constant: 8/s}, spawn_rate: 3"),
        "traffic.spawn_rate",
        "exclude each other",
    ),
    "two kinds of arrivals": (
        SMALL.replace("users: 2", "arrivals: {constant: 8/s, poisson: 8/s}"),
        "traffic.arrivals",
        "either poisson or constant",
    ),
    "rate without unit": (SMALL.replace("users: 2", "arrivals: {constant: 8}"), "traffic.arrivals.constant", "8/s"),
    "patience": (SMALL.replace("users: 2", "stall: 2m, stream_deadline: 1m"), "traffic.stall", "above stream_deadline"),
    "prompts of two kinds": (
        SMALL.replace("users: 2", "prompts: {texts: [a], synthetic: {}}"),
        "traffic.prompts",
        "one of",
    ),
    "no prompts": (SMALL.replace("users: 2", "prompts: {texts: []}"), "traffic.prompts.texts", "at least 1"),
    "infinity": (SMALL + "require: {hangover: .inf}\n", "require.hangover", "expected a factor"),
    "a speed-up": (SMALL + "require: {hangover: 0.5}\n", "require.hangover", "at least 1"),
    "modes mixed": (
        SMALL + "  - {arm: sham, hotfix: a, every: 1s, count: 3, mode: reload}\n",
        "phases[1].mode",
        "one per scenario",
    ),
}


@pytest.mark.parametrize(("text", "key", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_one_mistake_is_said_in_its_place(text: str, key: str, words: str) -> None:
    found = problems(text)
    assert key in found, found
    assert words in found[key]


@pytest.mark.parametrize(
    "text",
    [
        SMALL + "target: {url: 'http://me:hunter2@host'}\n",
        SMALL + "target: {url: 'http://h', base: b, api_key_env: sk-hunter2}\n",
        SMALL + "target: {managed: {engine: vllm-cpu, env: {VLLM_API_KEY: hunter2}}}\n",
        SMALL + "api_key: hunter2\n",
    ],
    ids=["url", "key for its name", "environment", "unknown key"],
)
def test_a_secret_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        scenario.loads(text)
    assert "hunter2" not in str(caught.value)


def test_a_variable_in_braces_is_text() -> None:
    assert scenario.loads("title: ${HOME}\n" + SMALL).title == "${HOME}"


def test_a_prompts_file_becomes_part_of_the_scenario(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("one\r\n\n  two: \u2028 é\nthree".encode())
    s = scenario.loads(SMALL.replace("users: 2", f"prompts: {{file: {file}}}"))
    assert s.traffic.prompts.texts == ("one", "  two: \u2028 é", "three")
    file.unlink()
    assert scenario.loads(scenario.to_yaml(s)) == s


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"", "holds 0 prompts"),
        (b"\n \n", "holds 0 prompts"),
        (b"caf\xe9\n", "is not UTF-8"),
        (b"x\n" * 3000, "holds 3000 prompts"),
        ("é".encode() * 200_000, "more than 262144 bytes"),
    ],
    ids=["missing", "empty", "blank", "latin-1", "many", "long"],
)
def test_a_prompts_file_that_cannot_serve_is_a_problem(tmp_path: Path, raw: bytes | None, words: str) -> None:
    file = tmp_path / "prompts.txt"
    if raw is not None:
        file.write_bytes(raw)
    assert words in problems(SMALL.replace("users: 2", f"prompts: {{file: {file}}}"))["traffic.prompts"]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\xff\xfe", ":1: the file is not UTF-8 (byte 0xff)"),
        (b"title: x\nb: \xe9\n", ":2: the file is not UTF-8"),
        (b"title: a\nb: \x00\n", ":2: the character"),
        (b"a: x\n" * 500_000, "expected at most 2000000"),
        (b'title: "\\ud800"\n', ":1: title: the text is not valid Unicode"),
        (b'title: "\\UFFFFFFFF"\n', "not readable as YAML"),
    ],
    ids=["utf-16", "latin-1", "null", "huge", "surrogate", "escape"],
)
def test_a_file_that_is_no_text_is_a_problem(tmp_path: Path, raw: bytes, words: str) -> None:
    file = tmp_path / "s.yaml"
    file.write_bytes(raw)
    with pytest.raises(ScenarioError, match=re.escape(words)):
        scenario.load(file)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    assert scenario.load(file) == scenario.loads(SMALL)


@pytest.mark.parametrize("name", ["missing.yaml", ".", "null\0byte"])
def test_a_path_that_is_no_file_is_a_problem(tmp_path: Path, name: str) -> None:
    with pytest.raises(ScenarioError, match="cannot be read"):
        scenario.load(tmp_path / name)


def test_nothing_explodes() -> None:
    laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{c}: &{c} [{', '.join(['*' + b] * 10)}]\n" for b, c in zip("abcdefghi", "bcdefghij", strict=True)
    )
    assert any("too large once aliases are expanded" in words for words in problems(laughs).values())
    assert any("too large" in words for words in problems("a: &a [*a]\n").values())
    assert "nested too deeply" in problems("a: " + "[" * 5000)[""]


def test_the_schema_knows_the_keys_and_types() -> None:
    schema = scenario.json_schema()
    assert set(schema["properties"]) == set(Scenario.model_fields)
    phase = schema["$defs"]["Phase"]["properties"]
    assert {"arm", "for", "hotfix", "every", "count", "with", "mode", "timeout"} == set(phase)


def test_importing_it_is_cheap() -> None:
    heavy = "('numpy', 'aiohttp', 'locust', 'orjson')"
    code = f"import sys, loadtest.scenario; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def read(text: str) -> Scenario | None:
    """The scenario of a text, None when it is refused. Nothing else may happen."""
    try:
        s = scenario.loads(text)
    except ScenarioError as error:
        found = error.problems
    else:
        assert scenario.loads(scenario.to_yaml(s)) == s
        return s
    assert found
    assert all(p.message and "\n" not in p.render("f") for p in found)
    return None


WORDS = st.sampled_from(
    [*"{}[]:,-&*!|>'\"%@`#?~ \n", "a", "1", "1s", "..", "\t", "é", "for: ", "phases:", "\u2028", "- "]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["1s", "1s..2s", "8/s", "2x", "a", "tenant-a", "markers", "embedded", "real", "64..256", "markers 2"]
    )
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, max_size=40).map("".join) | st.text(max_size=60))
def test_any_text_is_a_scenario_or_a_list_of_problems(text: str) -> None:
    read(text)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([EXAMPLE, EVERYTHING, SMALL]),
    st.randoms(use_true_random=False),
    st.lists(VALUES, min_size=1, max_size=3),
)
def test_a_scenario_with_anything_anywhere_is_one_or_a_list_of_problems(
    text: str, rng: random.Random, values: list[object]
) -> None:
    data = yaml.safe_load(text)
    for value in values:
        _put(data, value, rng)
    read(yaml.safe_dump(data, allow_unicode=True))


def _put(data: dict | list, value: object, rng: random.Random) -> None:
    """Replace, add or remove something at a random place."""
    while True:
        keys = list(data) if isinstance(data, dict) else list(range(len(data)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(data[key], dict | list) and data[key] and rng.random() < 0.8:
            data = data[key]
            continue
        if rng.random() < 0.2:
            del data[key]
        else:
            data[key] = value
        return


@settings(max_examples=100, deadline=None)
@given(st.floats(min_value=0.001, max_value=600_000))
def test_durations_are_written_exactly(seconds: float) -> None:
    text = SMALL.replace("every: 1s", f"every: {show_duration(seconds)}")
    assert scenario.loads(text).phases[0].every == SecondsRange(seconds, seconds)
