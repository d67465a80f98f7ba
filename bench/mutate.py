"""Mutation score of loadtest/analysis: small lies in its source, and whether the tests notice.

    python bench/mutate.py [--sample 400] [--seed 1] [--only MODULE,...] [--deciding] [--list]

Each mutant changes one thing: a comparison, an arithmetic or boolean operator, a constant (units too), an outcome or a
status, min against max, left against right. A forked process imports the changed module and runs the tests that cover
it, stopping at the first failure; a mutant that runs out of time counts as killed. Survivors are printed with their
line. Messages, docstrings and annotations are left alone.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.util
import os
import random
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "loadtest" / "analysis"
CPU_S = 40  # of the child: a busy machine is no reason to call a mutant killed
SWAPPED = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,), ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,), ast.Mod: (ast.Mult,), ast.Pow: (ast.Mult,), ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,), ast.And: (ast.Or,), ast.Or: (ast.And,),
}  # fmt: skip
NAMES = {
    "min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum", "maximum": "minimum", "fmax": "fmin",
    "OK": "FAIL", "FAIL": "INFO", "INFO": "OK", "argmin": "argmax", "argmax": "argmin",
}  # fmt: skip
WORDS = {
    "PASS": "UNKNOWN", "FAIL": "PASS", "UNKNOWN": "PASS", "ok": "fail", "fail": "ok", "info": "ok", "left": "right",
    "right": "left", "real": "sham", "sham": "real", "bad": "real", "aa": "sham",
}  # fmt: skip
DECIDING = {
    *(op.__name__ for op in SWAPPED if issubclass(op, ast.cmpop)), *(repr(word) for word in WORDS),
    *(repr(unit) for unit in (1e3, 1e6, 1e9)), "OK", "FAIL", "INFO",
}  # fmt: skip
COMMON = (
    "test_guarantees",
    "test_analysis_attribution",
    "test_verdict",
    "test_analysis_latency",
    "test_analysis_case",
    "test_gates",
    "test_ledger",
    "test_noise",
    "test_timeline",
    "test_analysis_document",
    "test_margins",
    "test_pinned",
    "test_guarantees_oracle",
)
FIRST = {  # the tests that are closest to a module run first
    "stats": ("test_stats",),
    "margins": ("test_margins",),
    "trust": ("test_margins",),
    "attribution": ("test_analysis_attribution",),
    "latency": ("test_analysis_latency",),
    "gaps": ("test_analysis_latency",),
    "ledger": ("test_ledger", "test_analysis_latency"),
    "isolated": ("test_analysis_latency",),
    "timeline": ("test_timeline",),
    "case": ("test_analysis_case",),
    "client": ("test_analysis_case",),
    "export": ("test_analysis_document", "test_verdict"),
    "gates": ("test_gates", "test_verdict"),
    "noise": ("test_noise", "test_analysis_attribution"),
    "verdict": ("test_verdict",),
    "effects": ("test_verdict",),
}


@dataclass(frozen=True)
class Mutant:
    """One change of a module."""

    module: str
    number: int
    line: int
    what: str

    @property
    def decides(self) -> bool:
        """Whether it is a comparison, an outcome or a unit."""
        return self.what.partition(" -> ")[0] in DECIDING

    @property
    def tree(self) -> ast.Module:
        """The changed module."""
        tree = ast.parse((PACKAGE / f"{self.module}.py").read_text())
        node, change, _ = next(p for n, p in enumerate(points(tree)) if n == self.number)
        change(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd):
            _drop(tree, node)
        return ast.fix_missing_locations(tree)


def points(tree: ast.Module) -> Iterator[tuple[ast.AST, Callable[[ast.AST], None], str]]:
    """(node, how to change its copy, in words) of every place that can be mutated."""
    for node in _code(tree):
        if isinstance(node, ast.Compare):
            for i, op in enumerate(node.ops):
                for new in SWAPPED.get(type(op), ()):
                    yield node, _set_op(i, new), f"{type(op).__name__} -> {new.__name__}"
        elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign):
            for new in SWAPPED.get(type(node.op), ()):
                yield node, _set_attr("op", new()), f"{type(node.op).__name__} -> {new.__name__}"
        elif isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
            yield node, _set_attr("op", ast.UAdd()), f"{type(node.op).__name__} dropped"
        elif isinstance(node, ast.Constant):
            for value in _others(node.value):
                yield node, _set_attr("value", value), f"{node.value!r} -> {value!r}"
        elif isinstance(node, ast.Name) and node.id in NAMES and isinstance(node.ctx, ast.Load):
            yield node, _set_attr("id", NAMES[node.id]), f"{node.id} -> {NAMES[node.id]}"
        elif isinstance(node, ast.Attribute) and node.attr in NAMES:
            yield node, _set_attr("attr", NAMES[node.attr]), f".{node.attr} -> .{NAMES[node.attr]}"


def _others(value: object) -> tuple[object, ...]:
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return (value + 1,)
    if isinstance(value, float):
        return (value * 1000 if value >= 1000 else value * 2 or 1.0,)
    return (WORDS[value],) if isinstance(value, str) and value in WORDS else ()


def _set_op(i: int, new: type[ast.AST]) -> Callable[[ast.AST], None]:
    def change(node: ast.AST) -> None:
        node.ops[i] = new()  # type: ignore[attr-defined]

    return change


def _set_attr(name: str, value: object) -> Callable[[ast.AST], None]:
    return lambda node: setattr(node, name, value)


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that compute something a verdict depends on: no docstrings, messages, annotations, imports, decorators."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.JoinedStr | ast.Import | ast.ImportFrom) or not isinstance(child, ast.AST):
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue
            if isinstance(child, ast.AnnAssign) and child.value is None:
                continue
            yield child
            yield from _code(child)


def mutants(module: str) -> list[Mutant]:
    """Every mutant of a module of loadtest/analysis."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    return [Mutant(module, n, getattr(node, "lineno", 0), what) for n, (node, _, what) in enumerate(points(tree))]


