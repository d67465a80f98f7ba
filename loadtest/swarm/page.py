"""The Hotfix tab of Locust's web UI: a page of our own that shows a run while it goes on and takes one swap's order.

Rules
1. Only Locust's extension points are used: a blueprint on its Flask app, `extended_tabs` and `extended_tables`, and
   `after_request` for what they cannot say (rows of the table, the page inside the tab).
2. Every route asks for a login where Locust does. A swap also needs the page's token in a header of its own, which no
   other site can send, and a JSON body.
3. A report is served by the name of a run that this process judged, never by a path.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any, Protocol

import flask

from loadtest import harness
from loadtest.errors import LoadtestError
from loadtest.report import html, text
from loadtest.swarm import exposition
from loadtest.swarm.board import Board

COLUMNS = ("swap", "at_s", "arm", "adapter", "version", "outcome", "ack_ms", "effect_ms", "reason")
TITLES = ("Swap", "At, s", "Arm", "Adapter", "Version", "Outcome", "Ack, ms", "Effect, ms", "Reason")
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
}


class Host(Protocol):
    """The part of swarm.host.Host that the page needs."""

    board: Board | None
    judged: dict[str, harness.Outcome]  # by the run's name, newest last

    def hotfix(self, adapter: str, version: str | None) -> dict[str, Any]: ...


class Page:
    """The routes, for one host of runs."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._token = secrets.token_urlsafe(24)

    def index(self) -> Any:
        """The page itself."""
        page = html.page_of("live.html.j2", {"token": self._token}, script="live.js", connect="'self'")
        return _answer(page, "text/html; charset=utf-8")

    def state(self) -> Any:
        """The run's figures, as JSON; only the points that the page has not got yet."""
        board, given = self._host.board, flask.request.args
        if board is None:
            return _answer(json.dumps({"state": "none", "run": "", "generation": -1, "points": []}), "application/json")
        since, generation = _number(given.get("since")), _number(given.get("generation"))
        same = given.get("run") == text.clean(board.run)
        document = board.document(since if same else -1.0, int(generation) if same else -1)
        if board.verdict is not None and board.run in self._host.judged:
            document["verdict"] = {**board.verdict, "report": f"hotfix/report/{board.run}"}
        return _answer(json.dumps(document), "application/json")

    def swap(self) -> Any:
        """Rule 2; one swap on the operator's behalf."""
        given = flask.request.headers.get("X-Hotfix-Token", "")
        if not secrets.compare_digest(given.encode(), self._token.encode()) or not flask.request.is_json:
            return _answer(
                json.dumps({"ok": False, "message": "not sent by this page: reload it"}), "application/json", 403
            )
        body = flask.request.get_json(silent=True)
        adapter, version = (body.get(k) for k in ("adapter", "version")) if isinstance(body, dict) else ("", "")
        try:
            told = self._host.hotfix(str(adapter or ""), str(version) if version else None)
        except LoadtestError as e:
            return _answer(json.dumps({"ok": False, "message": text.clean(str(e))}), "application/json", 409)
        return _answer(json.dumps({"ok": bool(told.get("ok")), "message": _told(told)}), "application/json")

    def report(self, run: str) -> Any:
        """Rule 3."""
        outcome = self._host.judged.get(run)
        path = outcome.folder / "report.html" if outcome is not None else None
        if path is None or not path.is_file():
            return _answer("there is no report of this run", "text/plain", 404)
        return _answer(path.read_text(), "text/html; charset=utf-8")

    def metrics(self) -> Any:
        """For Prometheus."""
        return _answer(exposition.render(self._host.board, harness.tool_version()), exposition.CONTENT_TYPE)

    def script(self) -> Any:
        """What shows the page inside Locust's tab."""
        return _answer((html.ASSETS / "tab.js").read_text(), "text/javascript; charset=utf-8")

    def rows(self) -> list[dict[str, Any]]:
        """Last swaps, for Locust's own table."""
        shown = self._host.board.shown_swaps() if self._host.board is not None else []
        keys = ("n", "at", *COLUMNS[2:])
        return [{"name": f"{s['n']:05d}", **dict(zip(COLUMNS, (s[k] for k in keys), strict=True))} for s in shown[:50]]


def install(web_ui: Any, host: Host) -> None:
    """Add the tab and its routes to Locust's web UI. Called once, in `init`."""
    page, base = Page(host), _base(web_ui)
    routes: tuple[tuple[str, str, Callable[..., Any]], ...] = (
        ("", "GET", page.index),
        ("/state.json", "GET", page.state),
        ("/swap", "POST", page.swap),
        ("/report/<run>", "GET", page.report),
        ("/metrics", "GET", page.metrics),
        ("/tab.js", "GET", page.script),
    )
    blueprint = flask.Blueprint("hotfix", __name__, url_prefix=f"{base}/hotfix")
    for rule, method, view in routes:
        guarded = web_ui.auth_required_if_enabled(view)
        blueprint.add_url_rule(rule, view.__name__, guarded, methods=[method])
    web_ui.app.register_blueprint(blueprint)
    web_ui.app.after_request(lambda response: _extended(response, page, base))
    web_ui.template_args |= {
        "extended_tabs": [{"title": "Hotfix", "key": "hotfix"}],
        "extended_tables": [
            {"key": "hotfix", "structure": [{"key": k, "title": t} for k, t in zip(COLUMNS, TITLES, strict=True)]}
        ],
    }


def _base(web_ui: Any) -> str:
    """Locust's --web-base-path, as its own routes have it."""
    rules = (str(rule.rule) for rule in web_ui.app.url_map.iter_rules())
    return next(rule for rule in rules if rule.endswith("/swarm")).removesuffix("/swarm")


def _extended(response: Any, page: Page, base: str) -> Any:
    """Locust's own page with our script, its own figures with our rows."""
    if response.status_code != 200:
        return response
    if flask.request.path == f"{base}/stats/requests" and response.is_json:
        rows = {"extended_stats": [{"key": "hotfix", "data": page.rows()}]}
        response.set_data(json.dumps({**response.get_json(), **rows}))
    elif flask.request.path == f"{base}/" and response.mimetype == "text/html":
        script = f'<script src="{base}/hotfix/tab.js" data-page="{base}/hotfix"></script></body>'
        response.set_data(response.get_data(as_text=True).replace("</body>", script, 1))
    return response


def _told(told: dict[str, Any]) -> str:
    """An operation's end in a sentence."""
    what = f"{told.get('adapter', '')} → {told.get('version') or 'no version'}"
    if told.get("ok"):
        return text.clean(f"{what}: ok, acked after {text.number(told.get('ack_ms'), 'ms')}")
    why = " ".join(str(told[k]) for k in ("reason", "message") if told.get(k))
    return text.clean(f"{what}: {told.get('outcome', 'fail')}, {why}")


def _number(value: str | None) -> float:
    try:
        number = float(value or "")
    except ValueError:
        return -1.0
    return number if abs(number) < 1e12 else -1.0  # neither inf nor nan


def _answer(body: str, content_type: str, status: int = 200) -> Any:
    return flask.Response(body, status, _HEADERS, content_type=content_type)
