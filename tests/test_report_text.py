"""report.md, junit.xml and the terminal's table: complete, within their limits, deaf to what a server says."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import report_maker as maker

from loadtest.report import junit, markdown, terminal, text

HOSTILE = "<script>alert(1)</script>\x1b[31mred\x1b[0m\u202egnp.exe @team `x` *y* [z](http://evil) |\r\n\x07\u2028"


@pytest.fixture(scope="module")
def verdict(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    play = maker.Play(adapters=(HOSTILE, "b" + HOSTILE), words=HOSTILE, streams=120, swaps=6, quiet_s=2.0)
    return maker.judge(maker.write(tmp_path_factory.mktemp("run"), play))


def poisoned(value: Any) -> Any:
    """The verdict with every sentence in it replaced by a server's."""
    if isinstance(value, dict):
        return {k: (HOSTILE * 20 if k in ("because", "text") else poisoned(v)) for k, v in value.items()}
    return [poisoned(v) for v in value] if isinstance(value, list) else value


def test_markdown_carries_no_markup_of_a_server(verdict: dict[str, Any]) -> None:
    for document in (verdict, poisoned(verdict)):
        report = markdown.render(document, HOSTILE, HOSTILE)
        quoted = [line for line in report.split("\n") if line.startswith("    ")]  # the server's last words, as code
        plain = "\n".join(line for line in report.split("\n") if line not in quoted)
        assert "<script" not in plain
        assert "@team" not in plain
        assert re.search(r"(?<!\\)\[[^\]]*\]\(", plain) is None
        assert all(c.isprintable() or c == "\n" for c in report)
        rows = [line for line in report.split("\n") if line.startswith("|")]
        assert {line.replace("\\|", "").count("|") for line in rows} <= {3, 6, 7}  # tables of 2, 5 and 6 columns


def test_markdown_fits_a_comment_and_says_what_it_leaves_out(verdict: dict[str, Any]) -> None:
    assert len(markdown.render(verdict, "Hotfix")) < 20_000
    long = markdown.render(poisoned(verdict), "Hotfix")
    assert len(long) < markdown.LIMIT
    cut = markdown.fit(["# head", *["x" * 9_000] * 10])
    assert len(cut) < markdown.LIMIT
    assert cut.startswith("# head")
    assert cut.endswith("it is in report.html and verdict.json.\n")
    assert markdown.fit(["a", "b"]) == "a\n\nb\n"


def test_junit_has_a_case_for_everything_that_can_fail_a_build(verdict: dict[str, Any]) -> None:
    for document in (verdict, poisoned(verdict)):
        suite = ET.fromstring(junit.render(document, HOSTILE))
        cases = {str(c.get("name")): c for c in suite.findall("testcase")}
        assert {f"guarantee.{n}" for n in document["guarantees"]} <= set(cases)
        assert {f"gate.{g['name']}" for g in document["gates"]} <= set(cases)
        assert {f"budget.{n}" for n in document["budgets"]} <= set(cases)
        assert cases["verdict"].find("failure") is not None
        assert suite.get("failures") == str(len(suite.findall("testcase/failure")))


def test_an_unknown_is_skipped_with_the_gate_that_keeps_it_from_a_pass(tmp_path: Path) -> None:
    play = maker.Play(torn=False, fail_every=10**9, hangover=1.0, swaps=3)
    document = maker.judge(maker.write(tmp_path, play)) | {"budgets": {}, "status": "UNKNOWN"}
    suite = ET.fromstring(junit.render(document, "Hotfix"))
    skipped = {str(c.get("name")): c.find("skipped") for c in suite.findall("testcase")}
    reasons = {name: str(s.get("message")) for name, s in skipped.items() if s is not None}
    assert "2 real swaps were acked ok" in reasons["gate.exposed_swaps"]
    assert "2 real swaps were acked ok" in reasons["verdict"]
    assert suite.find("testcase/failure") is None


def test_a_terminal_gets_no_control_character_of_a_server(verdict: dict[str, Any]) -> None:
    for document in (verdict, poisoned(verdict)):
        shown = terminal.render(document, HOSTILE, "results/x", log=HOSTILE)
        assert all(c.isprintable() or c == "\n" for c in shown), sorted({c for c in shown if not c.isprintable()})
        coloured = terminal.render(document, HOSTILE, "results/x", log=HOSTILE, colour=True)
        assert "\x1b[31mred" not in coloured
        assert "\x07" not in coloured
        assert "\u202e" not in coloured


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("inf", "∞"),
        ("-inf", "−∞"),
        (float("-inf"), "−∞"),
        (None, "–"),
        (float("nan"), "–"),
        (1234.5, "1,234"),
        (0.0123, "0.0123"),
    ],
)
def test_numbers_in_words(value: Any, told: str) -> None:
    assert text.number(value) == told