def _drop(tree: ast.Module, gone: ast.UnaryOp) -> None:
    """Put the operand in the operator's place."""

    class Dropper(ast.NodeTransformer):
        def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
            self.generic_visit(node)
            return node.operand if node is gone else node

    Dropper().visit(tree)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the mutant in place of the module."""

    def __init__(self, mutant: Mutant) -> None:
        self.name, self.tree = f"loadtest.analysis.{mutant.module}", mutant.tree

    def find_spec(self, name: str, path: object, target: object = None) -> object:
        return importlib.util.spec_from_loader(name, self) if name == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.tree, self.name, "exec"), module.__dict__)


def tests_of(module: str) -> tuple[list[str], list[str]]:
    """Test files: the closest, and the others. To collect all takes longer than most mutants live."""
    first = FIRST.get(module, COMMON[:1])
    rest = [n for n in COMMON if n not in first]
    return [str(ROOT / "tests" / f"{n}.py") for n in first], [str(ROOT / "tests" / f"{n}.py") for n in rest]


def killed(mutant: Mutant | None, module: str) -> bool:
    """Run the tests on a mutant in a child; does any fail, or time out?"""
    pid = os.fork()
    if pid == 0:
        if mutant is not None:
            sys.meta_path.insert(0, Finder(mutant))
        child(mutant, module, ROOT)
    return os.waitpid(pid, 0)[1] != 0


def child(mutant: Mutant | None, module: str, folder: Path) -> None:
    """Run the tests in `folder` and exit; quiet about a mutant's."""
    import pytest

    null = os.open(os.devnull, os.O_WRONLY)
    if mutant is not None:
        os.dup2(null, 1)
        os.dup2(null, 2)
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    code = 1
    quick = ["-x", "-q", "-p", "no:cacheprovider", "--timeout=0", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    try:
        _no_shrinking()
        code = int(any(pytest.main([*quick, *files]) for files in tests_of(module) if files))
    finally:
        sys.stdout.flush()
        os._exit(code)


def _no_shrinking() -> None:
    """A failure is all that is asked for, not the smallest one."""
    from hypothesis import Phase, settings

    settings.register_profile("mutants", phases=(Phase.explicit, Phase.generate), database=None)
    settings.load_profile("mutants")


def preload() -> None:
    """Import once what every child needs, and nothing of loadtest.analysis."""
    sys.dont_write_bytecode = False  # rewritten tests are kept: compiling them is most of a killed mutant's time
    os.environ.setdefault("ORACLE_HISTORIES", "150")
    os.environ.setdefault("COVERAGE_REPS", "40")
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]  # this tree's package, wherever another one is installed from
    import hypothesis.strategies  # noqa: F401
    import minihistory  # noqa: F401
    import numpy  # noqa: F401
    import pytest  # noqa: F401

    import loadtest.history
    import loadtest.traffic.decode  # noqa: F401

    assert not any(name.startswith("loadtest.analysis.") for name in sys.modules)


def main() -> int:
    """Sample, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="modules, by comma")
    parser.add_argument("--deciding", action="store_true", help="comparisons, outcomes and units alone")
    parser.add_argument("--list", action="store_true", help="count the mutants of each module")
    args = parser.parse_args()
    every = sorted(p.stem for p in PACKAGE.glob("*.py") if p.stem != "__init__")
    modules = args.only.split(",") if args.only else every
    everything = [m for module in modules for m in mutants(module) if m.decides or not args.deciding]
    if args.list:
        for module in modules:
            print(f"{module}: {sum(m.module == module for m in everything)}")
        return 0
    chosen = random.Random(args.seed).sample(everything, min(args.sample, len(everything)))
    preload()
    if killed(None, modules[0]):
        print("the tests fail without any mutant")
        return 1
    survivors = []
    for n, mutant in enumerate(chosen, 1):
        if not killed(mutant, mutant.module):
            survivors.append(mutant)
            print(f"survived: {mutant.module}.py:{mutant.line}: {mutant.what}", flush=True)
        if n % 20 == 0:
            print(f"{n} of {len(chosen)}: {len(survivors)} survived", flush=True)
    if killed(None, modules[0]):
        print("the tests fail without any mutant by now: nothing was shown")
        return 1
    score = 1 - len(survivors) / len(chosen)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed ({len(everything)} in all): {100 * score:.1f} %")
    return 0 if score >= 0.9 else 1


if __name__ == "__main__":
    sys.exit(main())
