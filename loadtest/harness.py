"""One run from start to end: scenario read, target up, versions forged; afterwards judged, rendered, closed.

The traffic in between belongs to an engine process (traffic/engine.py), driven by Locust (swarm/) or by `loadtest
hotfix`. Everything a report says is recomputed from the run's folder by `judge`, so it can be said again at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.errors import EXIT_UNKNOWN, UsageError

if TYPE_CHECKING:
    from loadtest.analysis.verdict import Require
    from loadtest.scenario import Scenario
    from loadtest.target import Target

RESULTS_IN = "results in "  # begins the line of progress that names a run's folder
REPORTS = ("report.html", "report.md", "junit.xml")
DEFAULT_SCENARIO = Path("scenarios/quickstart.yaml")


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may say beside the scenario; None leaves it to the scenario."""

    scenario: Path | None = None
    target: str | None = None
    seed: int | None = None
    results: Path | None = None
    users: int | None = None
    run_time_s: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A judged run."""

    exit_code: int
    status: str  # PASS | FAIL | UNKNOWN
    text: str  # the verdict as a table, for a terminal
    headline: str = ""  # the verdict in one sentence
    folder: Path = Path()


def say(line: str) -> None:
    """A line of progress, on standard error."""
    sys.stderr.write(f"loadtest: {line}\n")
    sys.stderr.flush()


def tool_version() -> str:
    """Version of this package."""
    from importlib.metadata import version

    return version("loadtest")


@dataclass
class Session:
    """A run in progress. `open` raises LoadtestError subclasses and leaves nothing running when it does."""

    scenario: Scenario
    folder: Path
    seed: int
    role: str
    target: Target
    versions: Mapping[str, Sequence[Any]]
    run_time_s: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, options: Options, role: str = "local", progress: Callable[[str], None] = say) -> Session:
        """Read the scenario, make the run's folder, start the target, forge the versions."""
        from loadtest import plan, prepare, undo
        from loadtest.target import open_target

        scenario = _scenario(options)
        seed = options.seed if options.seed is not None else scenario.seed
        seed = random.SystemRandom().randrange(1 << 31) if seed is None else seed
        results = options.results or Path("results")
        folder = _run_folder(results, options.scenario or DEFAULT_SCENARIO, seed)
        progress(f"{RESULTS_IN}{folder}")
        try:
            target = open_target(scenario.target, folder, progress)
        except BaseException:
            with contextlib.suppress(OSError):  # a server's log is kept
                folder.rmdir()
            raise
        try:
            phases = plan.phases(scenario, seed)
            for url in target.urls:
                undo.play(results, url, target.headers, progress)
            versions = prepare.versions(scenario, phases, target, folder / "versions", seed)
            session = cls(scenario, folder, seed, role, target, versions, options.run_time_s)
            session._write_scenario()
            session._write_meta()
        except BaseException:
            target.stop()
            raise
        _point_latest(results, folder)
        return session

    def run_info(self) -> dict[str, Any]:
        """What a worker needs to start an engine of its own; JSON-able. Holds the target's headers: do not log it."""
        traffic = self.scenario.traffic
        return {
            "folder": str(self.folder.resolve()),
            "url": self.target.url,
            "replicas": list(self.target.replicas),
            "spread": self.scenario.target.spread,
            "seed": self.seed,
            "scenario": self._text(),
            "vocab": self.target.vocab,
            "model_base": self.target.model,
            "headers": self.target.headers,
            "markers": [[name, v.version, list(v.markers)] for name, found in self.versions.items() for v in found],
            "limits": {"stream_deadline_s": traffic.stream_deadline, "stall_s": traffic.stall, "connect_s": 10.0},
        }

    def engine_config(self, engine: str = "e0", role: str | None = None) -> dict[str, Any]:
        """The `configure` message of this process's own engine."""
        return engine_config(self.run_info(), engine, role or self.role)

    def script(self) -> dict[str, Any]:
        """The chaos script, for the engine's `setup` message."""
        from loadtest import plan
        from loadtest.chaos.conductor import Script, VersionFile

        spec, swaps = self.scenario.target, [p for p in self.scenario.phases if p.arm != "aa"]
        script = Script(
            url=self.target.url,
            adapters={
                name: [VersionFile(v.version, str(v.path), v.sha, tuple(v.markers)) for v in found]
                for name, found in self.versions.items()
            },
            phases=plan.phases(self.scenario, self.seed),
            root_local=str(self.target.root_local),
            root_server=self.target.root_server,
            mode=swaps[0].mode if swaps else "inplace",
            timeout_s=swaps[0].timeout if swaps else 30.0,
            max_rank=spec.max_lora_rank,
            run_time_s=self.run_time_s,
            cycle=True,
            replicas=self.target.replicas,
        )
        return script.to_json()

    def judge(self, reason: str) -> Outcome:
        """Judge what was recorded, write the reports; after all engines have closed their journals."""
        self._score(reason)
        self.meta["ended"] = reason
        guarded = self.target.guarded
        if guarded is not None and (reason == "target_died" or not guarded.alive()):
            self.meta["server_log_tail"] = self._last_words(guarded.last_words())
        self._write_meta()
        outcome = judge(self.folder)
        summarize(self.folder / "report.md")
        return outcome

    def _score(self, reason: str) -> None:
        from loadtest import scorer

        marked = all(v.markers for found in self.versions.values() for v in found)
        if scorer.needed(self.scenario, marked, reason) and not self.server_died():
            scorer.score(self.folder, self.target, self.scenario.attribution, say)

    def server_died(self) -> str:
        """Why the server that this run started is no more; "" while it lives, or when it is not ours."""
        from loadtest.errors import TargetDied

        try:
            self.target.check_alive()
        except TargetDied as e:
            return str(e)
        return ""

    def _last_words(self, log: str) -> str:
        from loadtest.traffic.words import Redactor

        redact = Redactor(self.target.url, self.target.headers)
        return "\n".join(redact(line.expandtabs(4), 400) for line in log.split("\n"))

    def close(self) -> None:
        """End the target if it is ours; idempotent."""
        self.target.stop()

    def _text(self) -> str:
        from loadtest import scenario as module

        public = self.scenario.target.model_copy(
            update={"url": self.target.url if self.target.guarded is None else None}
        )
        if self.target.guarded is not None:
            public = self.scenario.target
        return module.to_yaml(self.scenario.model_copy(update={"target": public, "seed": self.seed}))

    def _write_scenario(self) -> None:
        write(self.folder / "scenario.yaml", self._text())

    def _write_meta(self) -> None:
        from loadtest.undo import boot_id

        self.meta = {
            "tool": tool_version(),
            "run": self.folder.name,
            "title": self.scenario.title,
            "seed": self.seed,
            "role": self.role,
            "url": self.target.url,
            "model": self.target.model,
            "target": self.target.about,
            "python": platform.python_version(),
            "machine": {"system": platform.platform(), "cores": os.cpu_count()},
            "clock": {"name": "CLOCK_MONOTONIC", "boot_id": boot_id()},
            "wall_time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **self.meta,
        }
        write(self.folder / "meta.json", json.dumps(self.meta, indent=2) + "\n")


