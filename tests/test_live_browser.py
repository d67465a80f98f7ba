"""The live page of a running test in a real Chromium: it follows the run, takes an order, ends with the verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import axe
import browser
import pytest
from locust_run import Locust, Web, free_port, locust, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.CHROMIUM is None, reason="no chromium (apt-get install chromium)"),
]

TEXT = "document.getElementById({!r}).textContent"
TILE = (
    "[...document.querySelectorAll('#tiles div')].find("
    "(d) => d.children[0].textContent === {!r})?.children[1].textContent"
)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Tab]:
    with browser.chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


class Live:
    """A Locust with its web UI, and the tab that looks at it."""

    def __init__(self, tab: browser.Tab, running: Locust, web: Web) -> None:
        self.tab, self.running, self.web = tab, running, web
        tab.errors.clear()
        tab.allowed = ("file:", "data:", web.url)

    def start(self) -> None:
        assert self.web.post("/swarm", user_count=6, spawn_rate=20)["success"]

    def text(self, element: str) -> str:
        return str(self.tab.js(TEXT.format(element)))

    def wait(self, true: Callable[[], object], what: str) -> None:
        until(true, what)

    def state(self, words: str) -> None:
        self.wait(lambda: words in self.text("state"), f"{words!r} on the page")


@contextmanager
def locust_with(tab: browser.Tab, folder: Path, *args: str, base: str = "") -> Iterator[Live]:
    port = free_port()
    with locust(folder, "long.yaml", "--web-host", "127.0.0.1", "--web-port", str(port), *args) as running:
        web = Web(port)
        web.url += base
        until(web.up, "Locust's web UI")
        yield Live(tab, running, web)
        tab.open("about:blank")


def operators(running: Locust) -> list[dict[str, Any]]:
    return [i for i in running.lines("invoke") if i["by"] == "operator"]


def follow(live: Live) -> None:
    """A run seen on the page from its first second to its verdict."""
    live.start()
    live.state("Running: phase")
    live.wait(lambda: int(live.tab.js(TILE.format("complete")) or 0) > 3, "complete streams on the page")
    parts = "document.querySelector('#rate .line').getAttribute('d').split('L').length"
    live.wait(lambda: live.tab.js(parts) > 2, "a line of three seconds")


def press(live: Live) -> None:
    """One hotfix by a hand, chosen by version, seen in the table and in the history."""
    tab = live.tab
    tab.js("[document.getElementById('adapter').value, document.getElementById('version').value] = ['tenant-a', 'v1']")
    tab.js("document.getElementById('swap').scrollIntoView({block: 'center'})")
    box = tab.js("JSON.parse(JSON.stringify(document.getElementById('swap').getBoundingClientRect()))")
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for kind in ("mousePressed", "mouseReleased"):
        tab.mouse(kind, x, y, button="left", clickCount=1)
    live.wait(lambda: "tenant-a → v1: ok" in live.text("answer"), "the swap's answer")
    live.wait(lambda: "operator" in live.text("swaps"), "the swap in the table")
    assert [(i["adapter"], i["version"], i["arm"]) for i in operators(live.running)] == [("tenant-a", "v1", "real")]


def hover(live: Live) -> None:
    box = live.tab.js("JSON.parse(JSON.stringify(document.getElementById('itl').getBoundingClientRect()))")
    live.tab.mouse("mouseMoved", box["x"] + box["width"] * 0.15, box["y"] + box["height"] / 2)
    assert "ITL p50" in live.text("itl-words")
    assert not live.text("itl-words").startswith("Now")
    live.tab.mouse("mouseMoved", 1, 1)


def in_locusts_tab(live: Live) -> None:
    tab = live.tab
    tab.open(f"{live.web.url}/?tab=hotfix")
    inside = "document.getElementById('hotfix-frame')?.contentDocument?.getElementById('state')?.textContent ?? ''"
    live.wait(lambda: "Running: phase" in tab.js(inside), "the live page inside Locust's tab")
    tab.js("[...document.querySelectorAll('[role=tab]')][0].click()")
    hidden = "getComputedStyle(document.getElementById('hotfix-frame')).display === 'none'"
    live.wait(lambda: tab.js(hidden), "Locust's own tab without the page")


def stop(live: Live) -> str:
    """To the verdict; the address of the report."""
    live.web.post("/stop")
    live.state("UNKNOWN: stream-atomic is required")
    return str(live.tab.js("document.getElementById('report').href"))


def test_a_run_from_its_start_to_its_verdict_and_the_next_one(tab: browser.Tab, tmp_path: Path) -> None:
    with locust_with(tab, tmp_path) as live:
        tab.open(f"{live.web.url}/hotfix")
        live.state("No run yet")
        follow(live)
        press(live)
        hover(live)
        assert axe.violations(tab) == []
        in_locusts_tab(live)
        tab.open(f"{live.web.url}/hotfix", 390, 844, dark=True)
        live.state("Running: phase")
        assert tab.js("document.documentElement.scrollWidth") == 390
        assert axe.violations(tab) == []
        first = stop(live)
        live.start()
        live.state("Running: phase")
        assert tab.js("document.getElementById('report').hidden")
        second = stop(live)
        assert first != second
        for address in (first, second):
            tab.open(address)
            assert tab.js("document.getElementById('canvas').width") > 100
        assert tab.errors == []


def test_a_master_with_workers_shows_what_their_engines_see(tab: browser.Tab, tmp_path: Path) -> None:
    with locust_with(tab, tmp_path, "--processes", "2", "--web-base-path", "/lt", base="/lt") as live:
        until(lambda: live.web.stats().get("worker_count") == 2, "two workers")
        tab.open(f"{live.web.url}/hotfix")
        follow(live)
        press(live)
        tab.open(stop(live))
        assert tab.errors == []
