"""docs/ against the code: scenario keys, links, names, and the code in docs/extend.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import minihistory
import pytest
import yaml

from loadtest import errors, scenario
from loadtest.analysis import case as cases
from loadtest.chaos import actions
from loadtest.scenario_fields import Arm, Attribution, How, Level

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [DOCS / f"{name}.md" for name in ("README", "quickstart", "scenario", "report", "extend")]
SCENARIO = (DOCS / "scenario.md").read_text()
EXTEND = (DOCS / "extend.md").read_text()
PREFIX = {"Top level": "", "target": "target.", "adapters": "adapters.", "traffic": "traffic.", "phases": "phases[]."}


def schema_keys(node: dict[str, Any], path: str, schema: dict[str, Any]) -> Iterator[str]:
    """Dotted keys of everything a scenario may say: `a.b`, `list[].c`, `adapters.<name>.d`."""
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    for branch in [*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())]:
        yield from schema_keys(branch, path, schema)
    if "items" in node:
        yield from schema_keys(node["items"], f"{path}[]", schema)
    for key, value in node.get("properties", {}).items():
        here = f"{path}.{key}" if path else key
        yield here
        yield from schema_keys(value, here, schema)
    if isinstance(node.get("additionalProperties"), dict):
        yield from schema_keys(node["additionalProperties"], f"{path}.<name>", schema)


def told_keys() -> list[str]:
    out = []
    for section in re.split(r"^## ", SCENARIO, flags=re.M)[1:]:
        title, _, body = section.partition("\n")
        prefix = PREFIX.get(title, f"{title}.")
        out += [prefix + key for key in re.findall(r"^\| `([^`]+)` \|", body, flags=re.M)]
    return out


def test_every_key_of_a_scenario_is_explained_once_and_no_other() -> None:
    schema = scenario.json_schema()
    known, told = set(schema_keys(schema, "", schema)), told_keys()
    free = {k for k in known if k.startswith(("target.plant[]", "target.managed.env."))}  # anything goes below these
    assert sorted(set(told)) == sorted(known - free)
    assert len(told) == len(set(told))


@pytest.mark.parametrize("words", [Level, Arm, How, Attribution], ids=["level", "arm", "how", "attribution"])
def test_every_word_of_a_closed_vocabulary_is_on_the_page(words: Any) -> None:
    assert [w for w in get_args(words) if f"`{w}`" not in SCENARIO] == []


def test_the_ways_to_be_bad_agree() -> None:
    assert set(actions.BAD) == set(get_args(How))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    found = [t for t in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()) if "://" not in t]
    assert [t for t in found if not (page.parent / t).exists()] == []


def test_the_index_leads_to_the_pages_and_the_readme_to_the_index() -> None:
    index = (DOCS / "README.md").read_text()
    assert [p.name for p in PAGES if f"]({p.name})" not in index and p.name != "README.md"] == []
    assert "(docs/README.md)" in (ROOT / "README.md").read_text()


def test_the_quickstart_names_what_there_is() -> None:
    text = (DOCS / "quickstart.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    assert [t for t in re.findall(r"`?make ([a-z][\w-]*)", text) if f"\n{t}:" not in makefile] == []
    codes = {
        "PASS": errors.EXIT_PASS, "FAIL": errors.EXIT_FAIL, "UNKNOWN": errors.EXIT_UNKNOWN,
        "usage": errors.EXIT_USAGE, "target": errors.EXIT_UNAVAILABLE, "internal": errors.EXIT_INTERNAL,
    }  # fmt: skip
    assert [w for w, code in codes.items() if f"{code} {w}" not in " ".join(text.split())] == []


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.yml")), ids=lambda p: p.name)
def test_yaml_files_are_yaml(path: Path) -> None:
    assert yaml.safe_load(path.read_text())


def block(heading: str) -> str:
    """The first Python block under a heading of docs/extend.md."""
    found = re.search(rf"^## {heading}.*?```python\n(.*?)```", EXTEND, flags=re.S | re.M)
    assert found
    return found[1]


def test_the_action_that_the_page_shows_works(tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "adapters" / "new"
    source.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (source / name).write_text("{}")
    names = {"fresh": actions.fresh, "Path": Path, "BAD": dict(actions.BAD)}
    exec(block("An action"), names)
    names["BAD"]["no-config"](source, path, 64)  # type: ignore[index]
    assert [f.name for f in path.iterdir()] == ["adapter_model.safetensors"]
    assert (source / "adapter_config.json").exists()


def test_the_guarantee_that_the_page_shows_works() -> None:
    names: dict[str, Any] = dict(vars(cases))
    exec(block("A guarantee"), names)
    text = "load a v0 1 2 ok\nstream a 10: v0@20 v0@30\nstream a 40: v0@2000 v0@2010\n"
    finding = names["punctual"](cases.open_case(minihistory.history(text)))
    assert (finding.violations, finding.exposed) == (1, 2)
    assert [w.text for w in finding.witnesses] == ["stream e0-1 waited too long"]
