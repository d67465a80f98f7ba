"""The start form of Locust's web UI: a run is prepared before the request is answered, so that its errors are seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flask
from locust.runners import STATE_CLEANUP, STATE_RUNNING, STATE_SPAWNING, STATE_STOPPING
from locust.util.timespan import parse_timespan

from loadtest.errors import LoadtestError
from loadtest.swarm.options import positive

FIELDS = ("scenario", "target", "seed", "results", "host")
_BUSY = (STATE_SPAWNING, STATE_RUNNING, STATE_CLEANUP, STATE_STOPPING)


def guard_start(web_ui: Any, environment: Any, prepare: Callable[[], None], starting: Callable[[], bool]) -> None:
    """Run `prepare` (raises LoadtestError) before Locust's own answer to POST /swarm; its error becomes the answer.

    While a test runs, the same request only changes the number of users, and is passed on. `starting`: whether an
    earlier request has not got there yet; a second one would tear down what the first builds.
    """
    endpoint = next(rule.endpoint for rule in web_ui.app.url_map.iter_rules() if rule.rule.endswith("/swarm"))
    start = web_ui.app.view_functions[endpoint]

    def swarm() -> Any:
        if environment.runner.state in _BUSY or not _startable(environment.runner):
            return start()  # Locust changes the number of users, or says what is wrong
        if starting():
            return _refused(environment, "a run is being started already")
        _read_form(environment)
        try:
            prepare()
        except LoadtestError as e:
            return _refused(environment, str(e))
        return start()

    web_ui.app.view_functions[endpoint] = web_ui.auth_required_if_enabled(swarm)


def _refused(environment: Any, message: str) -> Any:
    """What Locust's page shows as an error."""
    return flask.jsonify({"success": False, "message": message, "host": environment.host})


def _startable(runner: Any) -> bool:
    """Whether Locust would accept the form, as far as we can tell: a run is expensive to prepare."""
    form = flask.request.form
    users, rate = form.get("user_count", ""), positive(form.get("spawn_rate", ""))
    return getattr(runner, "worker_count", 1) > 0 and users.isdigit() and rate is not None


def _read_form(environment: Any) -> None:
    """What Locust itself reads only after us."""
    form, options = flask.request.form, environment.parsed_options
    for name in FIELDS:
        if name in form:
            setattr(options, name, form[name].strip())
    options.num_users, options.spawn_rate = int(form["user_count"]), float(form["spawn_rate"])
    try:
        options.run_time = parse_timespan(form["run_time"]) if form.get("run_time") else None
    except ValueError:  # Locust refuses the start
        options.run_time = None
