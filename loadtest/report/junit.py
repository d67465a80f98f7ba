"""junit.xml: a case for the verdict and for each guarantee, budget and gate; UNKNOWN is `skipped` with its reason."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from loadtest.report import text
from loadtest.report.text import Doc


def render(verdict: Doc, title: str) -> str:
    """A JUnit document of one test suite."""
    suite = ET.Element("testsuite", name=text.clean(title))
    _case(suite, "verdict", str(verdict["status"]), text.headline(verdict), [w for _, w in text.witnesses(verdict, 5)])
    for name, g in verdict.get("guarantees", {}).items():
        because = text.clean(g.get("because", ""))
        status = g["status"] if g.get("required") else _softened(g["status"])
        _case(suite, f"guarantee.{name}", status, because, [w for n, w in text.witnesses(verdict, 20) if n == name])
    for name, b in (verdict.get("budgets") or {}).items():
        _case(suite, f"budget.{name}", b["status"], text.clean(b.get("because", "")), [])
    for g in verdict.get("gates", []):
        _case(suite, f"gate.{g['name']}", "PASS" if g["status"] == "ok" else "UNKNOWN", text.clean(g["because"]), [])
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(sum(c.find("failure") is not None for c in cases)))
    suite.set("errors", "0")
    suite.set("skipped", str(sum(c.find("skipped") is not None for c in cases)))
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _softened(status: str) -> str:
    """A guarantee nobody required cannot fail a build."""
    return "UNKNOWN" if status == "FAIL" else status


def _case(suite: ET.Element, name: str, status: str, because: str, evidence: list[str]) -> None:
    case = ET.SubElement(suite, "testcase", classname="loadtest", name=name)
    if status == "FAIL":
        ET.SubElement(case, "failure", message=because).text = "\n".join(evidence) or because
    elif status == "UNKNOWN":
        ET.SubElement(case, "skipped", message=because)
