"""Mutation score of loadtest/traffic and of the journal, by bench/mutate.py's mutants.

python bench/mutate_traffic.py MODULE [--sample 400] [--seed 1] [--lines 12,40]

The engine is a process of its own: a mutant is written into a copy of the package that the child and whatever it starts
import. Each runs in a session of its own, which is killed with all that the mutant left behind.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import mutate

WAIT_S = 60  # of the child, for each file of tests: a mutant that waits for what never comes takes no CPU time
_ENGINE = ("test_engine", "test_engine_embedded")
TESTS = {
    "sse": ("test_sse",),
    "decode": ("test_client_decode",),
    "usual": ("test_client_decode",),
    "admin": ("test_admin",),
    "words": ("test_client_decode", "test_admin"),
    "capture": ("test_client_capture", "test_client"),
    "client": ("test_client", "test_client_limits", "test_hostile"),
    "ask": ("test_client", "test_client_decode", "test_engine"),
    "streams": ("test_streams", "test_engine_streams"),
    "director": ("test_engine_streams", *_ENGINE),
    "pulse": ("test_pulse", "test_engine_streams", "test_engine"),
    "engine": _ENGINE,
    "ipc": ("test_ipc", "test_ipc_handle", *_ENGINE),
    "process": ("test_engine",),
    "priority": ("test_priority",),
    "fleet": ("test_fleet",),
    "live": ("test_live",),
    "scrape": ("test_scrape",),
    "journal": ("test_history",),
}


class Copy:
    """A tree like this one, whose package can be changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.copytree(mutate.ROOT / "loadtest", root / "loadtest", ignore=shutil.ignore_patterns("__pycache__"))

    def write(self, module: str, tree: ast.Module | None) -> None:
        """Put a module's mutant in its place, or the module itself."""
        source = mutate.PACKAGE / f"{module}.py"
        path = self.root / source.relative_to(mutate.ROOT)
        path.write_text(source.read_text() if tree is None else ast.unparse(tree))
        for stale in path.parent.glob(f"__pycache__/{module}.*.pyc"):  # equal in size and second is no proof
            stale.unlink()


def outcome(copy: Copy, mutant: mutate.Mutant | None, module: str) -> str:
    """Run the tests on a mutant: "survived", "killed", or "out of time"."""
    copy.write(module, mutant.tree if mutant else None)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.alarm(WAIT_S * len(TESTS[module]))
        os.environ["PYTHONPATH"] = str(copy.root)
        sys.path.insert(0, str(copy.root))
        mutate.child(mutant, module, copy.root)
    status = os.waitpid(pid, 0)[1]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    slow = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGXCPU, signal.SIGKILL)
    return "out of time" if slow else "killed" if status else "survived"


def play(copy: Copy, chosen: list[mutate.Mutant], module: str, everything: int) -> float:
    """Every chosen mutant; the score."""
    found: list[str] = []
    for n, mutant in enumerate(chosen, 1):
        found.append(outcome(copy, mutant, module))
        if found[-1] != "killed":
            print(f"{found[-1]}: {module}.py:{mutant.line}: {mutant.what}", flush=True)
        if n % 20 == 0:
            print(f"{n} of {len(chosen)}: {found.count('survived')} survived", flush=True)
    score = 1 - found.count("survived") / len(chosen)
    words = f"{len(chosen) - found.count('survived')} of {len(chosen)} killed ({everything} in all)"
    print(f"{words}, {found.count('out of time')} of them by time: {100 * score:.1f} %")
    return score


def main() -> int:
    """Sample, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", choices=TESTS)
    parser.add_argument("--sample", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lines", default="", help="only mutants of these lines, as in 12,40")
    args = parser.parse_args()
    module = args.module
    mutate.PACKAGE = mutate.ROOT / "loadtest" / ("" if module == "journal" else "traffic")
    mutate.COMMON, mutate.FIRST = TESTS[module], {}
    sys.dont_write_bytecode = False  # compiling the rewritten tests is most of a killed mutant's time
    for name in ("pytest", "hypothesis", "numpy", "aiohttp", "orjson"):  # once for all children
        importlib.import_module(name)
    everything = mutate.mutants(module)
    lines = {int(word) for word in args.lines.split(",") if word}
    places = [m for m in everything if not lines or m.line in lines]
    chosen = random.Random(args.seed).sample(places, min(args.sample, len(places)))
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        if (plain := outcome(copy, None, module)) != "survived":
            print(f"the tests fail without any mutant: {plain}")
            return 1
        score = play(copy, chosen, module, len(everything))
        if outcome(copy, None, module) != "survived":
            print("the tests fail without any mutant by now: nothing was shown")
            return 1
    return 0 if score >= 0.9 else 1


if __name__ == "__main__":
    sys.exit(main())
