"""Pictures of a real run for the documentation: the live page while it goes on, then its report.

    python bench/screenshots.py [SCENARIO] [FOLDER]     (make screenshots)

It starts Locust's web UI on SCENARIO (default: scenarios/vllm-cpu.yaml, a real vLLM), starts the test as a user would,
and drives a headless Chromium. What it wrote is said on the last lines; look at it before you commit it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import browser  # noqa: E402
from locust_run import Locust, Web, free_port, until  # noqa: E402

WIDTH, PATIENCE_S = 1280, 300.0
STATE = "document.getElementById('state').textContent"
PHASE = "phase 3/"  # hotfixes
LIMIT = 150_000  # bytes of a picture


def main(scenario: Path, out: Path) -> int:
    """Exit status: 0 when every picture is there and small enough."""
    out.mkdir(parents=True, exist_ok=True)
    port = free_port()
    with tempfile.TemporaryDirectory() as scratch, browser.chromium(Path(scratch) / "profile") as tab:
        running = Locust(Path(scratch), str(scenario.resolve()), "--web-host", "127.0.0.1", "--web-port", str(port))
        try:
            web = Web(port)
            tab.allowed = ("file:", "data:", web.url)
            until(web.up, "Locust's web UI", PATIENCE_S)
            _start(web, web_users(scenario))
            _live(tab, web, out)
            report = tab.js("document.getElementById('report').href")
            _report(tab, str(report), out)
            assert tab.errors == [], tab.errors
        finally:
            running.process.terminate()
            running.process.wait(60)
    return _said(out)


def _start(web: Web, users: int) -> None:
    """As the form does; the answer comes when the server is up."""
    form = urllib.parse.urlencode({"user_count": users, "spawn_rate": 20}).encode()
    with urllib.request.urlopen(web.url + "/swarm", data=form, timeout=PATIENCE_S) as answer:
        told = json.loads(answer.read())
    assert told["success"], told


def web_users(scenario: Path) -> int:
    """The scenario's own number of users."""
    from loadtest import scenario as module

    return module.load(scenario).traffic.users or 1


def _live(tab: browser.Tab, web: Web, out: Path) -> None:
    tab.open(f"{web.url}/hotfix", WIDTH, 900)
    until(lambda: PHASE in tab.js(STATE), "the hotfixes", PATIENCE_S)
    time.sleep(12)  # a picture of a run that has just begun shows nothing
    tab.js("document.getElementById('swap').click()")
    until(lambda: "ok" in tab.js("document.getElementById('answer').textContent"), "an operator's swap", PATIENCE_S)
    _shot(tab, out / "live.webp", height=1000)
    tab.open(f"{web.url}/hotfix", WIDTH, 900)
    until(lambda: tab.js("!document.getElementById('report').hidden"), "the verdict", PATIENCE_S)


def _report(tab: browser.Tab, report: str, out: Path) -> None:
    tab.open(report, WIDTH, 900)
    _shot(tab, out / "report.webp", height=900)
    for _ in range(2):
        tab.js("document.getElementById('next').click()")
    tab.paint()
    _shot(tab, out / "stream.webp", **_box(tab, "timeline"))
    tab.open(report, WIDTH, 900)
    _shot(tab, out / "charts.webp", **_box(tab, "charts"))
    tab.open(report, 390, 844, dark=True)
    _shot(tab, out / "phone.webp", width=390, height=844)


def _box(tab: browser.Tab, element: str) -> dict[str, float]:
    """An element's place on the page, with its legend, as `_shot` takes it."""
    box: dict[str, float] = tab.js(
        f"(() => {{ const b = document.getElementById('{element}').getBoundingClientRect();"
        "return {y: b.y + scrollY, height: Math.min(b.height, 1100)}; })()"
    )
    return box


def _shot(tab: browser.Tab, path: Path, width: float = WIDTH, height: float = 900, y: float = 0) -> None:
    clip: dict[str, Any] = {"x": 0, "y": y, "width": width, "height": height, "scale": 1}
    for quality in (80, 60, 40):
        tab.shot(path, clip=clip, format="webp", quality=quality)
        if path.stat().st_size < LIMIT:
            return


def _said(out: Path) -> int:
    pictures = sorted(out.glob("*.webp"))
    for picture in pictures:
        print(f"{picture}: {picture.stat().st_size:,} bytes")
    return int(not pictures or any(p.stat().st_size >= LIMIT for p in pictures))


if __name__ == "__main__":
    given = [Path(a) for a in sys.argv[1:]]
    defaults = (ROOT / "scenarios" / "vllm-cpu.yaml", ROOT / "docs" / "pictures")
    sys.exit(main(*(*given, *defaults[len(given) :])))
