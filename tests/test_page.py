"""The Hotfix tab's routes on a real Flask app, without Locust: who may ask, what is served, what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import flask
import pytest
import report_maker as maker

from loadtest.errors import UsageError
from loadtest.harness import Outcome
from loadtest.report import charts
from loadtest.swarm import exporter, page
from loadtest.swarm.board import Board

BASES = ("", "/lt")


class Host:
    """A host of runs that notes what it is asked."""

    def __init__(self) -> None:
        self.board: Board | None = None
        self.judged: dict[str, Outcome] = {}
        self.asked: list[tuple[str, str | None]] = []

    def hotfix(self, adapter: str, version: str | None) -> dict[str, Any]:
        if adapter != "a":
            raise UsageError(f"no adapter {adapter!r}", remedy="choose one of a")
        self.asked.append((adapter, version))
        return {"ok": True, "adapter": adapter, "version": version or "v1", "outcome": "ok", "ack_ms": 12.5}


class WebUI:
    """What page.install uses of Locust's; `open` False: nobody is logged in."""

    def __init__(self, base: str) -> None:
        self.app = flask.Flask(__name__)
        self.template_args: dict[str, Any] = {}
        self.open = True
        self.app.add_url_rule(f"{base}/swarm", "locust.swarm", lambda: "", methods=["POST"])
        self.app.add_url_rule(f"{base}/", "locust.index", lambda: "<html><body><div id=root></div></body></html>")
        self.app.add_url_rule(f"{base}/stats/requests", "locust.stats", lambda: flask.jsonify({"stats": []}))

    def auth_required_if_enabled(self, view: Any) -> Any:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            return view(*args, **kwargs) if self.open else flask.redirect("/login")

        return guarded


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def web(base: str, host: Host) -> WebUI:
    out = WebUI(base)
    page.install(out, host)
    return out


@pytest.fixture
def client(web: WebUI) -> Any:
    return web.app.test_client()


def running() -> Board:
    board = Board("run-1", "Hotfix", 1, {"a": ["v0", "v1"]})
    words = {"adapter": "a", "version": "v1", "arm": "real", "by": "scenario", "outcome": "ok", "reason": ""}
    board.swap({"n": 1, **words, "ack_ms": 20.0, "invoked_ns": board.zero_ns, "acked_ns": 0})
    return board


def token(client: Any, base: str) -> str:
    found = re.search(r'data-token="([^"]+)"', client.get(f"{base}/hotfix").text)
    assert found
    return found[1]


def press(client: Any, base: str, json: Any, **headers: str) -> Any:
    return client.post(f"{base}/hotfix/swap", json=json, headers=headers)


def test_the_page_may_ask_its_own_server_and_nobody_else(client: Any, base: str) -> None:
    answer = client.get(f"{base}/hotfix")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', answer.text)
    assert policy
    assert "connect-src &#39;self&#39;" in policy[1]
    assert "default-src &#39;none&#39;" in policy[1]
    assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'self'"


def test_its_charts_have_the_reports_names_and_units(client: Any, base: str, tmp_path: Path) -> None:
    recorded = maker.write(tmp_path, maker.Play(streams=40, swaps=4, quiet_s=2.0))
    live = client.get(f"{base}/hotfix").text
    for figure in charts.over_run(recorded, {}):
        assert f"<strong>{figure.title}.</strong>" in live
    drawn = "".join(f.svg for f in charts.over_run(recorded, {}))
    for words in ("tokens/s", "tokens per second", "ITL p50", "ITL p99", "seconds since the start"):
        assert f">{words}</text>" in drawn
        assert f'"{words}"' in live


def test_before_a_run_there_is_nothing_to_show(client: Any, base: str) -> None:
    assert client.get(f"{base}/hotfix/state.json").json["state"] == "none"


def test_only_new_points_of_the_same_run_are_sent(client: Any, base: str, host: Host) -> None:
    host.board = running()
    host.board.tick()
    at = host.board.points[0].at
    ask = f"{base}/hotfix/state.json?since={at}&generation=0&run="
    assert client.get(ask + "run-1").json["points"] == []
    assert len(client.get(ask + "another").json["points"]) == 1
    for odd in ("since=nan&generation=inf&run=run-1", "since=x&generation=&run=run-1", ""):
        assert len(client.get(f"{base}/hotfix/state.json?{odd}").json["points"]) == 1


