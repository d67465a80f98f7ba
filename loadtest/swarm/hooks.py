"""What ties a run to Locust's events. A locustfile calls `install()` at import.

How Locust calls us (LOCUST 2.4x)
1. `--processes` forks after the locustfile is imported and before `init`: at import nothing is started.
2. Order: import, parser, fork, init, test_start, spawning_complete. A normal end: test_stopping, test_stop, quitting,
   exit code. Ctrl-C and SIGTERM: quitting first, so the run is stopped and judged there before the exit code is read.
3. `test_start` can reach a worker before its `init` is through: the role is read from the options.
4. The web UI repeats test_start and test_stop in one process; a shutdown may pass `quitting` twice.
5. Locust logs and forgets what a listener raises; ours are recorded first (exit code 70).
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import gevent
from locust import events

from loadtest import harness, scenario
from loadtest.errors import EXIT_INTERNAL, EXIT_UNKNOWN, LoadtestError
from loadtest.swarm import cluster, exporter, options, page, panel
from loadtest.swarm.host import Host, Run
from loadtest.swarm.shape import Stages
from loadtest.swarm.signals import Interrupts
from loadtest.swarm.users import ArrivalsUser
from loadtest.swarm.worker import Worker

logger = logging.getLogger(__name__)

FORKS_S = 5.0  # guessed: forked workers connect within 2 s


class Front:
    """What one Locust process does at each event, by its role."""

    def __init__(self) -> None:
        self.parent = os.getpid()  # of forked workers: they are forked after this
        self.environment: Any = None
        self.host: Host | None = None
        self.worker: Worker | None = None
        self._classes: list[Any] = []  # the locustfile's user classes
        self._shape: Any = None  # the locustfile's own shape, if it has one
        self._given: tuple[Any, Any, Any] = (None, None, None)  # -u -r -t
        self._refused: LoadtestError | None = None
        self._preparing = False
        self._up: set[str] = set()  # workers that have said hello
        self._interrupts = Interrupts()

    # -- init ---------------------------------------------------------------------------------------------------------

    def on_init(self, environment: Any, runner: Any, web_ui: Any, **_: Any) -> None:
        """Everything that must be up before Locust goes on."""
        self.environment = environment
        given = environment.parsed_options
        # Locust installs its own SIGTERM handler later; until then a run that is being prepared must be ended in order.
        self._interrupts.listen(term=not given.worker and (given.headless or given.autostart))
        if given.worker:
            self._init_worker(environment, runner)
            return
        self._classes, self._shape = list(environment.user_classes), environment.shape_class
        self._given = (given.num_users, given.spawn_rate, options.positive(given.run_time))
        self.host = Host(environment, "master" if given.master else "local")
        atexit.register(self._last_resort)
        # Registered now, not at import: Locust calls `quitting` listeners last registered first, the runner's after us.
        environment.events.quitting.add_listener(self.recorded(self.on_quitting))
        if given.master:
            self._listen(runner, self.host)
        self._export(given)
        if sys.stderr.isatty() and not given.print_stats:
            given.only_summary = True  # Locust's table every 2 s would push the progress line away
        if web_ui is not None:
            panel.guard_start(web_ui, environment, self._prepare_for_form, self._is_starting)
            page.install(web_ui, self.host)
            self._prefill()
        if given.headless or given.autostart:
            self._prepare_now(given)

    def _export(self, given: Any) -> None:
        """--metrics; a port that cannot be had ends Locust here."""
        host = self.host
        if host is None or not given.metrics:
            return
        try:
            exporter.serve(given.metrics, lambda: host.board)
        except LoadtestError as e:
            harness.say(str(e))
            self._abort(e.exit_code)

    def _init_worker(self, environment: Any, runner: Any) -> None:
        self.worker = Worker(environment)
        environment.events.quitting.add_listener(self.recorded(self.on_worker_quitting))
        self.worker.listen()
        if os.getpid() != self.parent:
            gevent.spawn(self.worker.follow, self.parent)

    def _listen(self, runner: Any, host: Host) -> None:
        """The workers' messages."""

        def hello(environment: Any, msg: Any, **_: Any) -> None:
            self._up.add(msg.node_id)
            if host.run is not None and host.run.roster is not None:
                host.run.roster.hello(msg.node_id)

        def on(kind: str, act: Callable[[cluster.Roster, str, Any], None]) -> None:
            def listener(environment: Any, msg: Any, **_: Any) -> None:
                run = host.run
                if run is not None and run.roster is not None:
                    act(run.roster, msg.node_id, msg.data)

            runner.register_message(kind, listener)

        runner.register_message(cluster.HELLO, hello)
        on(cluster.READY, lambda roster, client, data: roster.ready(client, data))
        on(cluster.CLOSED, lambda roster, client, data: roster.closed(client, data))
        on(cluster.NEWS, lambda roster, client, data: host.news(data["engine"], data["message"]))

    def _prefill(self) -> None:
        """Show the scenario's users in the start form; a wrong scenario is told when the user starts it."""
        given = self.environment.parsed_options
        try:
            wanted = options.read(given, users=None, run_time_s=None)
            traffic = scenario.load(wanted.scenario or harness.DEFAULT_SCENARIO).traffic
        except LoadtestError:
            return
        given.num_users = given.num_users or traffic.users or 1
        given.spawn_rate = given.spawn_rate or traffic.spawn_rate

    def _prepare_now(self, given: Any) -> None:
        """Headless and --autostart: an error ends a headless Locust here, before any user is started."""
        try:
            self.prepare()
        except LoadtestError as e:
            harness.say(str(e))
            self._refused = e
            if given.headless:
                self._abort(e.exit_code)
        except Exception as e:
            logger.exception("the run could not be prepared")
            self._refused = internal_error(e)
            if given.headless:
                self._abort(self._refused.exit_code)
        except KeyboardInterrupt:
            harness.say("interrupted before any user was started")
            self._print_verdict()
            code = self.host.exit_code if self.host is not None else None
            self._abort(EXIT_UNKNOWN if code is None else code)

    def _abort(self, code: int) -> NoReturn:
        """Leave `init` and Locust. Forked workers are sent away first: Locust would leave them behind."""
        given, runner = self.environment.parsed_options, self.environment.runner
        if given.master and given.processes:
            deadline = time.monotonic() + FORKS_S
            while self._settled() < given.expect_workers and time.monotonic() < deadline:
                gevent.sleep(0.1)
        runner.quit()
        sys.exit(code)

    def _settled(self) -> int:
        """Workers that have come up, or came and went: one told to quit while it comes up would report nonsense."""
        runner = self.environment.runner
        return len(self._up | {client for client in runner.worker_indexes if client not in runner.clients})

    # -- start --------------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Have a run ready for the next test_start. Raises LoadtestError."""
        self._preparing = True
        try:
            self._prepare()
        finally:
            self._preparing = False

    def _prepare_for_form(self) -> None:
        try:
            self.prepare()
        except LoadtestError:
            raise
        except Exception as e:
            logger.exception("the run could not be prepared")
            raise internal_error(e) from e

    def _is_starting(self) -> bool:
        """Asked when Locust itself is idle: whether a start is on its way."""
        run = self.host.run if self.host is not None else None
        return self._preparing or (run is not None and run.began > 0 and not run.reason)

    def _prepare(self) -> None:
        assert self.host is not None
        self.host.join()
        self.host.discard()  # what was prepared for a start that Locust then refused
        given = self.environment.parsed_options
        from_form = self.environment.web_ui is not None and not given.autostart
        users, rate, run_time_s = (given.num_users, given.spawn_rate, given.run_time) if from_form else self._given
        run_time_s = options.positive(run_time_s)
        run = self.host.prepare(options.read(given, users=users, run_time_s=run_time_s))
        self._apply(run, None if from_form else users, rate)

    def _apply(self, run: Run, users: int | None, rate: float | None) -> None:
        """Tell Locust what the scenario says and the user did not."""
        environment, traffic = self.environment, run.scenario.traffic
        given = environment.parsed_options
        environment.user_classes, environment.shape_class = self._classes, self._shape
        given.num_users = users or given.num_users or traffic.users or 1
        given.spawn_rate = rate or given.spawn_rate or traffic.spawn_rate
        if traffic.arrivals is not None:
            environment.user_classes = [ArrivalsUser]
            given.num_users = 1 if users is None else users
        elif traffic.stages and users is None and self._shape is None:
            stages = Stages(_stages(traffic), run.run_time_s)
            stages.runner = environment.runner
            environment.shape_class = stages

    def on_test_start(self, environment: Any, **_: Any) -> None:
        """Raising GreenletExit ends Locust's start, silently and before any user."""
        if environment.parsed_options.worker:
            if ArrivalsUser not in environment.user_classes:
                environment.user_classes = [*environment.user_classes, ArrivalsUser]
            if self.worker is not None:
                self.worker.test_start()
            return
        assert self.host is not None
        if environment.shape_class is None:  # with a shape, Locust takes SIGTERM over only when the shape has ended
            self._interrupts.leave_term()
        try:
            if self._refused is not None:
                raise self._refused
            if self.host.run is None or self.host.run.began:  # began: an earlier start was cut short
                self.prepare()
            self.host.begin()
        except LoadtestError as e:
            self._refuse(e)
        except Exception as e:  # Locust would log it and spawn users into nothing
            logger.exception("the run could not be started")
            self._refuse(internal_error(e))

    def _refuse(self, error: LoadtestError) -> NoReturn:
        assert self.host is not None
        if error is not self._refused:
            harness.say(str(error))
        self._refused = None
        self.host.discard()
        self.host.exit_code = error.exit_code
        runner, headless = self.environment.runner, self.environment.parsed_options.headless
        gevent.spawn(runner.quit if headless else runner.stop)
        raise gevent.GreenletExit

    def on_spawning_complete(self, **_: Any) -> None:
        """The users are there: let the phases begin."""
        if self.host is not None:
            self.host.play()

    # -- end ----------------------------------------------------------------------------------------------------------

    def on_test_stopping(self, **_: Any) -> None:
        """Users are about to be stopped."""
        if self.host is not None:
            self.host.stopping()

    def on_test_stop(self, **_: Any) -> None:
        """Users have been stopped; on a quitting master its workers' have not."""
        if self.worker is not None:
            self.worker.close()
        if self.host is not None and self.host.run is not None and self.host.run.began:
            self.host.finish()
            if not self.environment.parsed_options.headless:
                self._print_verdict()

    def on_quitting(self, environment: Any, **_: Any) -> None:
        """Rule 2: Ctrl-C and SIGTERM come here first."""
        assert self.host is not None
        if self.host.run is not None:
            self.host.interrupt()
            environment.runner.quit()
            self.host.finish()
        self.host.join()
        if self.host.exit_code is not None:
            environment.process_exit_code = self.host.exit_code

    def on_worker_quitting(self, environment: Any, **_: Any) -> None:
        """A worker that is told to go by a signal closes its engine and reports before Locust says goodbye."""
        assert self.worker is not None
        environment.runner.stop()
        self.worker.close("interrupted")
        environment.process_exit_code = 0

    def on_quit(self, **_: Any) -> None:
        """After Locust's own tables, so that the verdict is the last thing on the screen."""
        self._print_verdict()

    def on_user_error(self, user_instance: Any, exception: BaseException, **_: Any) -> None:
        """An exception in a user's task is the locustfile's, but whoever reads the verdict should know."""
        detail = f"{type(user_instance).__name__}: {exception!r}"
        if self.worker is not None:
            self.worker.tell("user_error", detail)
        elif self.host is not None and self.host.run is not None:
            self.host.run.note("user_error", detail)

    def _print_verdict(self) -> None:
        if self.host is not None and self.host.outcome is not None:
            outcome, self.host.outcome = self.host.outcome, None
            sys.stdout.write(f"\n{outcome.text.rstrip()}\n")
            sys.stdout.flush()

    def _last_resort(self) -> None:
        """Locust left without `quitting` (an error of its own, Ctrl-C while it waits for workers)."""
        if self.host is None or self.host.run is None:
            return
        self.host.finish("interrupted")
        self.environment.runner.quit()
        self._print_verdict()
        sys.stderr.flush()
        os._exit(EXIT_INTERNAL if self.host.exit_code is None else self.host.exit_code)

    def recorded(self, listener: Callable[..., None]) -> Callable[..., None]:
        """The listener, with rule 5."""

        def call(**event: Any) -> None:
            try:
                listener(**event)
            except Exception as e:
                detail = f"{listener.__name__}: {e!r}"
                if self.host is not None:
                    self.host.failed(detail)
                elif self.worker is not None:
                    self.worker.tell("error", detail)
                raise

        return call


def internal_error(error: Exception) -> LoadtestError:
    """An unexpected exception as one that ends a start in order (exit code 70)."""
    return LoadtestError(f"internal error: {error!r}", remedy="the log has the traceback; please report it")


def _stages(traffic: Any) -> list[tuple[float, int, float]]:
    """(end in seconds from the start, users, users per second) of each stage."""
    until, found = 0.0, []
    for stage in traffic.stages:
        until += stage.duration
        found.append((until, stage.users, stage.spawn_rate))
    return found


_FRONT: list[Front] = []


def install() -> None:
    """Make this Locust a hotfix test: arguments, web form, run, verdict as exit code. Call at import, once or twice."""
    if _FRONT:
        return
    front = Front()
    _FRONT.append(front)
    events.init_command_line_parser.add_listener(lambda parser, **_: options.add_arguments(parser))
    for name in ("init", "test_start", "spawning_complete", "test_stopping", "test_stop", "quit", "user_error"):
        getattr(events, name).add_listener(front.recorded(getattr(front, f"on_{name}")))