def engine_config(run_info: Mapping[str, Any], engine: str, role: str) -> dict[str, Any]:
    """The `configure` message of an engine, from a session's `run_info`."""
    keys = ("folder", "url", "replicas", "spread", "seed", "model_base", "headers", "limits", "markers")
    own = {"op": "configure", "engine": engine, "role": role, "scrape": role != "worker"}
    return {**own, **{k: run_info[k] for k in keys}}


def _scenario(options: Options) -> Scenario:
    from loadtest import scenario as module

    scenario = module.load(options.scenario or DEFAULT_SCENARIO)
    if options.target:
        scenario = module.with_target(scenario, options.target)
    if options.users is not None:
        scenario = module.with_users(scenario, options.users)
    return scenario


def _run_folder(results: Path, scenario: Path, seed: int) -> Path:
    """results/<date>-<time>-<scenario>-<seed>, made."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{scenario.stem}-{seed}"
    for attempt in range(100):
        folder = results / (stem if not attempt else f"{stem}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as e:
            raise UsageError(f"cannot write to {results} ({e.strerror})", remedy="choose another --results") from e
        return folder
    raise UsageError(f"{results / stem} and 99 more exist", remedy="remove some")


def _point_latest(results: Path, folder: Path) -> None:
    """results/latest: the newest run that could start."""
    link = results / f".latest-{os.getpid()}"
    with contextlib.suppress(OSError):  # a convenience: some filesystems have no symbolic links
        link.unlink(missing_ok=True)
        link.symlink_to(folder.name)
        link.replace(results / "latest")


def write(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a half."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}-", delete=False) as f:
        f.write(text)
    os.chmod(f.name, 0o644)
    Path(f.name).replace(path)


def require_of(scenario: Scenario) -> Require:
    """The scenario's `require` as the analysis takes it (milliseconds, plain numbers)."""
    from loadtest.analysis.verdict import Require

    r = scenario.require
    return Require(
        level=r.level,
        min_swaps=r.min_swaps,
        swap_ack_p99_ms=None if r.swap_ack_p99 is None else 1000 * r.swap_ack_p99,
        hangover=r.hangover,
        isolated_error_rate=None if r.isolated is None else r.isolated.error_rate,
        isolated_stall=None if r.isolated is None else r.isolated.stall,
    )


