"""The run as the process sees it that owns it: Locust alone ("local") or Locust's master.

Rules
1. `prepare` has everything up (server, versions, engine e0, first versions loaded) before any user is started; when it
   raises, nothing is left running.
2. The phases start when the users have been spawned; the run ends when the phases do, unless the user gave a run time.
3. A run is finished exactly once, in a greenlet of its own that no part of Locust's shutdown kills: users and workers
   stopped, versions rolled back, journals closed, judged, server stopped. Everybody else waits for that greenlet.
4. The process's exit code is the verdict's; an error of ours makes it 70, whatever the verdict says.
"""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from dataclasses import dataclass, field
from typing import Any

import gevent

from loadtest import harness, scenario
from loadtest.errors import EXIT_INTERNAL, TargetError, UsageError
from loadtest.swarm import cluster, rows, seat
from loadtest.swarm.board import Board
from loadtest.swarm.link import Link, Message
from loadtest.swarm.progress import Progress

logger = logging.getLogger(__name__)

CLOSE_S = 60.0  # beyond --stop-timeout, for workers to close their journals
NOTES_MAX = 50  # events of one kind that reach the history
HOTFIX_S = 10.0  # beyond the scenario's own timeout
JUDGED_MAX = 50  # runs whose reports the web UI still serves


@dataclass
class Run:
    """One run from `prepare` to its verdict."""

    session: harness.Session
    link: Link
    info: dict[str, Any]
    scenario: scenario.Scenario
    run_time_s: float | None
    progress: Progress
    roster: cluster.Roster | None = None
    began: float = 0.0  # time.monotonic() at test_start, 0 before
    playing: bool = False
    played: bool = False
    reason: str = ""
    notes: dict[str, int] = field(default_factory=dict)

    def note(self, what: str, detail: str) -> None:
        """An event for the history, bounded per kind."""
        self.notes[what] = self.notes.get(what, 0) + 1
        if self.notes[what] <= NOTES_MAX:
            self.link.tell({"op": "event", "what": what, "detail": detail[:500]})

    def time_is_up(self) -> bool:
        """Whether the user's run time has passed (Locust's timer is not exact)."""
        return bool(self.run_time_s and self.began and time.monotonic() - self.began >= self.run_time_s - 0.5)