def test_the_button_swaps_with_the_pages_token_and_a_json_body_only(client: Any, base: str, host: Host) -> None:
    mine = token(client, base)
    body = {"adapter": "a", "version": ""}
    assert press(client, base, body).status_code == 403
    assert press(client, base, body, **{"X-Hotfix-Token": "wrong"}).status_code == 403
    assert press(client, base, body, **{"X-Hotfix-Token": "\u00e9"}).status_code == 403
    form = client.post(f"{base}/hotfix/swap", data={"adapter": "a"}, headers={"X-Hotfix-Token": mine})
    assert form.status_code == 403
    assert host.asked == []
    answer = press(client, base, body, **{"X-Hotfix-Token": mine})
    assert answer.json == {"ok": True, "message": "a → v1: ok, acked after 12.5 ms"}
    press(client, base, {"adapter": "a", "version": "v0"}, **{"X-Hotfix-Token": mine})
    assert host.asked == [("a", None), ("a", "v0")]


@pytest.mark.parametrize("body", [{"adapter": "nobody"}, {}, [], "a", {"adapter": {"a": 1}}])
def test_an_order_that_cannot_be_is_refused_in_words(client: Any, base: str, host: Host, body: Any) -> None:
    answer = press(client, base, body, **{"X-Hotfix-Token": token(client, base)})
    assert answer.status_code == 409
    assert "no adapter" in answer.json["message"]
    assert host.asked == []


def test_the_button_is_not_reached_by_get(client: Any, base: str) -> None:
    assert client.get(f"{base}/hotfix/swap").status_code == 405


def test_reports_are_served_by_name_and_only_of_this_process(
    client: Any, base: str, host: Host, tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text("<p>the report</p>")
    host.board = running()
    host.board.verdict = {"status": "PASS", "headline": "PASS: held."}
    assert "report" not in client.get(f"{base}/hotfix/state.json").json["verdict"]
    host.judged["run-1"] = Outcome(0, "PASS", "", "PASS: held.", tmp_path)
    assert client.get(f"{base}/hotfix/state.json").json["verdict"]["report"] == "hotfix/report/run-1"
    assert client.get(f"{base}/hotfix/report/run-1").text == "<p>the report</p>"
    for other in ("run-2", "..%2f..%2fetc%2fpasswd", ".."):
        assert client.get(f"{base}/hotfix/report/{other}").status_code == 404


def test_locusts_own_answers_get_the_tab_and_its_rows(client: Any, base: str, host: Host, web: WebUI) -> None:
    host.board = running()
    assert f'src="{base}/hotfix/tab.js"' in client.get(f"{base}/").text
    stats = client.get(f"{base}/stats/requests").json
    assert stats["stats"] == []
    keys = {c["key"] for c in web.template_args["extended_tables"][0]["structure"]}
    assert keys <= set(stats["extended_stats"][0]["data"][0])
    assert web.template_args["extended_tabs"][0]["key"] == stats["extended_stats"][0]["key"]


def test_every_route_asks_for_the_login(client: Any, base: str, web: WebUI, host: Host) -> None:
    mine = token(client, base)
    web.open = False
    rules = [r for r in web.app.url_map.iter_rules() if r.rule.startswith(f"{base}/hotfix")]
    assert len(rules) == 6
    for rule in rules:
        path = rule.rule.replace("<run>", "run-1")
        ask = client.post if "POST" in (rule.methods or ()) else client.get
        answer = ask(path, json={"adapter": "a"} if ask == client.post else None, headers={"X-Hotfix-Token": mine})
        assert answer.status_code == 302, path
    assert host.asked == []


@pytest.mark.parametrize(
    ("given", "expected"), [("9646", ("127.0.0.1", 9646)), ("0.0.0.0:1", ("0.0.0.0", 1)), ("[::1]:80", ("::1", 80))]
)
def test_an_address_for_metrics(given: str, expected: tuple[str, int]) -> None:
    assert exporter.address(given) == expected


@pytest.mark.parametrize("given", ["", "x", "1:x", "70000", "-1"])
def test_an_address_that_is_none(given: str) -> None:
    with pytest.raises(UsageError, match="--metrics must be PORT"):
        exporter.address(given)