def judge(folder: Path) -> Outcome:
    """Judge a run's folder from its files alone; writes verdict.json and the reports."""
    from loadtest import history, scenario
    from loadtest.analysis import verdict
    from loadtest.report import html, junit, markdown, terminal
    from loadtest.report import text as words

    recorded = history.load(folder)
    spec = scenario.load(folder / "scenario.yaml")
    if spec.attribution == "none":
        recorded = history.unmarked(recorded)
    judged = verdict.judge(recorded, require_of(spec))
    document = verdict.to_json(judged)
    write(folder / "verdict.json", json.dumps(document, indent=1) + "\n")
    title = spec.title or folder.name
    meta = _meta(folder)
    log = str(meta.get("server_log_tail") or "")
    write(folder / "report.md", markdown.render(document, title, log))
    write(folder / "junit.xml", junit.render(document, title))
    told = (judged.case.look.line.contents.labels, judged.case.attribution.code)
    extra = {"scenario": (folder / "scenario.yaml").read_text(), "meta": meta, "attributed": told}
    write(folder / "report.html", html.render(document, recorded, title, extra=extra))
    on_screen = sys.stdout is not None and sys.stdout.isatty()
    colour = on_screen and not os.environ.get("NO_COLOR")
    width = min(max(shutil.get_terminal_size().columns, 60), 118) if on_screen else 118
    text = terminal.render(document, title, str(folder), log=log, colour=colour, width=width)
    code, headline = int(document.get("exit_code", EXIT_UNKNOWN)), words.headline(document)
    return Outcome(code, str(document["status"]), text, headline, folder)


def summarize(report: Path) -> None:
    """Append a report to the summary of a GitHub job, where there is one."""
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if not summary:
        return
    try:
        with Path(summary).open("a", encoding="utf-8") as f:
            f.write(report.read_text(encoding="utf-8") + "\n")
    except OSError as e:
        say(f"$GITHUB_STEP_SUMMARY was not written: {e}")


def _meta(folder: Path) -> dict[str, Any]:
    """meta.json of a run; empty when it is missing or broken, for the verdict does not need it."""
    try:
        found = json.loads((folder / "meta.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def ended(folder: Path) -> str:
    """Why a recorded run ended ("complete", "interrupted", ...); "unknown" when its writer was killed."""
    return str(_meta(folder).get("ended", "unknown"))


def compare(a: Path, b: Path) -> tuple[str, str]:
    """(Markdown, HTML): what changed between two judged runs. Raises UsageError when they do not compare."""
    from loadtest.report import compare as module

    def side(folder: Path) -> module.Side:
        judge(folder)
        document = json.loads((folder / "verdict.json").read_text())
        return module.Side(folder.name, document, _meta(folder), (folder / "scenario.yaml").read_text())

    try:
        return module.render(side(a), side(b))
    except module.NotComparable as e:
        raise UsageError(str(e)) from None


def run_locust(scenario: Path, options: Mapping[str, Any], locust_options: Sequence[str]) -> int:
    """Become `locust --headless` on the packaged locustfile; does not return."""
    sys.stdout.flush()
    os.execv(sys.executable, [*locust_command(scenario, options), *locust_options])


def locust_command(scenario: Path, options: Mapping[str, Any]) -> list[str]:
    """The command line of `locust --headless` on the packaged locustfile; `options` by name, without the dashes."""
    locustfile = Path(__file__).parent / "swarm" / "locustfile.py"
    command = [sys.executable, "-m", "locust", "-f", str(locustfile), "--headless", "--only-summary"]
    command += ["--scenario", str(scenario)]
    return command + [part for name, value in options.items() for part in (f"--{name}", str(value))]
