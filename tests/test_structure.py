"""The habits of the project, checked over its files: sizes, import directions, declared dependencies."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "loadtest").rglob("*.py"))
FUNCTION_CAP, MODULE_CAP, PARAMETER_CAP = 60, 400, 6

# A module may import modules of a lower or equal rank only. The longest matching prefix counts.
RANKS = {
    "loadtest": 0,
    "loadtest.errors": 0,
    "loadtest.records": 0,
    "loadtest.traffic.sse": 0,
    "loadtest.guardian": 1,
    "loadtest.journal": 1,
    "loadtest.columns": 0,
    "loadtest.lines": 1,
    "loadtest.calibration": 0,
    "loadtest.contradictions": 1,
    "loadtest.scores": 1,
    "loadtest.history": 2,
    "loadtest.scenario": 3,
    "loadtest.scenario_fields": 3,
    "loadtest.scenario_yaml": 3,
    "loadtest.scenario_units": 3,
    "loadtest.scenario_rules": 3,
    "loadtest.plan": 4,
    "loadtest.server": 5,
    "loadtest.adapters": 5,
    "loadtest.traffic": 6,
    "loadtest.chaos": 7,
    "loadtest.traffic.engine": 8,
    "loadtest.analysis": 9,
    "loadtest.report": 10,
    "loadtest.probe": 11,
    "loadtest.target": 11,
    "loadtest.managed": 11,
    "loadtest.undo": 11,
    "loadtest.prepare": 12,
    "loadtest.asking": 12,
    "loadtest.scoring": 12,
    "loadtest.scorer": 12,
    "loadtest.harness": 13,
    "loadtest.tools": 14,
    "loadtest.api": 15,
    "loadtest.swarm": 15,
    "loadtest.cli": 16,
}
# What a package may see at most, by its purpose.
ALLOWED = {
    "loadtest.errors": set[str](),
    "loadtest.records": set[str](),
    "loadtest.traffic.sse": set[str](),
    "loadtest.analysis": {"loadtest.analysis", "loadtest.records", "loadtest.history", "loadtest.scores"},
    "loadtest.report": {"loadtest.report", "loadtest.records", "loadtest.history", "loadtest.scores"},
    "loadtest.server": {"loadtest.server", "loadtest.errors"},
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Full names of the modules that a file imports at run time, inside functions too."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{a.name}" for a in node.names} | {str(node.module)}
    return found


def longest(name: str, table: dict) -> str | None:
    parts = name.split(".")
    return next((p for i in range(len(parts), 0, -1) if (p := ".".join(parts[:i])) in table), None)


KNOWN = {name_of(p) for p in MODULES}


def ours(path: Path) -> set[str]:
    packages = {name_of(p) for p in MODULES if p.name == "__init__.py"}
    return {i for i in imports_of(path) if i in KNOWN and i not in packages}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_downwards(path: Path) -> None:
    name = name_of(path)
    mine = longest(name, RANKS)
    assert mine is not None
    for imported in ours(path):
        theirs = longest(imported, RANKS)
        assert theirs not in (None, "loadtest"), f"{imported} has no rank"
        same_family = mine == theirs or name.rpartition(".")[0] == imported.rpartition(".")[0] != "loadtest"
        assert RANKS[theirs] < RANKS[mine] or same_family or RANKS[theirs] == RANKS[mine], f"{name} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_packages_see_only_what_they_may(path: Path) -> None:
    scope = longest(name_of(path), ALLOWED)
    if scope is not None:
        assert {i for i in ours(path) if longest(i, dict.fromkeys(ALLOWED[scope])) is None} == set()


def test_there_is_no_import_cycle() -> None:
    graph = {name_of(p): ours(p) for p in MODULES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_locust_and_gevent_stay_in_the_swarm(path: Path) -> None:
    if not name_of(path).startswith("loadtest.swarm"):
        assert not {i for i in imports_of(path) if i.split(".")[0] in ("locust", "gevent")}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_and_functions_fit_a_screen(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MODULE_CAP
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= FUNCTION_CAP, f"{node.name} has {length} lines"
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            mine = [n for n in names if n not in ("self", "cls")]
            assert len(mine) <= PARAMETER_CAP, f"{node.name} has {len(mine)} parameters"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_public_names_say_what_they_are(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or path.name == "__init__.py" or name_of(path) == "loadtest"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name_of(path)}.{node.name} has no docstring"


def test_everything_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {d.split(">")[0].split("=")[0].split(";")[0].strip().lower() for d in project["dependencies"]}
    comes_as = {"yaml": "pyyaml", "gevent": "locust", "flask": "locust", "jinja2": "jinja2"}
    used = {i.split(".")[0] for p in MODULES for i in imports_of(p)}
    outside = used - set(sys.stdlib_module_names) - {"loadtest"}
    assert {comes_as.get(m, m).lower() for m in outside} <= declared


def test_importing_the_package_or_its_command_line_stays_cheap() -> None:
    heavy = "('numpy', 'aiohttp', 'locust', 'pydantic')"
    code = f"import sys, loadtest, loadtest.cli; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