class Host:
    """Owner of runs, one after another."""

    def __init__(self, environment: Any, role: str) -> None:
        self.environment = environment
        self.role = role  # "local" | "master"
        self.run: Run | None = None
        self.outcome: harness.Outcome | None = None
        self.exit_code: int | None = None
        self.board: Board | None = None  # of the newest run, also after its end
        self.judged: dict[str, harness.Outcome] = {}  # by the run's name, newest last
        self._finishing: gevent.Greenlet | None = None

    # -- start ------------------------------------------------------------------------------------------------------

    def prepare(self, options: harness.Options) -> Run:
        """Rule 1. Raises LoadtestError; KeyboardInterrupt after a roll back and a verdict, once anything was loaded."""
        self.join()
        self.outcome = self.exit_code = None
        session = harness.Session.open(options, self.role)
        try:
            run = self.run = self._start(session, options)
        except BaseException:
            session.close()
            raise
        try:
            script = session.script()
            run.link.setup(script, _setup_s(script))
        except KeyboardInterrupt:
            self.finish("interrupted")
            raise
        except BaseException:
            self.discard()
            raise
        return run

    def _start(self, session: harness.Session, options: harness.Options) -> Run:
        info = session.run_info()
        parsed = scenario.load(info["scenario"])
        link = Link("e0", self._news, self._died)
        try:
            link.configure(session.engine_config("e0", self.role))
        except BaseException:
            link.close()
            raise
        labels = {name: list(dict.fromkeys(v.version for v in found)) for name, found in session.versions.items()}
        self.board = Board(session.folder.name, parsed.title, len(parsed.phases), labels)
        return Run(session, link, info, parsed, options.run_time_s, Progress(self.board))

    def discard(self) -> None:
        """A run that could not start: everything undone, nothing judged."""
        run, self.run = self.run, None
        if run is None:
            return
        seat.current().leave()
        if run.roster is not None:
            run.roster.dismiss("error", 0.0, CLOSE_S)
        run.link.stop("error", 0.0)
        run.link.close()
        run.session.close()

    def begin(self) -> None:
        """At test_start, with a prepared run: this process's users may go, or every worker's. Raises LoadtestError."""
        run = self.run
        assert run is not None
        run.began = time.monotonic()
        run.progress.board.state = "running"
        if self.role == "master":
            self._summon(run)
        else:
            running = seat.Running(run.link, run.info, 0, 1)
            seat.current().take(running)
            running.arrive()
        gevent.spawn(self._watch, run)

    def play(self) -> None:
        """At spawning_complete, which Locust fires for every later change of the number of users too: rule 2."""
        if self.run is not None and self.run.began and not self.run.playing:
            self.run.playing = True
            self.run.link.tell({"op": "play"})

    def _summon(self, run: Run) -> None:
        run.roster = cluster.Roster(self.environment.runner, run.info)
        run.roster.summon()
        refused = run.roster.await_ready()
        if refused:
            words = "; ".join(f"{m.client}: {m.error or 'no answer'}" for m in refused)
            raise TargetError(f"{len(refused)} of {len(run.roster.members)} workers did not come up ({words})")

    def _watch(self, run: Run) -> None:
        """While the run goes on: progress each second, workers that go missing."""
        while self.run is run and not run.reason:
            gevent.sleep(1.0)
            if run.reason:
                return
            run.progress.board.tick()
            run.progress.show()
            self._note_death(run)
            if run.roster is not None:
                self._note_missing(run, run.roster)

    def _note_death(self, run: Run) -> None:
        died = run.session.server_died()
        if died:
            logger.error("%s", died)
            run.note("target_died", died)
            self.end("target_died")

    def _note_missing(self, run: Run, roster: cluster.Roster) -> None:
        for member in roster.newly_missing():
            logger.error("worker %s (engine %s) is missing: its users are gone", member.client, member.engine)
            run.note("worker_missing", f"{member.client} (engine {member.engine})")

    # -- news from engines and workers --------------------------------------------------------------------------------

    def _news(self, link: Link, message: Message) -> None:
        run = self.run
        if run is not None and run.link is link:
            self.news("e0", message)

    def news(self, engine: str, message: Message) -> None:
        """Something an engine said that nobody waited for; must not block."""
        run, op = self.run, message.get("op")
        if run is None:
            return
        if op == "result":
            rows.stream(self.environment, rows.Result.read(message), {"user": message.get("user", "arrivals")})
        elif op == "swap":
            rows.swap(self.environment, message)
            run.progress.board.swap(message)
            if run.roster is not None:
                run.roster.swapped(message)
        elif op == "phase":
            run.progress.phase(message)
        elif op == "progress":
            run.progress.board.count(engine, message)
        elif op == "play_done":
            run.played = message.get("reason") != "error"
            if not run.played:
                self.end("error")
            elif not run.run_time_s:
                self.end("complete")
        elif op == "target_died":
            logger.error("the target does not answer any more: %s", message.get("detail", ""))
            self.end("target_died")
        elif op == "user_error":
            run.note("user_error", str(message.get("detail")))
        elif op in ("error", "engine_died"):
            self.trouble(str(op), f"engine {engine}: {message.get('message') or message.get('detail')}")

    def hotfix(self, adapter: str, version: str | None) -> Message:
        """One swap on an operator's behalf, to its end: the engine's `hotfix_done`. Raises LoadtestError."""
        run = self.run
        if run is None or not run.began or run.reason:
            raise UsageError("no run is going on", remedy="start one first")
        swaps = [phase.timeout for phase in run.scenario.phases if phase.arm != "aa"]
        return run.link.hotfix(adapter, version, (swaps[0] if swaps else 30.0) + HOTFIX_S)

    def trouble(self, what: str, detail: str) -> None:
        """Something of ours broke: on record, and the end of the run when an engine is gone."""
        logger.error("%s", detail)
        if self.run is not None:
            self.run.note(what, detail)
            if what == "engine_died":
                self.end("error")

    def failed(self, detail: str) -> None:
        """A listener of ours raised: rule 4."""
        self.exit_code = EXIT_INTERNAL
        if self.run is not None:
            self.run.note("error", detail)

    def _died(self, link: Link) -> None:
        if self.run is not None and self.run.link is link:
            self.trouble("engine_died", "engine e0 has ended by itself")

    # -- end ----------------------------------------------------------------------------------------------------------

    def end(self, reason: str) -> None:
        """Stop the test from inside, as its own Stop button would. The first reason given stays."""
        run = self.run
        if run is None or run.reason:
            return
        run.reason = reason
        gevent.spawn(self._stop_locust)

    def _stop_locust(self) -> None:
        options, runner = self.environment.parsed_options, self.environment.runner
        if options.headless:
            runner.quit()
            return
        runner.stop()
        if options.autostart and options.autoquit != -1:  # what Locust does at its own end of a run
            gevent.sleep(options.autoquit)
            runner.quit()
            self.environment.web_ui.stop()

    def stopping(self) -> None:
        """At test_stopping: why, before a drain takes its time."""
        run = self.run
        if run is None or not run.began:
            return
        run.reason = run.reason or self._why(run)
        if run.roster is not None:
            run.roster.announce(run.reason)

    def interrupt(self) -> None:
        """A hand ends the run, unless something else has begun to."""
        if self.run is not None:
            self.run.reason = self.run.reason or "interrupted"

    def finish(self, reason: str = "") -> None:
        """Rule 3. Blocks until the run is judged; a second caller waits for the first."""
        if self.run is not None and self._finishing is None:
            self._finishing = gevent.spawn(self._finish, self.run, reason)
        self.join()

    def join(self) -> None:
        """Wait for a finish that is going on."""
        if self._finishing is not None:
            self._finishing.join()

    def _finish(self, run: Run, reason: str) -> None:
        try:
            self._close(run, reason)
            self.outcome = run.session.judge(run.reason)
            self._keep(run, self.outcome)
            if self.exit_code != EXIT_INTERNAL:
                self.exit_code = self.outcome.exit_code
        except OSError as e:  # a full disk, most likely: what is on it can be judged when there is room again
            self.exit_code = EXIT_INTERNAL
            folder = run.session.folder
            logger.error("the verdict was not written (%s): make room, then run: loadtest judge %s", e.strerror, folder)
        except Exception:
            self.exit_code = EXIT_INTERNAL
            logger.error("the run could not be judged\n%s", traceback.format_exc())
        finally:
            with contextlib.suppress(OSError):
                run.session.close()
            run.progress.board.state = "ended"
            self.run = None
            self._finishing = None

    def _keep(self, run: Run, outcome: harness.Outcome) -> None:
        """For whoever watches: the verdict, and the reports of the last runs."""
        run.progress.board.verdict = {"status": outcome.status, "headline": outcome.headline}
        self.judged[outcome.folder.name] = outcome
        for name in list(self.judged)[:-JUDGED_MAX]:
            del self.judged[name]

    def _close(self, run: Run, reason: str) -> None:
        """Users and workers first, then the rollback, so that it disturbs nobody."""
        run.reason = run.reason or reason or self._why(run)
        if run.reason == "run_time":
            run.note("run_time_over", f"after {run.run_time_s:g} s")
        if run.reason == "interrupted":
            run.note("interrupt", "the run was stopped by hand")
        run.progress.close()
        run.progress.board.close()
        drain_s = float(self.environment.stop_timeout or 0.0)
        seat.current().leave()
        if run.roster is not None:
            run.roster.dismiss(run.reason, drain_s, drain_s + CLOSE_S)
            self._note_missing(run, run.roster)
            for member in run.roster.unclosed():
                run.note("worker_missing", f"{member.client} (engine {member.engine}) did not close its journal")
        if not run.link.stop(run.reason, drain_s):
            logger.error("engine e0 did not stop in order: versions may not have been rolled back")
        run.link.close()

    def _why(self, run: Run) -> str:
        """Why Locust stopped, when nobody said: its own timer, or a hand."""
        if run.time_is_up():
            return "complete" if run.played else "run_time"
        return "interrupted"


def _setup_s(script: dict[str, Any]) -> float:
    """Seconds that loading one version per adapter may take."""
    return 30.0 + float(script["timeout_s"]) * max(1, len(script["adapters"]))
